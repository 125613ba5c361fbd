"""The arithmetic of the emulator's benchmark, and the fleets it draws."""

from __future__ import annotations

import math

import pytest

from benchmarks.emulator_fleets import random_setup
from benchmarks.emulator_frames import wire_bytes
from benchmarks.emulator_links import CASES, gaps
from benchmarks.emulator_speed import CASES as SPEEDS
from benchmarks.emulator_table import Row, draw, fleet_table, truth_table, worst
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.net import Frame, FrameHeader, encode
from edgeweave.net.link_model import HEADER_BYTES

DOCUMENT = {
    "settings": {
        "truth": [
            Row("one", "speed", 0.5, 0.49).document(),
            Row("link", "delay", 0.0, 0.1, "ms").document(),
        ],
        "fleets": [{"fleet": "1", "predicted_seconds": 0.9, "measured_seconds": 1.0, "error": 0.1}],
    }
}


def test_an_error_is_a_share_of_what_was_asked() -> None:
    assert Row("one", "speed", 0.5, 0.45).error == pytest.approx(0.1)
    assert Row("one", "speed", 0.5, 0.55).error == pytest.approx(0.1)


def test_where_nothing_was_asked_there_is_no_error() -> None:
    assert Row("one", "delay", 0.0, 0.1, "ms").error is None


def test_the_worst_is_of_one_kind_and_infinite_where_nothing_was_measured() -> None:
    rows = [Row("a", "rate", 10, 11), Row("b", "rate", 10, 8), Row("c", "loss", 1, 3)]
    assert worst(rows, "rate") == pytest.approx(0.2)
    assert worst(rows, "delay") == math.inf


def test_tables_show_what_was_asked_and_got() -> None:
    assert "| one | speed | 0.5 | 0.49 | 2.0% |" in truth_table(DOCUMENT)
    assert "| link | delay | 0 ms | 0.1 ms | - |" in truth_table(DOCUMENT)
    assert "| 1 | 0.900 s | 1.000 s | 10.0% |" in fleet_table(DOCUMENT)


def test_the_picture_is_a_png() -> None:
    assert draw(DOCUMENT).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arrived", "expected"),
    [([0, 1, 2], []), ([], [3]), ([1], [1, 1]), ([0], [2]), ([2], [2])],
)
def test_gaps_are_what_is_missing(arrived: list[int], expected: list[int]) -> None:
    assert gaps(arrived, 3) == expected


def test_a_frame_on_the_wire_has_one_header_for_each_packet() -> None:
    frame = Frame(FrameHeader("probe", "a", 0, 0, 0, 0, ()), ())
    assert wire_bytes(frame) == len(encode(frame).header) + HEADER_BYTES


def test_there_are_twenty_combinations() -> None:
    n_speeds = sum(len(speeds) for _, speeds in SPEEDS.values())
    assert (n_speeds, len(set(map(str, CASES)))) == (8, 12)


@pytest.mark.parametrize("seed", range(1, 11))
def test_a_random_fleet_fits_two_cores_and_is_the_same_every_time(seed: int) -> None:
    setup = random_setup(seed)
    assert setup == random_setup(seed)
    assert 2 <= len(setup.devices) <= 4
    assert sum(device.speed for device in setup.devices) <= 1.21
    names = [*(device.name for device in setup.devices), COORDINATOR_NAME]
    assert len(setup.links.pairs) == len(names) * (len(names) - 1)
