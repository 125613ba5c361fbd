"""Ways to predict a device are compared fairly, and each does what it says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import recorded, recorded_table
from benchmarks.recordings import tophub
from benchmarks.recordings.alternatives import Factors, Scalar, Trees, Work, sums
from benchmarks.recordings.compare import LISTED, WAYS, Schedule, compare, completed
from benchmarks.recordings.ours import Ours
from benchmarks.recordings.values import Recorded, convolution
from edgeweave.predict.features import Floats

_N = 48
_RATES = {"a": (2e-10, 1e-9), "b": (8e-10, 1e-9), "c": (1e-10, 4e-9), "d": (6e-10, 6e-9)}


def _made() -> Recorded:
    """Four devices, computing and moving bytes at rates of their own, measured within 2 %."""
    chance = np.random.default_rng(0)
    pieces = []
    for _ in range(_N):
        channels, filters = (int(each) for each in 8 * chance.integers(1, 32, 2))
        side, window = int(chance.choice([7, 14, 28])), int(chance.choice([1, 3]))
        images, outputs = (1, channels, side, side), (1, filters, side, side)
        pieces.append(np.array([convolution(images, outputs, kernel=window**2)]))
    macs, moved = sums(pieces)
    seconds = [1e-5 + np.maximum(rate * macs, slow * moved) for rate, slow in _RATES.values()]
    noisy = np.array(seconds) * np.exp(0.02 * chance.standard_normal((len(_RATES), _N)))
    return Recorded("made", tuple(pieces), tuple(_RATES), tuple("wxyz"), noisy)


def _error(predicted: Floats, measured: Floats) -> float:
    return float(np.abs(predicted / measured - 1).mean())


class _Spy:
    def __init__(self, seconds: Floats, others: Floats) -> None:
        self.seconds, self.others = seconds, others

    def predict(self, seen: np.ndarray, seconds: Floats) -> Floats:
        """What the device took that was left out, where a sample tells which it is."""
        (device,) = np.flatnonzero(np.isclose(self.seconds[:, seen], seconds).all(axis=1))
        assert not any(np.allclose(np.log(self.seconds[device]), each) for each in self.others)
        found = 2 * self.seconds[device]
        found[seen] = np.nan
        return found


def test_no_way_is_taught_a_device_of_the_family_or_judged_by_what_it_saw() -> None:
    made = _made()
    taught: list[tuple[str, ...]] = []

    def teach(pieces: Sequence[Floats], others: Floats, families: Sequence[str]) -> _Spy:
        taught.append(tuple(families))
        return _Spy(made.seconds, others)

    errors = compare(made, Schedule((5, 10), n_draws=2), {"spy": teach})
    assert sorted(taught) == [tuple("wxy"), tuple("wxz"), tuple("wyz"), tuple("xyz")]
    assert errors.median["spy", 5] == pytest.approx([1.0] * 4)
    assert errors.mean["spy", 10] == pytest.approx([1.0] * 4)


def test_devices_of_one_family_are_left_out_together() -> None:
    made = _made()
    twins = Recorded("twins", made.pieces, made.devices, ("w", "w", "y", "z"), made.seconds)
    taught: list[int] = []

    def teach(pieces: Sequence[Floats], others: Floats, families: Sequence[str]) -> _Spy:
        taught.append(len(others))
        return _Spy(made.seconds, others)

    compare(twins, Schedule((5,)), {"spy": teach})
    assert sorted(taught) == [2, 3, 3]


def test_what_was_not_measured_follows_from_levels_and_pieces() -> None:
    logs = np.array([0.0, 1.0, 3.0])[:, None] + np.array([[-5.0, -7.0, -4.0, -6.0]])
    holes = logs.copy()
    holes[0, 1] = holes[2, 0] = holes[2, 3] = np.nan
    assert completed(holes) == pytest.approx(logs, abs=1e-3)


def test_the_scalar_finds_the_device_that_is_the_same_but_for_a_factor() -> None:
    made = _made()
    predicted = Scalar(np.log(made.seconds)).predict(np.arange(5), 3 * made.seconds[2, :5])
    assert predicted == pytest.approx(3 * made.seconds[2])


def test_a_roofline_is_found_from_samples_of_a_device_that_has_one() -> None:
    made = _made()
    of_work = {}
    for roofline in (False, True):
        way = Work(made.pieces, roofline=roofline)
        of_work[roofline] = _error(
            way.predict(np.arange(24), made.seconds[2, :24]), made.seconds[2]
        )
    assert of_work[True] < 0.1 < of_work[False]


def test_latent_factors_find_a_mixture_of_known_devices() -> None:
    logs = np.log(_made().seconds)
    mixture = np.exp(logs.mean(axis=0) + 0.5 * (logs[1] - logs[0]))
    assert _error(Factors(logs).predict(np.arange(20), mixture[:20]), mixture) < 0.05


def test_trees_predict_a_device_like_the_others_up_to_its_level() -> None:
    made = _made()
    logs = np.log(made.seconds[[0, 0, 1]])
    trees = Trees(made.pieces, logs)
    assert _error(trees.predict(np.arange(8), 5 * made.seconds[0, :8]), 5 * made.seconds[0]) < 0.3


def test_ours_learns_a_device_that_no_factor_makes_of_another() -> None:
    made = _made()
    others, families = np.log(made.seconds[:3]), ["w", "x", "y"]
    seen, measured = np.arange(30), made.seconds[3]
    ours = Ours(made.pieces, others, families).predict(seen, measured[:30])
    scalar = Scalar(others).predict(seen, measured[:30])
    assert _error(ours[30:], measured[30:]) < 0.8 * _error(scalar[30:], measured[30:])


def test_without_data_the_benchmark_says_so_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = recorded.DataSet(partial(tophub.read, tmp_path), Schedule((5,)), Schedule((5,)))
    monkeypatch.setattr(recorded, "SETS", dict.fromkeys(recorded.SETS, absent))
    result = recorded.run(quick=True)
    assert not result.metrics
    assert result.lines[0] == (
        f"tophub: no data ({tmp_path / 'tophub_ops.csv'}). Set EDGEWEAVE_DATA to their folder."
    )


def test_the_table_has_every_way_and_marks_the_least_error() -> None:
    series = {
        f"tophub, {way}, 10, {statistic}, by device": {"samples": [error, error]}
        for way, error in {**dict.fromkeys(WAYS, 0.5), "ours": 0.25}.items()
        for statistic in ("median", "mean")
    }
    lines = recorded_table.table({"series": series}).splitlines()
    assert lines[0] == "| data | way | 10 samples |"
    assert lines[2] == "| TopHub | ours | **25.0** / 25.0 |"
    assert lines[3] == "| TopHub | capacity scalar | 50.0 / 50.0 |"
    assert set(LISTED) < set(WAYS)
