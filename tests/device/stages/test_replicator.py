"""A replica is fetched beside everything else, the newest of those asked for first."""

from __future__ import annotations

import logging
import threading

import pytest
import torch

from edgeweave.core.errors import FleetError
from edgeweave.device.stages.replicator import Replicator
from edgeweave.device.stages.snapshots import Snapshots, State
from tests.fleet.worlds import wait_until

LONG = 30.0


class Source:
    """The other device; answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.fails: set[int] = set()

    def fetch(self, step: int) -> State:
        self.asked.append(step)
        assert self.may_answer.wait(LONG)
        if step in self.fails:
            raise FleetError(f"the state after step {step} is not kept.")
        return {"w": torch.tensor([float(step)])}


def test_what_was_asked_for_is_fetched_and_kept() -> None:
    source, kept = Source(), Snapshots("pi-b")
    with Replicator(source.fetch, kept, stop_seconds=LONG) as replicator:
        for step in (2, 4):
            replicator.replicate(step)
            wait_until(lambda step=step: step in kept.held(), "it is fetched")
    assert source.asked == [2, 4]
    assert kept.take(4, ("w",))["w"].item() == 4


def test_asking_does_not_wait_and_what_became_old_meanwhile_is_left_out() -> None:
    source, kept = Source(), Snapshots("pi-b")
    source.may_answer.clear()
    with Replicator(source.fetch, kept, stop_seconds=LONG) as replicator:
        replicator.replicate(2)
        wait_until(lambda: source.asked == [2], "the first is on its way")
        for step in (4, 6, 8):
            replicator.replicate(step)
        source.may_answer.set()
        wait_until(lambda: 8 in kept.held(), "the newest is fetched")
    assert source.asked == [2, 8]
    assert kept.held() == {2: ("w",), 8: ("w",)}


def test_a_state_that_cannot_be_fetched_is_said_and_the_next_one_is_fetched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, kept = Source(), Snapshots("pi-b")
    source.fails.add(2)
    with Replicator(source.fetch, kept, stop_seconds=LONG) as replicator:
        replicator.replicate(2)
        wait_until(lambda: caplog.records != [], "it failed")
        replicator.replicate(4)
        wait_until(lambda: 4 in kept.held(), "the next one is fetched")
    (warned,) = caplog.records
    assert warned.levelno == logging.WARNING
    assert warned.message == (
        "no replica of the state after step 2: the state after step 2 is not kept."
    )


def test_its_end_waits_for_no_slow_answer_longer_than_told() -> None:
    source, kept = Source(), Snapshots("pi-b")
    source.may_answer.clear()
    with Replicator(source.fetch, kept, stop_seconds=0.01) as replicator:
        replicator.replicate(2)
        wait_until(lambda: source.asked == [2], "it is on its way")
    assert kept.held() == {}
    source.may_answer.set()  # the thread ends by itself
    wait_until(lambda: not replicator_threads(), "it has ended")


def test_its_end_waits_for_no_device_that_stands_still() -> None:
    source, kept = Source(), Snapshots("pi-b")
    source.may_answer.clear()
    with Replicator(source.fetch, kept, stop_seconds=LONG) as replicator:
        replicator.replicate(2)
        wait_until(lambda: source.asked == [2], "it is on its way")
    assert len(replicator_threads()) == 1  # it was not waited for, and waits itself
    source.may_answer.set()
    wait_until(lambda: not replicator_threads(), "it has ended")


def test_a_state_that_comes_after_the_end_pushes_out_none_that_is_kept() -> None:
    source, kept = Source(), Snapshots("pi-b")
    with Replicator(source.fetch, kept, stop_seconds=LONG) as replicator:
        for step in (2, 4):
            replicator.replicate(step)
            wait_until(lambda step=step: step in kept.held(), "it is fetched")
        source.may_answer.clear()
        replicator.replicate(6)
        wait_until(lambda: source.asked == [2, 4, 6], "one more is on its way")
    said = kept.held()
    source.may_answer.set()
    wait_until(lambda: not replicator_threads(), "it came")
    assert kept.held() == said == {2: ("w",), 4: ("w",)}


def test_a_replicator_that_was_asked_nothing_ends_at_once() -> None:
    with Replicator(Source().fetch, Snapshots("pi-b"), stop_seconds=LONG):
        assert len(replicator_threads()) == 1
    assert replicator_threads() == []


def replicator_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "edgeweave-replicas"]
