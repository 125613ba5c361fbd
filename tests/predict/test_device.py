"""What a device took changes what is predicted for it, and by how much it may be wrong."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest

from edgeweave.core.errors import FormatError
from edgeweave.predict import (
    FAMILIES,
    FEATURES,
    DeviceLatency,
    LatencyModel,
    Measurement,
    unit_features,
)
from edgeweave.predict.embedding import Alikeness, Embedding
from edgeweave.predict.features import Floats
from edgeweave.predict.model import Prior
from edgeweave.predict.probe import probe_programs

CONV, MATMUL = FAMILIES.index("conv"), FAMILIES.index("matmul")
PRIOR = Prior(
    own=1.0,
    local=0.5,
    mixture=1.0,
    likeness=0.5,
    noise=0.05,
    small_noise=0.1,
    small_seconds=1e-6,
)


def operator(family: int, macs: float, moved: float = 1e5) -> Floats:
    row = np.zeros(1 + len(FEATURES))
    row[0] = family
    row[1 + FEATURES.index("macs")] = np.log1p(macs)
    row[1 + FEATURES.index("input_bytes")] = np.log1p(moved)
    return row


def model(*, kinds: int = 1) -> LatencyModel:
    """Operators of a family are alike within a factor of some ten multiply-adds."""
    typical = np.stack([operator(CONV, 10.0**power)[1:] for power in (5, 6, 7, 8)])
    alikeness = Alikeness(
        scales=np.full((len(FAMILIES), len(FEATURES)), 3.0),
        amplitudes=np.full(len(FAMILIES), 0.5),
        levels=np.full(len(FAMILIES), 0.3),
        common=0.2,
    )
    embedding = Embedding({"conv": typical, "matmul": typical}, alikeness)
    own = Embedding({"conv": typical[::2]}, alikeness)
    chance = np.random.default_rng(0)
    costs = np.tile([1e-5, 1e-10, 1e-10], (2, len(FAMILIES), 1))
    return LatencyModel(
        embedding=embedding,
        own=own,
        work_costs=costs,
        shared=0.1 * chance.standard_normal((2, embedding.n_coordinates)),
        kinds=0.1 * chance.standard_normal((kinds, 2, own.n_coordinates)),
        kind_names=tuple(f"kind-{number}" for number in range(kinds)),
        prior=PRIOR,
    )


LAYERS = [operator(CONV, 10.0**power)[None] for power in (5, 5.5, 6, 6.5, 7, 7.5, 8)]


def taking(device: DeviceLatency, pieces: list[Floats], factor: float) -> list[Measurement]:
    """What pieces would take on a device that takes ``factor`` times the predicted."""
    seconds = factor * device.predict(pieces).seconds
    return [
        Measurement(piece, forward, backward)
        for piece, (forward, backward) in zip(pieces, seconds.tolist(), strict=True)
    ]


def test_a_slow_device_is_predicted_to_be_slow_for_what_it_has_not_run() -> None:
    new = DeviceLatency(model())
    told = new.given(taking(new, LAYERS[::2], 3.0))
    before, after = new.predict(LAYERS[1::2]), told.predict(LAYERS[1::2])
    assert after.seconds / before.seconds == pytest.approx(3.0, rel=0.1)
    assert (after.deviation < before.deviation).all()


def test_a_family_that_was_not_measured_follows_less() -> None:
    new = DeviceLatency(model())
    told = new.given(taking(new, LAYERS, 3.0))
    other = [operator(MATMUL, 1e6)[None]]
    ratio = told.predict(other).seconds / new.predict(other).seconds
    assert (ratio > 1).all()
    assert (ratio < 2).all()
    assert (told.predict(other).deviation > told.predict([LAYERS[2]]).deviation).all()


def test_sums_over_a_stage_tell_about_its_layers() -> None:
    new = DeviceLatency(model())
    stages = [np.concatenate(LAYERS[i:j]) for i in range(6) for j in range(i + 2, 8)]
    told = new.given(taking(new, stages, 2.0))
    ratio = told.predict(LAYERS[2:]).seconds / new.predict(LAYERS[2:]).seconds
    assert ratio == pytest.approx(2.0, rel=0.15)


def test_operators_of_one_piece_add_up() -> None:
    new = DeviceLatency(model())
    together = new.predict([np.concatenate(LAYERS)]).seconds
    assert together == pytest.approx(new.predict(LAYERS).seconds.sum(axis=0, keepdims=True))


def test_a_piece_without_operators_takes_no_time_and_changes_no_other() -> None:
    layer = operator(CONV, 1e6)[None]
    new = DeviceLatency(model())
    for latency in (new, new.given(taking(new, LAYERS, 3.0))):
        both = latency.predict([layer, layer[:0]]).seconds
        assert both[1].tolist() == [0.0, 0.0]
        assert both[0] == pytest.approx(latency.predict([layer]).seconds[0])


def test_a_piece_through_which_no_gradient_flows_tells_of_its_forward_alone() -> None:
    new = DeviceLatency(model())
    seconds = new.predict([LAYERS[3]]).seconds[0]
    told = new.given([Measurement(LAYERS[3], 3 * float(seconds[0]), None)])
    ratio = (told.predict([LAYERS[3]]).seconds / seconds)[0]
    assert ratio[0] == pytest.approx(3.0, rel=0.1)
    assert 1 < ratio[1] < ratio[0]


def test_most_of_what_a_device_takes_lies_in_the_interval() -> None:
    """Devices drawn from the prior itself."""
    known = model()
    chance = np.random.default_rng(1)
    pieces = [operator(CONV, 10 ** chance.uniform(5, 8))[None] for _ in range(40)]
    rows = np.concatenate(pieces)
    covariance = known.covariance(rows, rows)
    both = np.block(
        [[covariance, PRIOR.likeness * covariance], [PRIOR.likeness * covariance, covariance]]
    )
    plain = DeviceLatency(known).predict(pieces).seconds
    inside = []
    for _ in range(40):
        weight = chance.standard_normal()
        mixture = [weight * (known.own.points(rows) @ known.kinds[0, d]) for d in (0, 1)]
        own = chance.multivariate_normal(np.zeros(80), both) + np.concatenate(mixture)
        noise = PRIOR.noise * chance.standard_normal(80)
        seconds = plain * np.exp((own + noise).reshape(2, 40).T)
        measured = [Measurement(p, *s) for p, s in zip(pieces[:10], seconds.tolist(), strict=False)]
        predicted = DeviceLatency(known, measured).predict(pieces[10:])
        inside.append((predicted.low < seconds[10:]) & (seconds[10:] < predicted.high))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)


def test_a_model_is_the_same_after_a_file() -> None:
    known = model(kinds=3)
    again = LatencyModel.from_bytes(known.to_bytes())
    assert again.kind_names == known.kind_names
    assert again.prior.likeness == pytest.approx(known.prior.likeness)
    mine, theirs = (DeviceLatency(each).predict(LAYERS).seconds for each in (known, again))
    assert theirs == pytest.approx(mine, rel=1e-4)


def test_a_model_of_other_features_is_refused() -> None:
    data = model().to_bytes().replace(b"bytes_before", b"bytes_behind")
    with pytest.raises(FormatError, match="made for other features"):
        LatencyModel.from_bytes(data)


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"operators are rows of 1 \+"):
        model().embedding.points(np.zeros((3, 4)))


def test_the_model_that_ships_is_small_and_predicts_the_probe_s_networks() -> None:
    file = resources.files("edgeweave.predict") / "model.safetensors"
    assert len(file.read_bytes()) < 1_000_000
    shipped = LatencyModel.shipped()
    assert len(shipped.kind_names) >= 8
    pieces = [
        piece
        for network in probe_programs()
        for piece in unit_features(network.program, network.microbatch_size).values()
    ]
    predicted = DeviceLatency(shipped).predict(pieces)
    assert (predicted.seconds > 1e-6).all()
    assert (predicted.seconds < 0.1).all()
    assert (predicted.deviation < 3).all()
