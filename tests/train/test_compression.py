"""What a user says about codecs, and what is measured for it."""

from __future__ import annotations

import pytest
import torch

import edgeweave as ew
from edgeweave.codec import Codec, blockfloat, decode, encode, none, parse, truncate, uniform
from edgeweave.plan import Coding
from edgeweave.program import Program, capture
from edgeweave.train import measure_costs
from edgeweave.train.compression import Compression, chosen_codec
from tests.models import Example
from tests.train.trained_models import MLP

SGD = ew.Optimizer("SGD", lr=0.05)


def program_of(example: Example) -> Program:
    return capture(example.model(), example.loss, *example.batch(4)).program


def test_a_codec_is_for_every_link_in_its_own_bits() -> None:
    found = Compression.of(blockfloat(6, 32))
    assert found == Compression(blockfloat(6, 32), (6,), always=True)
    assert found.coding(program_of(MLP)) == Coding((6,), True, 32, 8 / 32)


def test_float64_is_never_coded_and_planning_knows_it() -> None:
    inputs, target = MLP.batch(4)
    program = capture(MLP.model().double(), MLP.loss, inputs.double(), target).program
    found = Compression.of("auto")
    assert found is not None
    assert found.coding(program) is None


def test_a_loss_in_float64_makes_no_wider_values_of_float32() -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return MLP.loss(output.double(), target)

    program = capture(MLP.model(), loss, *MLP.batch(4)).program
    found = Compression.of(uniform(8))
    assert found is not None
    assert found.coding(program) == Coding((8,), True, 32, 64 / 256)


def test_auto_offers_several_widths_that_links_may_do_without() -> None:
    found = Compression.of("auto")
    assert found is not None
    assert found.codec.name == "uniform"
    assert (found.widths, found.always) == ((16, 12, 8, 6), False)


def test_no_codec_is_no_compression() -> None:
    assert Compression.of(none()) is None


@pytest.mark.parametrize("codec", ["uniform(8)", None, 8, uniform])
def test_what_is_no_codec_is_refused_when_a_trainer_is_made(fleet: ew.Fleet, codec: object) -> None:
    with pytest.raises(ew.ConfigError) as refused:
        ew.PipelineTrainer(MLP.model(), MLP.loss, optimizer=SGD, fleet=fleet, codec=codec)  # type: ignore[arg-type]
    assert str(refused.value).startswith(
        f'codec is "auto" or one of edgeweave.codec (got {codec!r}'
    )


@pytest.mark.parametrize("text", ["none", "uniform(8)", "blockfloat(4, 32)"])
def test_a_text_names_a_codec_or_auto(text: str) -> None:
    assert chosen_codec(text) == parse(text)
    assert chosen_codec("auto") == "auto"


@pytest.mark.parametrize(
    "codec", [uniform(8), uniform(6, 64), blockfloat(8), truncate(12, 128)], ids=str
)
def test_planning_knows_how_many_bytes_a_codec_makes(codec: Codec) -> None:
    values = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    compression = Compression.of(codec)
    assert compression is not None
    share = compression.coding(program_of(MLP)).share(codec.bits)
    assert len(encode(values, codec)) == pytest.approx(share * values.nbytes, rel=0.002)
    assert decode(encode(values, codec)).shape == values.shape


def test_costs_tell_what_codecs_take_on_every_device(fleet: ew.Fleet) -> None:
    captured = capture(MLP.model(), MLP.loss, *MLP.batch(4))
    options = {"microbatch_size": 3, "optimizer": SGD, "repetitions": 1}
    compression = Compression.of("auto")
    costs = measure_costs(fleet, captured, **options, compression=compression)  # type: ignore[arg-type]
    assert costs.coding == Coding((16, 12, 8, 6), False, 32, 64 / 256)
    for device in costs.devices:
        assert 0 < device.encode_seconds_per_byte < 1e-5
        assert 0 < device.decode_seconds_per_byte < 1e-5
    without = measure_costs(fleet, captured, **options)  # type: ignore[arg-type]
    assert without.coding is None
    assert {device.encode_seconds_per_byte for device in without.devices} == {0.0}
