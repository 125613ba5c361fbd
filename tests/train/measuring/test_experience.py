"""What was learnt of devices outlives the process, in a file that counts only if it is sound."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeweave.predict import DeviceLatency, LatencyModel, Measurement
from edgeweave.predict.learning import MOST_KEPT, MOST_WAITING
from edgeweave.predict.probe import Probe
from edgeweave.train import Experience, device_latencies
from tests.predict.probes import FACTS, made_up_probe

PROBE = made_up_probe(3)


def took(probe: Probe, factor: float) -> list[Measurement]:
    """Stages of two units each, as the probe predicts them times ``factor``."""
    units = probe.measurements()
    pieces = [np.concatenate([a.rows, b.rows]) for a, b in pairwise(units)][:4]
    seconds = DeviceLatency(LatencyModel.shipped(), units).predict(pieces).seconds * factor
    return [
        Measurement(piece, forward, backward)
        for piece, (forward, backward) in zip(pieces, seconds.tolist(), strict=True)
    ]


RIGHT, WRONG = took(PROBE, 1.05), took(PROBE, 30.0)


def times(measurements: Sequence[Measurement]) -> list[tuple[float, float | None]]:
    return [(each.forward_seconds, each.backward_seconds) for each in measurements]


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def test_what_was_learnt_is_there_for_the_next_process(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "yet"
    Experience(directory).note("pi-a", FACTS, RIGHT)
    assert only_file(directory).name == f"learnt-pi-a-{FACTS.digest()}.json"
    Experience(directory).latency("pi-a", PROBE)  # judges
    found = Experience(directory).lessons("pi-a", FACTS)
    assert (times(found.kept), found.waiting) == (times(RIGHT), ())
    for mine, read in zip(RIGHT, found.kept, strict=True):
        assert read.rows == pytest.approx(mine.rows, rel=1e-6)


def test_predictions_are_made_of_the_probe_and_of_what_was_learnt(tmp_path: Path) -> None:
    Experience(tmp_path).note("pi-a", FACTS, RIGHT)
    pieces = [each.rows for each in RIGHT]
    probes = {"pi-a": PROBE, "pi-b": PROBE}
    found = device_latencies(probes, Experience(tmp_path))
    assert (found["pi-b"].predict(pieces).seconds < found["pi-a"].predict(pieces).seconds).all()
    alone = device_latencies(probes)["pi-b"].predict(pieces).seconds
    assert (alone == found["pi-b"].predict(pieces).seconds).all()


def test_a_wrong_measurement_does_not_ruin_predictions_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experience = Experience(tmp_path)
    experience.note("pi-a", FACTS, RIGHT)
    before = experience.latency("pi-a", PROBE).predict([WRONG[0].rows]).seconds
    experience.note("pi-a", FACTS, WRONG[:1])
    with caplog.at_level(logging.INFO):
        after = experience.latency("pi-a", PROBE).predict([WRONG[0].rows]).seconds
    assert (after == before).all()
    assert caplog.messages == [
        "pi-a: 1 of 1 measurements are not used: all others predict something else"
    ]
    assert times(Experience(tmp_path).lessons("pi-a", FACTS).kept) == times(RIGHT)


def test_another_device_or_another_fact_has_learnt_nothing(tmp_path: Path) -> None:
    experience = Experience(tmp_path)
    experience.note("pi-a", FACTS, RIGHT)
    other = msgspec.structs.replace(FACTS, torch="2.9.0")
    for found in (experience.lessons("pi-b", FACTS), experience.lessons("pi-a", other)):
        assert (found.kept, found.waiting) == ((), ())


def test_without_a_directory_memory_keeps_it_and_nothing_is_written() -> None:
    experience = Experience(None)
    experience.note("pi-a", FACTS, RIGHT)
    assert times(experience.lessons("pi-a", FACTS).waiting[0]) == times(RIGHT)
    assert Experience(None).lessons("pi-a", FACTS).waiting == ()


def test_a_run_that_teaches_nothing_writes_nothing(tmp_path: Path) -> None:
    Experience(tmp_path).note("pi-a", FACTS, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"",
        lambda text: b"\xff\xfe",
        lambda text: text[:-100],
        lambda text: text.replace(b'"forward_seconds":', b'"forward_seconds":-'),
        lambda text: text.replace(b'"rows":"', b'"rows":"AAAA'),
        lambda text: text.replace(b'"rows":"', b'"rows":"AADAfw=='),
    ],
    ids=["empty", "no text", "cut off", "negative times", "half a row", "no base64"],
)
def test_a_damaged_file_counts_as_none_with_a_warning(
    change: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(change)
    Experience(tmp_path).note("pi-a", FACTS, RIGHT)
    path = only_file(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        found = Experience(tmp_path).lessons("pi-a", FACTS)
    assert (found.kept, found.waiting) == ((), ())
    assert "pi-a is learnt anew" in caplog.text


def no_operator() -> Measurement:
    rows = RIGHT[0].rows.copy()
    rows[0, 3] = np.nan
    return Measurement(rows, 1.0, None)


@pytest.mark.parametrize(
    "wrong",
    [no_operator(), Measurement(RIGHT[0].rows, 0.0, None), Measurement(RIGHT[0].rows, 1.0, -1.0)],
    ids=["no operator", "no time", "negative time"],
)
def test_what_reading_refuses_is_not_written_over_what_it_takes(
    wrong: Measurement, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Experience(tmp_path).note("pi-a", FACTS, RIGHT)
    with caplog.at_level(logging.WARNING):
        Experience(tmp_path).note("pi-a", FACTS, [wrong])
    assert "what pi-a took is kept in memory alone" in caplog.text
    (found,) = Experience(tmp_path).lessons("pi-a", FACTS).waiting
    assert times(found) == times(RIGHT)


def test_rows_of_other_features_are_of_no_use_and_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Experience(tmp_path).note("pi-a", FACTS, RIGHT)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"bytes_before"', b'"bytes_behind"'))
    with caplog.at_level(logging.WARNING):
        assert Experience(tmp_path).lessons("pi-a", FACTS).waiting == ()
    assert caplog.messages == []


def test_where_nothing_can_be_written_memory_keeps_it_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    experience = Experience(tmp_path / "file" / "directory")
    with caplog.at_level(logging.WARNING):
        experience.note("pi-a", FACTS, RIGHT)
    assert "what pi-a took is kept in memory alone" in caplog.text
    assert times(experience.lessons("pi-a", FACTS).waiting[0]) == times(RIGHT)


def test_what_takes_more_than_is_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Experience(tmp_path).note("pi-a", FACTS, RIGHT[:1])
    size = only_file(tmp_path).stat().st_size
    monkeypatch.setattr("edgeweave.train.measuring.experience._MOST_BYTES", size)
    with caplog.at_level(logging.WARNING):
        Experience(tmp_path).note("pi-a", FACTS, RIGHT)
    assert "what pi-a took is kept in memory alone (more than 0 MiB)" in caplog.text
    assert len(Experience(tmp_path).lessons("pi-a", FACTS).waiting) == 1


def test_only_so_much_waits_whatever_is_noted() -> None:
    experience = Experience(None)
    for _ in range(MOST_WAITING + 2):
        experience.note("pi-a", FACTS, RIGHT * MOST_KEPT)
    lessons = experience.lessons("pi-a", FACTS)
    assert [len(batch) for batch in lessons.waiting] == [MOST_KEPT] * MOST_WAITING
