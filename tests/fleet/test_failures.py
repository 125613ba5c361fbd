"""Real processes that die, stop or misbehave in the middle of a run, and what is said of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zenoh
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.net import ZenohTransport, frame_key
from edgeweave.train.checkpoint import latest, load
from tests.device.stages.examples import frame
from tests.fleet.worlds import assert_gone, family_of, plan_of
from tests.train.interrupted import Interrupted
from tests.train.trained_models import MLP, TIED, n_units

pytestmark = [pytest.mark.wire, pytest.mark.timeout(180)]

DEVICES = ("a", "b", "c")
SHORT = ew.Timeouts(connect=10, request=5, work=60, frame=6, send=3, idle=60, stop=1)


def trainer_of(
    fleet: ew.Fleet, example: Any = MLP, devices: Any = DEVICES, *, recover: bool = False
) -> ew.PipelineTrainer:
    boundaries = (1, 3)[: len(devices) - 1]
    return ew.PipelineTrainer(
        example.model(),
        example.loss,
        optimizer=ew.Optimizer("SGD", lr=0.05, momentum=0.9),
        fleet=fleet,
        plan=plan_of(devices, boundaries, n_units(example)),
        n_microbatches=4,
        recover=recover,
    )


def fit(trainer: ew.PipelineTrainer, data: Any, **options: Any) -> ew.Report:
    options = {"batch_size": 12, "epochs": 100, "progress": False, **options}
    return trainer.fit(data, **options)


def middle_of_a_run(act: Callable[[], None]) -> Interrupted:
    return Interrupted(TensorDataset(*MLP.batch(96)), at=12, act=act)


# Real deaths in CI are those of tests/fleet/test_recovery_wire.py; names are checked in memory.
KILLED = [pytest.param(*at, marks=pytest.mark.slow) for at in (("a", 0), ("b", 1), ("c", 2))]


@pytest.mark.parametrize(("victim", "stage"), KILLED)
def test_a_killed_agent_is_named_with_its_stage_and_the_last_checkpoint_is_whole(
    tmp_path: Path, victim: str, stage: int
) -> None:
    def kill_and_fail() -> None:
        with ew.Fleet.local([ew.Device(name) for name in DEVICES], timeouts=SHORT) as fleet:
            for name in DEVICES:
                family.extend(family_of(fleet.pid(name)))
            data = middle_of_a_run(lambda: os.kill(fleet.pid(victim), signal.SIGKILL))
            fit(trainer_of(fleet), data, checkpoint=tmp_path, checkpoint_every=2)

    family: list[Any] = []
    with pytest.raises(ew.DeviceLost) as lost:
        kill_and_fail()
    assert (lost.value.device, lost.value.stage) == (victim, stage)
    assert str(lost.value).startswith(f"stage {stage} on {victim} was lost in round ")
    assert len(family) == 6
    assert_gone(family)
    whole = load(latest(tmp_path))
    assert whole.progress.step == len(whole.progress.step_losses) >= 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_stopped_agent_ends_the_run_and_is_named() -> None:
    family: list[Any] = []

    def stop_and_fail() -> None:
        with ew.Fleet.local([ew.Device("a")], timeouts=SHORT) as fleet:
            family.extend(family_of(fleet.pid("a")))
            data = middle_of_a_run(lambda: os.kill(fleet.pid("a"), signal.SIGSTOP))
            fit(trainer_of(fleet, devices=("a",)), data)

    with pytest.raises((ew.DeviceLost, ew.DeviceTimeout)) as ended:
        stop_and_fail()
    assert (ended.value.device, ended.value.stage) == ("a", 0)
    assert_gone(family)


# From here on the agents survive: one fleet for all.


@pytest.fixture(scope="module")
def fleet() -> Iterator[ew.Fleet]:
    with ew.Fleet.local([ew.Device("a"), ew.Device("b")], timeouts=SHORT) as made:
        yield made


def assert_usable(fleet: ew.Fleet) -> None:
    assert {fleet.greet(device).run for device in fleet.devices} == {None}


@pytest.mark.slow
def test_a_poisoned_input_names_device_and_stage_and_shows_the_remote_traceback(
    fleet: ew.Fleet,
) -> None:
    tokens, target = TIED.batch(48)
    tokens[40, 0] = 99  # beyond the embedding
    with pytest.raises(ew.DeviceFailed) as failed:
        fit(trainer_of(fleet, TIED, ("b", "a")), TensorDataset(tokens, target))
    error = failed.value
    assert (error.device, error.stage) == ("b", 0)
    assert str(error).startswith("stage 0 on b failed: IndexError: index out of range in self")
    assert "--- traceback on b ---\nTraceback (most recent call last):" in str(error)
    assert_usable(fleet)


def run_of(fleet: ew.Fleet) -> str:
    run = fleet.greet("b").run
    assert run is not None
    return run


def send_garbage(fleet: ew.Fleet, key: str) -> None:
    """Bytes that no Edgeweave process would send, from a process that has found the fleet."""
    assert isinstance(fleet.transport, ZenohTransport)
    config = zenoh.Config()
    config.insert_json5("connect/endpoints", f'["{fleet.transport.endpoints()[0]}"]')
    config.insert_json5("scouting/multicast/enabled", "false")
    with zenoh.open(config) as session:
        publisher = session.declare_publisher(key)
        while not publisher.matching_status.matching:
            pass
        publisher.put(b"\xff" * 1000, attachment=b"garbage")


def send_frame(fleet: ew.Fleet, **header: Any) -> None:
    key = frame_key(fleet.name, run_of(fleet), 0, 1, header["kind"])
    fleet.transport.send(key, frame(**header), device="b")


INTRUSIONS: dict[str, tuple[Callable[[ew.Fleet], None], str]] = {
    "malformed": (
        lambda fleet: send_garbage(fleet, frame_key(fleet.name, run_of(fleet), 0, 1, "activation")),
        "stage 1 on b refuses a frame: a piece begins with EW",
    ),
    "too large": (
        lambda fleet: send_frame(
            fleet, kind="activation", stage=0, tensors={"x": torch.ones(1 << 18)}, samples=3.0
        ),
        "stage 1 on b refuses a frame: frame 'activation' from 'pi-a': a payload here is at",
    ),
    "unexpected": (
        lambda fleet: send_frame(fleet, kind="pickle", stage=0, device="a"),
        "stage 1 on b expects no 'pickle' frame from stage 0 (a).",
    ),
}


@pytest.mark.parametrize(
    "what",
    [
        "malformed",
        pytest.param("too large", marks=pytest.mark.slow),
        pytest.param("unexpected", marks=pytest.mark.slow),
    ],
)
def test_a_frame_that_does_not_belong_ends_the_run_with_an_error_that_names_the_stage(
    fleet: ew.Fleet, what: str
) -> None:
    act, message = INTRUSIONS[what]
    with pytest.raises(ew.WireError) as refused:
        fit(trainer_of(fleet, devices=("a", "b")), middle_of_a_run(lambda: act(fleet)))
    assert str(refused.value).startswith(message)
    assert_usable(fleet)


@pytest.mark.slow
def test_a_second_run_on_a_busy_device_is_refused_and_the_first_one_goes_on(
    fleet: ew.Fleet,
) -> None:
    refused: list[ew.DeviceBusy] = []

    def second_run() -> None:
        with pytest.raises(ew.DeviceBusy) as busy:
            fit(trainer_of(fleet, devices=("b",)), TensorDataset(*MLP.batch(12)))
        refused.append(busy.value)

    data = Interrupted(TensorDataset(*MLP.batch(48)), at=3, act=second_run)
    report = fit(trainer_of(fleet, devices=("a", "b")), data, epochs=2)
    assert len(report.step_losses) == 8
    assert refused[0].device == "b"
    assert str(refused[0]).startswith("b already works for run-")
    assert_usable(fleet)
