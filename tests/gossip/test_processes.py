"""Peers in processes of their own: the coordinator is killed, a peer is killed and returns."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from edgeweave.cli import main
from edgeweave.core.errors import FleetError
from edgeweave.core.timeouts import Timeouts
from edgeweave.fleet import Fleet
from edgeweave.gossip import running
from edgeweave.net import NetSettings
from edgeweave.net.locators import Locator, unused_port

pytestmark = [pytest.mark.slow, pytest.mark.wire, pytest.mark.timeout(240)]

DEVICES = ("pi-a", "pi-b", "pi-c", "pi-d")

JOB = """
[model]
factory = "mlp"
args = {n_inputs = 64, n_classes = 10, hidden = [24]}

[data]
source = "digits"

[metrics]
accuracy = "accuracy"

[optimizer]
name = "SGD"
lr = 0.1

[train]
batch_size = 8
epochs = 40

[gossip]
balance = false

[fleet]
kind = "lan"
devices = [{name = "pi-a"}, {name = "pi-b"}, {name = "pi-c"}, {name = "pi-d"}]
"""


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Ask again and again, and leave the machine to the others in between."""
    deadline = time.monotonic() + 90.0
    while not true():
        assert time.monotonic() < deadline, f"not within 90 s: {what}"
        time.sleep(0.1)


class Ring:
    """Four agents, and commands that find them by their endpoints."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.job = folder / "job.toml"
        self.job.write_text(JOB)
        self._folder = folder
        any_port = Locator.parse("tcp/127.0.0.1:0")
        self.endpoints = {name: f"tcp/127.0.0.1:{unused_port(any_port)}" for name in DEVICES}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in DEVICES:
            self.start(name)

    def start(self, name: str) -> None:
        others = [point for other, point in self.endpoints.items() if other != name]
        options = [f"--connect={point}" for point in others if self.processes] or []
        own = ["--name", name, "--listen", self.endpoints[name], "--speed", "0.2"]
        self.processes[name] = self.run("join", *own, *options[:1])

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._folder / f"{arguments[0]}.log").open("ab"))
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeweave", *arguments], stdout=log, stderr=log
        )
        self._stack.callback(process.wait, 30)
        self._stack.callback(process.kill)
        return process

    def command(self, *arguments: str, tries: int = 1) -> dict[str, Any]:
        """A command that knows one endpoint, with a session of its own. It runs in this process,
        as a sixth one that imports torch would tell nothing more. On a machine with too much to do
        it may not know within a second that a device answers: then it is tried again.
        """
        for _ in range(tries):
            with redirect_stdout(StringIO()) as told:
                code = main([*arguments, "--json"])
            if code != FleetError.exit_code:
                break
        document: dict[str, Any] = json.loads(told.getvalue())
        assert code == 0, document
        return document

    @contextmanager
    def onlooker(self) -> Iterator[Fleet]:
        """Somebody who has no part in the run, and sees it over one of the devices."""
        net = NetSettings(connect=(self.endpoints["pi-c"],), timeouts=Timeouts(connect=90.0))
        with Fleet.lan(net, n_devices=0) as fleet:
            yield fleet


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    with ExitStack() as stack:
        yield Ring(tmp_path, stack)


def test_the_coordinator_is_killed_and_a_peer_is_killed_and_returns(
    ring: Ring, tmp_path: Path
) -> None:
    with ring.onlooker() as fleet:
        wait_until(lambda: len(fleet.present()) == 4, "four devices")
        coordinator = ring.run("gossip", str(ring.job), "--connect", ring.endpoints["pi-a"])
        wait_until(lambda: len(running(fleet)) == 4, "four peers")
        wait_until(lambda: min(s.step for s in running(fleet).values()) > 0, "steps")
        coordinator.send_signal(signal.SIGKILL)
        coordinator.wait(30)

        ring.processes["pi-b"].kill()
        ring.processes["pi-b"].wait(30)
        wait_until(lambda: sorted(running(fleet)) == ["pi-a", "pi-c", "pi-d"], "pi-b is gone")
        without = running(fleet)
        assert all(status.phase == "works" for status in without.values())
        wait_until(
            lambda: all(s.step > without[n].step + 10 for n, s in running(fleet).items()), "steps"
        )
        ring.start("pi-b")
        wait_until(lambda: "pi-b" in running(fleet), "pi-b has the run again")
        shown = ring.command("status", "--connect", ring.endpoints["pi-b"])
        assert sorted(shown["gossip"]) == sorted(DEVICES)

        saved = tmp_path / "mean.safetensors"
        near = ["--connect", ring.endpoints["pi-d"]]
        found = ring.command("gossip", str(ring.job), "--attach", *near, "--save", str(saved))
        assert running(fleet) == {}
    report = found["report"]
    assert report["evaluation"]["metrics"]["accuracy"] > 0.9
    assert saved.exists()
    peers = {peer["device"]: peer for peer in report["peers"]}
    assert sorted(peers) == sorted(DEVICES)
    for peer in peers.values():
        assert peer["there"]
        assert peer["status"]["step"] == peer["status"]["steps"]
        assert peer["evaluation"]["metrics"]["accuracy"] > 0.85
    assert 0 < peers["pi-b"]["status"]["steps_here"] < peers["pi-b"]["status"]["steps"]


def test_a_device_leaves_in_order_and_the_run_is_stopped_from_anywhere(
    ring: Ring,
) -> None:
    with ring.onlooker() as fleet:
        wait_until(lambda: len(fleet.present()) == 4, "four devices")
        near = ["--connect", ring.endpoints["pi-a"]]
        begun = ring.command(
            "gossip", str(ring.job), "--detach", "--set", "train.epochs=4000", *near, tries=4
        )
        wait_until(lambda: len(running(fleet)) == 4, "four peers")
        wait_until(lambda: min(s.step for s in running(fleet).values()) > 0, "steps")
        ring.processes["pi-b"].send_signal(signal.SIGTERM)
        assert ring.processes["pi-b"].wait(30) == 0
        wait_until(lambda: sorted(running(fleet)) == ["pi-a", "pi-c", "pi-d"], "pi-b is gone")
        assert {status.edges_lost for status in running(fleet).values()} == {0}

        far = ["--connect", ring.endpoints["pi-d"]]
        stopped = ring.command("gossip", "--stop", begun["run"], *far)
        assert sorted(stopped["stopped"]) == ["pi-a", "pi-c", "pi-d"]
        kept = running(fleet)
        assert {status.phase for status in kept.values()} == {"finished"}
        found = ring.command("gossip", str(ring.job), "--attach", *far)
    steps = {peer["device"]: peer["status"]["step"] for peer in found["report"]["peers"]}
    assert steps == {name: status.step for name, status in kept.items()}
    assert found["report"]["evaluation"]["n_samples"] == 359


@pytest.mark.parametrize("beside", [["job.toml"], ["--detach"], ["--attach"]])
def test_stopping_does_nothing_else(beside: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gossip", "--stop", "gossip-1", *beside]) == 2
    assert "stops a run and does nothing else" in capsys.readouterr().err


def test_gossip_needs_a_job_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gossip"]) == 2
    assert "gossip needs a job" in capsys.readouterr().err


def test_an_emulated_fleet_refuses_to_be_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB.replace('kind = "lan"', 'kind = "local"'))
    assert main(["gossip", str(path), "--detach"]) == 2
    assert "emulated devices end with the command" in capsys.readouterr().err
