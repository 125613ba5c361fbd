"""What a run leaves for a later process: files that are whole or not there, of one run only."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from edgeweave.core.errors import CheckpointError
from edgeweave.train import journal as module
from edgeweave.train.checkpoint import Progress
from edgeweave.train.journal import Journal, RunRecord, noted
from edgeweave.train.report import OpenEpoch


def progress(step: int, *, loss: float = 0.5) -> Progress:
    return Progress(
        step=step,
        epoch=step // 10,
        batch=step % 10,
        settings={"seed": "3"},
        lr_calls=[None, 0.25],
        step_losses=[loss] * step,
        epochs=(),
        open_epoch=OpenEpoch(8, loss, {}, 1.0),
    )


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "run")


def test_what_was_noted_is_read_again(journal: Journal) -> None:
    journal.begin_term(RunRecord("run-1", 0))
    journal.note(progress(4))
    journal.begin_term(RunRecord("run-1", 1))
    journal.note(progress(6, loss=float("nan")))
    assert journal.record() == RunRecord("run-1", 1)
    found = journal.progress()
    assert found.keys() == {4, 6}
    assert found[4] == progress(4)
    assert found[6].step_losses[0] != found[6].step_losses[0]  # a diverged run has such losses


def test_an_empty_directory_tells_of_nothing(journal: Journal) -> None:
    assert journal.record() is None
    assert journal.progress() == {}
    journal.end()  # harmless


def test_only_the_last_notes_stay(journal: Journal) -> None:
    for step in range(2, 22, 2):
        journal.note(progress(step))
    assert list(journal.progress()) == [14, 16, 18, 20]


def test_a_run_that_went_back_forgets_the_notes_of_steps_to_be_done_again(
    journal: Journal,
) -> None:
    for step in (12, 14, 16, 18):
        journal.note(progress(step))
    journal.note(progress(10))  # a device was lost after step 18
    assert list(journal.progress()) == [10]
    journal.note(progress(12))
    assert list(journal.progress()) == [10, 12]


def test_another_run_begins_without_the_notes_of_the_one_before(journal: Journal) -> None:
    journal.begin_term(RunRecord("run-1", 0))
    journal.note(progress(4))
    journal.begin_term(RunRecord("run-2", 0))
    assert journal.progress() == {}
    assert journal.record() == RunRecord("run-2", 0)


def test_at_its_end_a_run_leaves_nothing_but_what_others_wrote(journal: Journal) -> None:
    journal.begin_term(RunRecord("run-1", 0))
    journal.note(progress(4))
    (journal.directory / "step-00000004").mkdir()
    journal.end()
    assert [path.name for path in journal.directory.iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_of_a_run_good_or_bad_takes_its_notes_away(journal: Journal, fails: bool) -> None:
    def run() -> None:
        with noted(journal) as on_term:
            on_term("run-1", 0)
            on_term("run-1", 1)
            assert journal.record() == RunRecord("run-1", 1)
            journal.note(progress(4))
            if fails:
                raise OSError("the card was pulled out")

    if fails:
        with pytest.raises(OSError, match="pulled out"):
            run()
    else:
        run()
    assert list(journal.directory.iterdir()) == []


def test_without_a_directory_nothing_is_written() -> None:
    with noted(None) as on_term:
        on_term("run-1", 0)


@pytest.mark.parametrize("data", [b"", b"{", b'{"run": 3, "term": 0}', b"\xff\xfe", b'{"term": 1}'])
def test_a_damaged_record_is_refused_with_the_way_out(journal: Journal, data: bytes) -> None:
    journal.begin_term(RunRecord("run-1", 0))
    path = journal.directory / "run.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as damaged:
        journal.record()
    assert str(damaged.value).startswith(f"{path} cannot be read (")
    assert str(damaged.value).endswith("Delete it to resume from the last checkpoint.")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"step": "four"}', b"\xff\xfe"])
def test_a_damaged_note_is_refused_with_the_way_out(journal: Journal, data: bytes) -> None:
    journal.note(progress(4))
    path = journal.directory / "progress-00000004.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as damaged:
        journal.progress()
    assert str(path) in str(damaged.value)
    assert str(damaged.value).endswith("Delete it to resume from the one before.")


def test_a_write_that_fails_leaves_the_note_before_as_it_was(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.begin_term(RunRecord("run-1", 0))

    def fail(path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_whole", fail)
    for write in (
        lambda: journal.begin_term(RunRecord("run-1", 1)),
        lambda: journal.note(progress(4)),
    ):
        with pytest.raises(CheckpointError) as full:
            write()
        assert "cannot be written (No space left on device)" in str(full.value)
    assert journal.record() == RunRecord("run-1", 0)
    assert journal.progress() == {}


def test_a_disk_that_fills_up_in_the_middle_of_a_note_leaves_those_before_and_no_half_one(
    journal: Journal,
) -> None:
    """The operating system itself ends the write after 4 KiB."""
    journal.begin_term(RunRecord("run-1", 0))
    journal.note(progress(4))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match=r"progress-00005000\.json cannot be written \("):
            journal.note(progress(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.progress() == {4: progress(4)}
    assert sorted(path.name for path in journal.directory.iterdir()) == [
        "progress-00000004.json",
        "run.json",
    ]


def read_only(*_arguments: object, **_options: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_note_that_cannot_be_deleted_is_an_error_of_ours(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.note(progress(4))
    monkeypatch.setattr(Path, "unlink", read_only)
    for act in (journal.end, lambda: journal.begin_term(RunRecord("run-2", 0))):
        with pytest.raises(CheckpointError) as refused:
            act()
        assert str(refused.value) == (
            f"{journal.directory / 'progress-00000004.json'} cannot be deleted (Read-only file "
            "system). Make its disk writable or choose another directory."
        )


def test_a_note_that_cannot_be_read_is_an_error_of_ours(journal: Journal) -> None:
    (journal.directory / "progress-00000004.json").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"00000004\.json cannot be read \(Is a directory\)"):
        journal.progress()


def test_a_run_whose_first_term_cannot_be_noted_does_not_begin(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "write_whole", read_only)
    with (
        noted(journal) as on_term,
        pytest.raises(
            CheckpointError, match=r"run\.json cannot be written \(Read-only file system"
        ),
    ):
        on_term("run-1", 0)


def test_a_later_term_that_cannot_be_noted_and_notes_that_stay_are_said_and_no_error(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with noted(journal) as on_term:
        on_term("run-1", 0)
        monkeypatch.setattr(module, "write_whole", read_only)
        monkeypatch.setattr(Path, "unlink", read_only)
        on_term("run-1", 1)
        assert "term 1 of run-1 goes on without being noted: " in caplog.text
    assert "what was noted of a run that is over stays: " in caplog.text
    assert journal.record() == RunRecord("run-1", 0)


def test_what_a_crash_left_half_written_goes_with_the_next_run(journal: Journal) -> None:
    journal.note(progress(4))
    for name in ("progress-00000006.json.4711", "run.json.4711"):
        (journal.directory / name).write_bytes(b"{")
    theirs = ["job.json.bak", "progress-00000006.json.bak"]
    for name in theirs:
        (journal.directory / name).write_bytes(b"not ours")
    journal.begin_term(RunRecord("run-2", 0))
    assert sorted(path.name for path in journal.directory.iterdir()) == [*theirs, "run.json"]


def test_a_write_that_was_cut_off_is_not_taken_for_a_note(journal: Journal) -> None:
    """A crash between writing beside and moving into place."""
    journal.note(progress(4))
    (journal.directory / "progress-00000006.json.4711").write_bytes(b'{"step')
    (journal.directory / "run.json.4711").write_bytes(b'{"ru')
    assert list(journal.progress()) == [4]
    assert journal.record() is None
