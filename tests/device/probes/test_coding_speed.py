"""What codecs take on a device: exact on a stopwatch that the test owns, positive on a real one."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from edgeweave.codec import Codec, blockfloat, none, truncate, uniform
from edgeweave.core.errors import ConfigError
from edgeweave.device import AgentSettings, CodingProbe, CodingSeconds, decode_message
from edgeweave.device.probes import coding_speed as coding_speed_module
from edgeweave.device.probes.coding_speed import coding_seconds
from tests.device.test_agent import Bench, bench_of

N_BYTES = (1 << 18) * 4


@pytest.mark.parametrize("codec", [uniform(16), blockfloat(16), truncate(16)], ids=str)
def test_every_codec_takes_time_both_ways(codec: Codec) -> None:
    found = coding_seconds(codec, (16, 8), time.thread_time)
    assert 1e-11 < found.encode_seconds_per_byte < 1e-5
    assert 1e-11 < found.decode_seconds_per_byte < 1e-5


class Work:
    """Codecs that take as many seconds as they are told, on a stopwatch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, list[float]]) -> None:
        self.now = 0.0
        self.seeds: dict[int, list[int | None]] = {bits: [] for bits in seconds}
        self._left = {bits: iter(each) for bits, each in seconds.items()}
        monkeypatch.setattr(coding_speed_module, "encode", self.encode)
        monkeypatch.setattr(coding_speed_module, "decode", self.decode)

    def encode(self, values: torch.Tensor, codec: Codec, *, seed: int | None) -> int:
        assert values.nbytes == N_BYTES
        self.seeds[codec.bits].append(seed)
        self.now += next(self._left[codec.bits])
        return codec.bits

    def decode(self, bits: int, *, into: torch.Tensor) -> None:
        self.now += next(self._left[bits])

    def stopwatch(self) -> float:
        return self.now


def test_it_is_the_median_of_the_slowest_width_after_one_to_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = Work(
        monkeypatch,
        {
            16: [900.0, 900.0, 2.0, 10.0, 4.0, 50.0, 3.0, 20.0],
            8: [900.0, 900.0, 8.0, 1.0, 5.0, 2.0, 700.0, 600.0],
        },
    )
    found = coding_seconds(uniform(16), (16, 8), work.stopwatch)
    assert found == CodingSeconds(8.0 / N_BYTES, 20.0 / N_BYTES)
    assert [len(set(seeds) - {None}) for seeds in work.seeds.values()] == [4, 4]


def ask(bench: Bench, codec: Codec, widths: tuple[int, ...]) -> CodingSeconds:
    return decode_message(bench.ask("coding", CodingProbe(codec, widths)), CodingSeconds)


def test_an_agent_tells_what_codecs_take() -> None:
    with bench_of(AgentSettings("pi-a", threads=1)) as bench:
        found = ask(bench, uniform(16), (16, 8))
    assert found.encode_seconds_per_byte > 0
    assert found.decode_seconds_per_byte > 0


@pytest.mark.parametrize(("speed", "times"), [(None, 1), (1.0, 1), (0.25, 4)])
def test_an_emulated_device_takes_as_much_longer_as_it_is_slower(
    monkeypatch: pytest.MonkeyPatch, speed: float | None, times: int
) -> None:
    def measured(
        codec: Codec, widths: tuple[int, ...], stopwatch: Callable[[], float]
    ) -> CodingSeconds:
        assert (codec, widths) == (blockfloat(8), (8, 6))
        assert (stopwatch is time.thread_time) == (speed is not None)
        return CodingSeconds(1.0, 3.0)

    monkeypatch.setattr("edgeweave.device.inquiries.coding_seconds", measured)
    with bench_of(AgentSettings("pi-a", speed=speed)) as bench:
        assert ask(bench, blockfloat(8), (8, 6)) == CodingSeconds(times * 1.0, times * 3.0)


@pytest.mark.parametrize("codec_and_widths", [(none(), (8,)), (uniform(8), (17,))])
def test_widths_that_a_codec_lacks_are_refused(
    codec_and_widths: tuple[Codec, tuple[int, ...]],
) -> None:
    with bench_of(AgentSettings("pi-a", threads=1)) as bench, pytest.raises(ConfigError):
        ask(bench, *codec_and_widths)
