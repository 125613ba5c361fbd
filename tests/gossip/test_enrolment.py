"""Who is enrolled either works or is let go: whatever fails, comes too late or dies meanwhile."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import edgeweave as ew
from edgeweave.core.errors import ConfigError, FleetError
from edgeweave.data import load_source
from edgeweave.device import BeginGossip, PeerStatus
from edgeweave.device.peers.place import PeerPlace
from edgeweave.fleet import Fleet
from edgeweave.gossip import DeviceFiles, GossipTrainer, Members, running, wait_members
from edgeweave.train.models import mlp
from tests.fleet.worlds import QUICK, memory_fleet
from tests.train.troubled import troubled_fleet

DIGITS = load_source("digits", path=None)
FILES = DeviceFiles("digits", own=False)


def trainer_of(fleet: Fleet) -> GossipTrainer:
    torch.manual_seed(0)
    return GossipTrainer(
        mlp(64, 10),
        functional.cross_entropy,
        optimizer=ew.Optimizer("SGD", lr=0.1),
        fleet=fleet,
        balance=False,
    )


def start(fleet: Fleet, **options: Any) -> str:
    return trainer_of(fleet).start(FILES, batch_size=32, example=DIGITS.test, **options)


def wait_for(event: threading.Event) -> None:
    assert event.wait(20.0)


class Alarms:
    """Timers that a test lets ring."""

    def __init__(self) -> None:
        self.made: list[Alarms.Alarm] = []

    class Alarm:
        def __init__(self, seconds: float, act: Callable[[], None]) -> None:
            self.seconds, self.ring, self.is_set = seconds, act, False

        def start(self) -> None:
            self.is_set = True

        def cancel(self) -> None:
            self.is_set = False

    def __call__(self, seconds: float, act: Callable[[], None]) -> Alarms.Alarm:
        self.made.append(self.Alarm(seconds, act))
        return self.made[-1]


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> Alarms:
    found = Alarms()
    monkeypatch.setattr("edgeweave.device.peers.place.threading.Timer", found)
    return found


def test_an_enrolment_that_comes_after_its_release_makes_nobody_a_peer(tmp_path: Path) -> None:
    """Bug: a device that heard of the release first was enrolled afterwards, and stayed so."""
    with troubled_fleet("a", "b") as troubled:
        fleet, failed = troubled.world.fleet, threading.Event()
        troubled.gates["b"].at_request("enrol", 1, lambda: wait_for(failed))
        files = {"a": DeviceFiles("npz", tmp_path / "none.npz"), "b": DeviceFiles("digits")}
        with pytest.raises(ConfigError, match="there is no such file"):
            trainer_of(fleet).start(files, batch_size=32, example=DIGITS.test)
        failed.set()
        # The late request is served before b is asked for anything else of that kind.
        report = trainer_of(fleet).fit(FILES, batch_size=32, epochs=0.1, validate=DIGITS.test)
        assert [peer.there for peer in report.peers] == [True, True]
        assert troubled.busy() == []


def test_a_release_while_a_request_is_read_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bug: the device knew of no such run yet, and was a peer of it from then on."""
    read, released, failed = threading.Event(), threading.Event(), []
    prepare = PeerPlace._new_peer

    def late(place: PeerPlace, message: Any) -> Any:
        read.set()
        wait_for(released)
        return prepare(place, message)

    monkeypatch.setattr(PeerPlace, "_new_peer", late)
    enrol = Members.enrol

    def noted(members: Members, messages: Any) -> Any:
        runs.append(members.run)
        return enrol(members, messages)

    runs: list[str] = []
    monkeypatch.setattr(Members, "enrol", noted)
    with memory_fleet("a", "b") as world:

        def begin() -> None:
            try:
                start(world.fleet)
            except FleetError as error:
                failed.append(error)

        starting = threading.Thread(target=begin)
        starting.start()
        wait_for(read)
        Members(world.fleet, runs[0], ("a", "b")).release()
        released.set()
        starting.join(20.0)
        assert "was released before it was enrolled" in str(failed[0])
        monkeypatch.undo()
        assert (
            trainer_of(world.fleet)
            .fit(FILES, batch_size=32, epochs=0.1, validate=DIGITS.test)
            .peers[0]
            .there
        )


def test_a_device_that_nobody_lets_begin_is_free_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch, alarms: Alarms
) -> None:
    """Bug: a coordinator killed before all were enrolled left devices busy for ever."""
    monkeypatch.setattr(Members, "begin", lambda _self, _steps: None)
    with memory_fleet("a", "b") as world:
        start(world.fleet)
        assert sorted(running(world.fleet)) == ["a", "b"]
        assert [alarm.seconds for alarm in alarms.made] == [QUICK.work + QUICK.request] * 2
        for alarm in alarms.made:
            assert alarm.is_set
            alarm.ring()
        assert running(world.fleet) == {}
        assert [world.fleet.greet(device).run for device in "ab"] == [None, None]
        assert not any(alarm.is_set for alarm in alarms.made)


def test_a_run_that_has_begun_does_not_end_by_itself(alarms: Alarms) -> None:
    with memory_fleet("a", "b") as world:
        run = start(world.fleet, epochs=50)
        assert not any(alarm.is_set for alarm in alarms.made)
        for alarm in alarms.made:
            alarm.ring()  # as if it had rung at that moment
        assert {status.run for status in running(world.fleet).values()} == {run}
        assert {status.phase for status in running(world.fleet).values()} != {"enrolled"}
        Members.of_run(world.fleet, run).release()


def test_neighbours_pass_the_begin_on_when_only_one_was_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bug: a coordinator killed while it let peers begin left the others enrolled for ever."""

    def one_only(members: Members, steps: int) -> None:
        members._fleet.ask("a", "begin", BeginGossip(members.run, steps), timeout_seconds=5.0)

    monkeypatch.setattr(Members, "begin", one_only)
    with memory_fleet("a", "b", "c", "d") as world:
        trainer = trainer_of(world.fleet)
        report = trainer.fit(FILES, batch_size=32, epochs=1, validate=DIGITS.test)
    for peer in report.peers:
        assert peer.status is not None
        assert peer.status.phase == "finished"
        assert peer.status.steps_here == peer.status.steps == 12


def test_a_device_that_is_out_of_sight_for_a_moment_is_asked_again_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bug: a link that was lost for three seconds just then ended the run before it began."""
    monkeypatch.setattr("edgeweave.gossip.members._LOOK_SECONDS", 0.02)
    with memory_fleet("a", "b") as world:
        world.fabric.kill("b")
        looked = threading.Event()
        sleep = world.fleet.clock.sleep

        def looking(seconds: float) -> None:
            looked.set()
            sleep(seconds)

        monkeypatch.setattr(world.fleet.clock, "sleep", looking)
        back = threading.Thread(target=lambda: (wait_for(looked), world.start("b")))
        back.start()
        run = start(world.fleet)
        back.join(20.0)
        assert {name: s.run for name, s in running(world.fleet).items()} == {"a": run, "b": run}
        Members.of_run(world.fleet, run).release()


def test_a_device_that_has_gone_for_good_is_told_and_the_others_are_free() -> None:
    with memory_fleet("a", "b", timeouts=replace(QUICK, connect=0.2)) as world:
        world.fabric.kill("b")
        with pytest.raises(FleetError, match="device 'b' does not answer"):
            start(world.fleet)
        assert running(world.fleet) == {}


@pytest.mark.parametrize("epochs", [0.0, -1.0, math.inf, math.nan])
def test_epochs_of_no_number_are_refused_before_anybody_is_asked(epochs: float) -> None:
    with memory_fleet("a", "b") as world:
        with pytest.raises(ConfigError, match=r"epochs are above 0 \(got "):
            start(world.fleet, epochs=epochs)
        assert running(world.fleet) == {}


def test_who_has_just_come_waits_until_all_peers_of_a_run_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bug: on a slow network a run was stopped, or fetched, on those devices seen by then."""
    with memory_fleet("a", "b", "c") as world:
        run = start(world.fleet, epochs=50)
        looks: list[list[str]] = []

        def seen_so_far(fleet: Fleet) -> dict[str, PeerStatus]:
            found = {name: each for name, each in running(fleet).items() if name in seen}
            looks.append(sorted(found))
            seen.append("abc"[len(seen) % 3])
            return found

        seen: list[str] = []
        monkeypatch.setattr("edgeweave.gossip.members.running", seen_so_far)
        monkeypatch.setattr("edgeweave.gossip.members._LOOK_SECONDS", 0.0)
        members = wait_members(world.fleet, None, seconds=20.0)
        assert members.run == run
        assert members.devices == ("a", "b", "c")
        assert looks[:4] == [[], ["a"], ["a", "b"], ["a", "b", "c"]]
        members.release()


@pytest.mark.slow
def test_peers_that_have_died_are_waited_for_a_few_seconds_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgeweave.gossip.members._LATE_SECONDS", 0.2)
    with memory_fleet("a", "b", "c") as world:
        start(world.fleet, epochs=50)
        world.fabric.kill("c")
        members = wait_members(world.fleet, None, seconds=60.0)
        assert members.devices == ("a", "b")
        members.release()
        with pytest.raises(FleetError, match="one gossip run to go on with"):
            wait_members(world.fleet, None, seconds=60.0)
