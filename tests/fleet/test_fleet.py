"""Fleets of real agent processes: they start, are found, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.core.version import PROTOCOL_VERSION
from edgeweave.device import AgentSettings
from edgeweave.device.process import ProcessSettings, main
from edgeweave.net import NetSettings, ZenohTransport, control_key
from tests.fleet.worlds import (
    DEADLINE_SECONDS,
    assert_gone,
    family_of,
    memory_fleet,
    wait_until,
)

pytestmark = pytest.mark.wire


# Nothing is left behind.


class Leaving(Exception):
    """How a body may end."""


@pytest.mark.parametrize("ending", [None, Leaving, KeyboardInterrupt])
def test_a_local_fleet_leaves_no_process_and_no_directory(
    ending: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    processes: list[psutil.Process] = []

    def body() -> None:
        with ew.Fleet.local([ew.Device("pi-a", speed=0.5)]) as fleet:
            processes.extend(family_of(fleet.pid("pi-a")))
            assert fleet.devices == ("pi-a",)
            assert len(list(tmp_path.glob("edgeweave-*"))) == 1
            if ending is not None:
                raise ending

    with contextlib.nullcontext() if ending is None else pytest.raises(ending):
        body()
    assert len(processes) == 2  # the agent and its nursery
    assert_gone(processes)
    assert list(tmp_path.iterdir()) == []


COORDINATOR = """
import sys, time
import edgeweave as ew
with ew.Fleet.local([ew.Device("pi-a")]) as fleet:
    print(fleet.pid("pi-a"), flush=True)
    time.sleep(600)
"""


def test_the_agents_of_a_coordinator_that_was_killed_end_by_themselves(tmp_path: Path) -> None:
    coordinator = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # nobody is left to remove its directory
    )
    with coordinator:
        try:
            assert coordinator.stdout is not None
            family = family_of(int(coordinator.stdout.readline()))
            assert len(family) == 2
        finally:
            coordinator.kill()
        assert_gone(family)


def test_an_agent_that_cannot_start_shows_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("EDGEWEAVE_LOG", "NONSENSE")
    with pytest.raises(ew.FleetError) as failed, ew.Fleet.local([ew.Device("pi-a")]):
        pass
    assert str(failed.value).startswith("the agent of pi-a ended with exit code 1:\n")
    assert "Unknown level: 'NONSENSE'" in str(failed.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def fleet() -> Iterator[ew.Fleet]:
    devices = [ew.Device("pi-b", speed=0.5, memory="64MiB"), ew.Device("pi-a")]
    with ew.Fleet.local(devices) as made:
        yield made


def test_devices_keep_the_order_they_were_given_in(fleet: ew.Fleet) -> None:
    assert fleet.devices == ("pi-b", "pi-a")
    assert fleet.present() == ("pi-a", "pi-b")
    assert fleet.is_local


def test_a_device_tells_who_it_is(fleet: ew.Fleet) -> None:
    found = fleet.greet("pi-b")
    assert (found.hello.device, found.speed, found.run) == ("pi-b", 0.5, None)
    assert found.memory_limit_bytes == 64 << 20


def test_a_device_that_is_not_there_is_named(fleet: ew.Fleet) -> None:
    with pytest.raises(ew.FleetError) as unknown:
        fleet.pid("pi-z")
    assert str(unknown.value) == "no agent of this fleet is called 'pi-z' (there are: pi-b, pi-a)."
    with pytest.raises(ew.FleetError, match=r"^device 'pi-z' does not answer"):
        fleet.greet("pi-z")


def test_a_lan_fleet_finds_the_agents_that_are_there(fleet: ew.Fleet) -> None:
    assert isinstance(fleet.transport, ZenohTransport)
    net = NetSettings(fleet=fleet.name, connect=fleet.transport.endpoints())
    with ew.Fleet.lan(net, n_devices=2) as other:
        assert other.devices == ("pi-a", "pi-b")
        assert not other.is_local
        with pytest.raises(ew.FleetError, match=r"^pi-a is not a process of this machine's fleet"):
            other.pid("pi-a")
    with ew.Fleet.lan(net, devices=["pi-a"]) as other:
        assert other.devices == ("pi-a",)


def test_a_fleet_that_lacks_a_device_says_how_to_join(fleet: ew.Fleet) -> None:
    assert isinstance(fleet.transport, ZenohTransport)
    net = NetSettings(
        fleet=fleet.name,
        connect=fleet.transport.endpoints(),
        timeouts=ew.Timeouts(connect=1.0),
    )
    with pytest.raises(ew.FleetError) as absent, ew.Fleet.lan(net, devices=["pi-a", "pi-z"]):
        pass
    message = str(absent.value)
    assert message.startswith(
        f"the fleet {fleet.name!r} lacks pi-z after 1 s (there: pi-a, pi-b). On each device run: "
        f"edgeweave join --fleet {fleet.name} --connect tcp/127.0.0.1:"
    )


def test_a_port_in_use_is_an_error_of_ours() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        net = NetSettings(listen=(f"tcp/127.0.0.1:{taken.getsockname()[1]}",))
        with pytest.raises(ew.FleetError), ew.Fleet.lan(net):
            pass


def test_nobody_at_the_other_end_is_an_error_of_ours() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp/127.0.0.1:{free.getsockname()[1]}"
    net = NetSettings(connect=(endpoint,), timeouts=ew.Timeouts(connect=1.0))
    with pytest.raises(ew.FleetError), ew.Fleet.lan(net):
        pass


# Agents of their own: run as ``edgeweave join`` runs them.


class Joined:
    """An agent process that nobody owns but the test."""

    def __init__(self, directory: Path, net: NetSettings, *, prelude: str = "") -> None:
        settings = ProcessSettings(
            agent=AgentSettings("pi-x", fleet=net.fleet, speed=0.9),
            net=net,
            timeouts=net.timeouts,
        )
        path = directory / "pi-x.json"
        path.write_bytes(msgspec.json.encode(settings))
        script = f"{prelude}\nimport sys\nfrom edgeweave.device.process import main\n"
        script += "sys.exit(main(sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stderr=subprocess.PIPE, text=True
        )

    def end(self) -> tuple[int, str]:
        self.process.terminate()
        try:
            _, errors = self.process.communicate(timeout=DEADLINE_SECONDS)
        finally:
            self.process.kill()
        return self.process.returncode, errors


@contextlib.contextmanager
def meeting_point(fleet: str) -> Iterator[tuple[ZenohTransport, NetSettings]]:
    """A transport that stays, where agents and coordinators meet, and how to reach it."""
    with ZenohTransport("meeting-point", NetSettings(fleet=fleet)) as transport:
        yield transport, NetSettings(fleet=fleet, connect=transport.endpoints())


def wait_for_token(transport: ZenohTransport, fleet: str) -> None:
    alive = control_key(fleet, "pi-x", "alive")
    wait_until(lambda: bool(transport.alive(alive, timeout_seconds=5.0)), "the agent joined")


def test_an_agent_of_another_protocol_is_refused_with_who_has_to_upgrade(tmp_path: Path) -> None:
    newer = "import edgeweave.core.version as v; v.PROTOCOL_VERSION += 1; v.__version__ = '0.2.0'"
    with meeting_point("versions") as (transport, net):
        joined = Joined(tmp_path, net, prelude=newer)
        try:
            wait_for_token(transport, "versions")
            with pytest.raises(ew.VersionError) as refused, ew.Fleet.lan(net, devices=["pi-x"]):
                pass
        finally:
            code, errors = joined.end()
    message = str(refused.value)
    assert f"pi-x runs protocol {PROTOCOL_VERSION + 1}" in message
    assert message.endswith("pip install edgeweave==0.2.0.")
    assert (code, errors) == (0, "")


RUN = """
import json, sys
import torch, edgeweave as ew
from edgeweave.net import NetSettings
from torch.utils.data import TensorDataset

class Slow(TensorDataset):
    n = 0
    def __getitem__(self, index):
        self.n += 1
        if self.n == 40:
            print("training", flush=True)
        if self.n > 40:
            import time
            time.sleep(600)
        return super().__getitem__(index)

if __name__ == "__main__":
    net = NetSettings(fleet="left", connect=tuple(json.loads(sys.argv[1])))
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    data = Slow(torch.randn(64, 4), torch.randn(64, 1))
    with ew.Fleet.lan(net, devices=["pi-x"]) as fleet:
        trainer = ew.PipelineTrainer(model, torch.nn.functional.mse_loss, fleet=fleet,
                                     optimizer=ew.Optimizer("SGD", lr=0.1), n_microbatches=4)
        trainer.fit(data, batch_size=8, epochs=1, progress=False)
"""


@pytest.mark.slow
def test_a_joined_agent_outlives_its_coordinator_and_takes_a_new_run(tmp_path: Path) -> None:
    with meeting_point("left") as (transport, net):
        joined = Joined(tmp_path, net)
        coordinator = subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(list(net.connect))],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert coordinator.stdout is not None
            assert coordinator.stdout.readline() == "training\n"
            with ew.Fleet.lan(net, devices=["pi-x"]) as fleet:
                assert (fleet.greet("pi-x").run or "").startswith("run-")
                coordinator.kill()
                wait_until(lambda: fleet.greet("pi-x").run is None, "the agent is idle again")
                model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
                trainer = ew.PipelineTrainer(
                    model,
                    torch.nn.functional.mse_loss,
                    optimizer=ew.Optimizer("SGD", lr=0.1),
                    fleet=fleet,
                    n_microbatches=4,
                )
                data = TensorDataset(torch.randn(16, 4), torch.randn(16, 1))
                report = trainer.fit(data, batch_size=8, epochs=1, progress=False)
                assert len(report.step_losses) == 2
        finally:
            coordinator.kill()
            coordinator.communicate()
            family = family_of(joined.process.pid)
            code, errors = joined.end()
        assert_gone(family)
    assert (code, errors) == (0, "")
    assert transport.name == "meeting-point"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "edgeweave: usage: python -m edgeweave.device SETTINGS.json\n"),
        (["a", "b"], "edgeweave: usage: python -m edgeweave.device SETTINGS.json\n"),
        (["/nowhere"], "edgeweave: the agent's settings cannot be read ("),
    ],
)
def test_wrong_arguments_end_an_agent_with_an_exit_code(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == ew.ConfigError.exit_code
    assert capsys.readouterr().err.startswith(message)


def test_settings_with_an_unknown_field_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"agent": {"name": "x"}, "net": {}, "speed": 1}')
    assert main([str(path)]) == 2
    assert "unknown field `speed`" in capsys.readouterr().err


# What needs no process.


@pytest.mark.parametrize("devices", [[], [ew.Device("a"), ew.Device("a")]])
def test_a_local_fleet_has_devices_with_names_of_their_own(devices: list[ew.Device]) -> None:
    with pytest.raises(ew.ConfigError) as refused:
        ew.Fleet.local(devices)
    names = [device.name for device in devices]
    assert str(refused.value) == (
        f"a local fleet has at least one device and unique names (got {names}). Give each one "
        "a name of its own."
    )


@pytest.mark.parametrize(("given", "got"), [(2, "2"), (["a", "b"], "['a', 'b']"), ("ab", "'ab'")])
def test_a_local_fleet_is_told_its_devices(given: Any, got: str) -> None:
    with pytest.raises(ew.ConfigError, match=r"a list of ew\.Device") as refused:
        ew.Fleet.local(given)
    assert f"(got {got})" in str(refused.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ew.Device(""), "a device name has 1 to 128 characters"),
        (lambda: ew.Device("a/b"), "a device name holds no / * $ # ? or white space"),
        (lambda: ew.Device("run"), "'run' is not a device name"),
        (lambda: ew.Device("a", speed=0), "speed is a fraction of one core"),
        (lambda: ew.Device("a", speed=1.5), "speed is a fraction of one core"),
        (lambda: ew.Device("a", speed=float("nan")), "speed is a fraction of one core"),
        (lambda: ew.Device("a", memory="lots"), "a size is a number and a unit"),
    ],
)
def test_a_device_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ew.ConfigError) as refused:
        make()
    assert str(refused.value).startswith(message)


def test_memory_may_be_a_number_of_bytes() -> None:
    assert ew.Device("a", memory=1000).memory_bytes == 1000
    assert ew.Device("a").memory_bytes is None


def test_a_fleet_is_used_in_a_with_block() -> None:
    with pytest.raises(ew.FleetError) as closed:
        ew.Fleet.local([ew.Device("a")]).greet("a")
    assert str(closed.value) == "the fleet is not open. Use it in a with block."


def test_a_fleet_in_this_process_has_the_same_contract() -> None:
    lost: list[str] = []
    with memory_fleet("a", "b") as world:
        fleet = world.fleet
        assert (fleet.devices, fleet.present()) == (("a", "b"), ("a", "b"))
        watch = fleet.watch(lost.append)
        world.fabric.kill("b")
        wait_until(lambda: lost == ["b"], "the loss was told")
        assert fleet.present() == ("a",)
        with pytest.raises(ew.FleetError, match="does not answer"):
            fleet.greet("b")
        watch.close()


def test_for_each_asks_at_once_or_in_turn() -> None:
    with memory_fleet("a", "b") as world:
        for one_at_a_time in (True, False):
            found = world.fleet.for_each(
                ["b", "a"], lambda name: name.encode(), one_at_a_time=one_at_a_time
            )
            assert list(found.items()) == [("b", b"b"), ("a", b"a")]
