"""The vigil over real runs: stopped processes, slow ones, and threads that never come back."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.core.clock import SystemClock
from edgeweave.core.errors import EdgeweaveError, FleetError, WireError
from edgeweave.device import Pulse, Relay, decode_message, encode_message
from edgeweave.net import NetSettings, control_key
from edgeweave.program import StageProgram
from edgeweave.train.failures.deadlines import Deadlines
from edgeweave.train.failures.suspicion import Ask, Verdict
from edgeweave.train.failures.vigil import Vigil
from tests.fleet.worlds import MemoryFleet, memory_fleet, plan_of, wait_until
from tests.train.interrupted import Interrupted
from tests.train.trained_models import MLP, n_units

DEVICES = ("a", "b", "c")
PATIENT = ew.Timeouts(stop=1.0)


def fit(fleet: ew.Fleet, data: Any, **options: Any) -> ew.Report:
    trainer = ew.PipelineTrainer(
        MLP.model(),
        MLP.loss,
        optimizer=ew.Optimizer("SGD", lr=0.05),
        fleet=fleet,
        plan=plan_of(DEVICES, (1, 3), n_units(MLP)),
        n_microbatches=4,
        recover=False,
    )
    return trainer.fit(data, batch_size=12, progress=False, **options)


@pytest.fixture
def patient_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of stopped devices stay for a minute: nothing but silence tells."""
    patient = functools.partial(NetSettings, lease_seconds=60.0)
    monkeypatch.setattr("edgeweave.fleet.fleet.NetSettings", patient)
    monkeypatch.setattr("edgeweave.fleet.local.NetSettings", patient)


@pytest.mark.wire
@pytest.mark.parametrize(
    ("victim", "stage"),
    [("b", 1), *(pytest.param(*at, marks=pytest.mark.slow) for at in (("a", 0), ("c", 2)))],
)
@pytest.mark.usefixtures("patient_lease")
def test_a_device_that_stands_still_is_lost_by_its_silence(victim: str, stage: int) -> None:
    """Neither its lease of 60 s nor ``Timeouts.frame`` of 120 s is over."""
    chaos = ew.Chaos().stop(victim, at_step=20)

    def stop_and_fail() -> None:
        devices = [ew.Device(name) for name in DEVICES]
        with ew.Fleet.local(devices, chaos=chaos, timeouts=PATIENT) as fleet:
            fit(fleet, TensorDataset(*MLP.batch(96)), epochs=100)

    with pytest.raises(ew.DeviceLost) as lost:
        stop_and_fail()
    assert (lost.value.device, lost.value.stage) == (victim, stage)
    assert str(lost.value).startswith(f"stage {stage} on {victim} was lost in round ")
    assert "pulses for " in str(lost.value)
    assert "while the result of microbatch " in str(lost.value)


@pytest.mark.slow
@pytest.mark.wire
def test_a_device_that_is_slowed_to_a_third_ends_its_run() -> None:
    chaos = ew.Chaos().slow("b", 0.1, at_step=8)
    devices = [ew.Device(name, speed=0.3) for name in DEVICES]
    with ew.Fleet.local(devices, chaos=chaos) as fleet:
        report = fit(fleet, TensorDataset(*MLP.batch(96)), epochs=3)
    assert len(report.step_losses) == 24
    assert [record.what for record in report.chaos] == ["slow b to 0.1"]


@pytest.fixture
def world() -> Iterator[MemoryFleet]:
    with memory_fleet(*DEVICES, timeouts=ew.Timeouts(stop=1.0)) as made:
        yield made


def test_a_stage_whose_thread_never_comes_back_is_named(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls, blocked = StageProgram.forward, [0], threading.Event()

    def block(self: StageProgram, *arguments: Any, **options: Any) -> Any:
        if threading.current_thread().name == "edgeweave-stage-1":
            calls[0] += 1
            if calls[0] == 30:
                blocked.wait()
        return forward(self, *arguments, **options)

    monkeypatch.setattr(StageProgram, "forward", block)
    try:
        with pytest.raises(ew.DeviceLost) as lost:
            fit(world.fleet, TensorDataset(*MLP.batch(96)), epochs=100)
    finally:
        blocked.set()
    assert (lost.value.device, lost.value.stage) == ("b", 1)
    assert "(it computes the forward of microbatch 1 for " in str(lost.value)
    wait_until(lambda: world.fleet.greet("b").run is None, "its stage ends when it can")


def test_agents_tell_what_their_stages_do_and_ask_each_other(world: MemoryFleet) -> None:
    def ask(device: str, verb: str = "pulse", payload: bytes = b"") -> Pulse:
        key = control_key("default", device, verb)
        transport = world.fleet.transport
        answer = transport.request(key, payload, device=device, timeout_seconds=5.0)
        return decode_message(answer, Pulse)

    seen: dict[str, Pulse] = {}

    def look() -> None:
        seen["direct"] = ask("b")
        seen["over a"] = ask("a", "relay", encode_message(Relay("b", 5.0)))

    assert ask("b") == Pulse(None)
    fit(world.fleet, Interrupted(TensorDataset(*MLP.batch(96)), at=6, act=look), epochs=1)
    for pulse in seen.values():
        assert pulse.run is not None
        assert pulse.doing in ("idles", "waits", "works", "computes")
        assert pulse.seconds >= 0
    with pytest.raises(WireError, match=r"^a pulse is waited for up to 120 s \(asked for 1000"):
        ask("a", "relay", encode_message(Relay("b", 1e3)))


# The vigil itself, on devices made up by the test.


class Devices:
    """Answer at once, but for those that are silent."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.verdict: Verdict | None = None
        self.errors: list[EdgeweaveError] = []
        self.ended = threading.Event()

    def ask(self, ask: Ask) -> Pulse:
        if ask.device in self.silent:
            raise FleetError("no answer")
        return Pulse("run-1", doing="waits")

    def condemn(self, verdict: Verdict, _what: str) -> None:
        self.verdict = verdict
        self.ended.set()

    def fail(self, error: EdgeweaveError) -> None:
        self.errors.append(error)
        self.ended.set()


def vigil_of(devices: Devices, slack_seconds: float) -> Vigil:
    deadlines = Deadlines(slack_seconds, slack_seconds).heard("train next", 0.0)
    return Vigil(
        DEVICES,
        devices.ask,
        SystemClock(),
        deadlines,
        on_verdict=devices.condemn,
        on_error=devices.fail,
    )


def test_a_result_that_comes_ends_the_suspicion_and_teaches_patience() -> None:
    with vigil_of(Devices(), slack_seconds=60.0) as vigil:
        vigil.round_begins("train")
        before = vigil.statistics().deadlines.suspect_seconds("train next")
        with vigil.waiting("next", "the result"):
            wait_until(lambda: vigil.statistics().n_suspicions == 1, "suspects")
            wait_until(lambda: vigil.statistics().n_pulses >= 6, "asks")
        told = vigil.statistics()
        assert told.n_false == 1
        assert told.deadlines.suspect_seconds("train next") > before


def test_whoever_is_silent_through_a_suspicion_is_condemned_once() -> None:
    devices = Devices()
    devices.silent.add("c")
    with vigil_of(devices, slack_seconds=0.5) as vigil:
        vigil.round_begins("train")
        with vigil.waiting("next", "the result"):
            assert devices.ended.wait(30.0)
    assert devices.verdict is not None
    assert (devices.verdict.device, devices.verdict.why) == ("c", "silent")
    assert devices.errors == []


def test_a_vigil_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices()
    monkeypatch.setattr(devices, "ask", lambda _ask: 1 / 0)
    with vigil_of(devices, slack_seconds=0.5) as vigil:
        vigil.round_begins("train")
        with vigil.waiting("next", "the result"):
            assert devices.ended.wait(30.0)
    assert str(devices.errors[0]).startswith("the vigil failed: ZeroDivisionError: ")


def test_a_vigil_that_never_watched_ends_at_once() -> None:
    with vigil_of(Devices(), slack_seconds=60.0) as vigil:
        pass
    assert vigil.statistics().n_pulses == 0
