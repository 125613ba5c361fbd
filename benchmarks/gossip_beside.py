"""The same work by gossip over our agents and by all-reduce over Gloo, in processes, side by side.

LeNet on MNIST on four devices of 0.4 cores and 1.5, 2 and 3 times slower; batches of 256 each, the
same number of steps. Then the same again, and the slowest is killed.
"""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import edgeweave as ew
from benchmarks.children import Child
from benchmarks.data import DATA
from benchmarks.gossip_runs import TASKS
from edgeweave.data import load_source
from edgeweave.gossip import GossipTrainer, Members, mean_state, running
from edgeweave.train.metrics import accuracy
from edgeweave.train.models import lenet

__all__ = ["beside"]

_SPEEDS = {"p0": 0.4, "p1": 0.4 / 1.5, "p2": 0.2, "p3": 0.4 / 3}
_BATCH = 256
_TARGET = 90.0
_LOOK_SECONDS = 1.0


def beside(*, steps: int, seed: int) -> dict[str, float]:
    """Seconds to 90 %, accuracy, bytes of one device and step, and who is left after a death."""
    theirs, their_left = _all_reduce(steps, seed)
    ours, our_left = _gossip(steps)
    model_bytes = 4 * sum(p.numel() for p in lenet().parameters())
    to = {name: _seconds_to(curve) for name, curve in (("ours", ours), ("theirs", theirs))}
    return {
        "beside_speedup": to["theirs"] / to["ours"],
        "beside_accuracy": ours[-1][1],
        "beside_accuracy_all_reduce": theirs[-1][1],
        "beside_seconds": ours[-1][0],
        "beside_seconds_all_reduce": theirs[-1][0],
        "beside_bytes_ratio": 2.0 * model_bytes / (2 * 3 / 4 * model_bytes),
        "beside_left_after_death": float(our_left),
        "beside_left_after_death_all_reduce": float(their_left),
    }


def _seconds_to(curve: list[tuple[float, float]]) -> float:
    """When 90 % was first reached; the whole time where it was not."""
    return next((seconds for seconds, found in curve if found >= _TARGET), curve[-1][0])


def _all_reduce(steps: int, seed: int) -> tuple[list[tuple[float, float]], int]:
    curve = _ranks(steps, seed, dies_at=-1)[0]
    found = list(zip(curve["seconds"], curve["accuracies"], strict=True))
    after = _ranks(steps, seed, dies_at=5)
    return found, sum(each["done"] == steps for each in after)


def _ranks(steps: int, seed: int, *, dies_at: int) -> list[dict[str, Any]]:
    """What every rank that still answers says."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        children = [
            stack.enter_context(
                Child(
                    "benchmarks.gossip_rank",
                    {
                        "rank": rank,
                        "n": len(_SPEEDS),
                        "meeting": str(Path(folder) / "meeting"),
                        "speed": speed,
                        "batch_size": _BATCH,
                        "seed": seed,
                    },
                )
            )
            for rank, speed in enumerate(_SPEEDS.values())
        ]
        for child in children:
            child.answer()
        for child in children:
            child.tell({"steps": steps, "dies_at": dies_at})
        there = children if dies_at < 0 else children[:-1]
        return [child.answer() for child in there]


def _gossip(steps: int) -> tuple[list[tuple[float, float]], int]:
    data = load_source("mnist", path=DATA / "mnist", normalise=True)
    files = ew.DeviceFiles("mnist", DATA / "mnist", normalise=True, own=False)
    epochs = steps * _BATCH * len(_SPEEDS) / len(data.train)
    devices = [ew.Device(name, speed=speed) for name, speed in _SPEEDS.items()]
    with ew.Fleet.local(devices) as fleet:
        trainer = _trainer(fleet)
        run = trainer.start(files, batch_size=_BATCH, epochs=epochs, example=data.test)
        began, copies = fleet.clock.now(), []
        members = Members(fleet, run, fleet.devices)
        while not all(s.phase == "finished" for s in members.statuses().values()):
            fleet.clock.sleep(_LOOK_SECONDS)
            moment = fleet.clock.now() - began
            copies.append((moment, mean_state(list(members.models(fleet.devices).values()))))
        members.release()
        curve = [(moment, _accuracy(state)) for moment, state in copies]
        trainer = _trainer(fleet)
        trainer.start(files, batch_size=_BATCH, epochs=epochs, example=data.test)
        while running(fleet)["p3"].step < 5:
            fleet.clock.sleep(_LOOK_SECONDS / 4)
        os.kill(fleet.pid("p3"), signal.SIGKILL)
        report = trainer.collect(validate=data.test)
    return curve, sum(peer.there for peer in report.peers)


def _trainer(fleet: ew.Fleet) -> GossipTrainer:
    torch.manual_seed(0)
    return GossipTrainer(
        lenet(),
        functional.cross_entropy,
        optimizer=ew.Optimizer("SGD", lr=0.05, momentum=0.5),
        fleet=fleet,
        metrics={"accuracy": accuracy},
    )


def _accuracy(state: dict[str, torch.Tensor]) -> float:
    model = lenet()
    model.load_state_dict(state)
    inputs, targets = (each[:2000] for each in TASKS["mnist"].test())
    with torch.no_grad():
        return 100 * float((model(inputs).argmax(dim=1) == targets).float().mean())
