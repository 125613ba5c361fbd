"""The same work by gossip over our agents, by all-reduce over Gloo, and by hivemind's averaging.

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
from benchmarks.gossip_hivemind import EVERY
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
_PATIENCE_SECONDS = 600.0
_GLOO = "benchmarks.gossip_rank"
_OTHERS = {"all_reduce": _GLOO, "hivemind": "benchmarks.gossip_hivemind"}


def beside(*, steps: int, seed: int) -> dict[str, float]:
    """Seconds to 90 %, accuracy, bytes of one device and step, and who is left after a death."""
    ours, our_left = _gossip(steps)
    model_bytes = 4 * sum(p.numel() for p in lenet().parameters())
    n = len(_SPEEDS)
    bytes_a_step = {
        "all_reduce": 2 * (n - 1) / n * model_bytes,
        "hivemind": 2 * (n - 1) / n * model_bytes / EVERY,
    }
    found = {
        "beside_accuracy": ours[-1][1],
        "beside_seconds": ours[-1][0],
        "beside_seconds_to_90": _seconds_to(ours),
        "beside_left_after_death": float(our_left),
    }
    for other, module in _OTHERS.items():
        theirs, their_left, ranks = _others(module, steps, seed)
        found |= {
            f"beside_accuracy_{other}": theirs[-1][1],
            f"beside_seconds_{other}": theirs[-1][0],
            f"beside_seconds_to_90_{other}": _seconds_to(theirs),
            f"beside_left_after_death_{other}": float(their_left),
            f"beside_bytes_ratio_{other}": 2.0 * model_bytes / bytes_a_step[other],
        }
        if module != _GLOO:
            shares = [each["found_share"] for each in ranks]
            found["beside_groups_found_hivemind"] = sum(shares) / len(shares)
    return found


def _seconds_to(curve: list[tuple[float, float]]) -> float:
    """When 90 % was first reached; the whole time where it was not."""
    return next((seconds for seconds, found in curve if found >= _TARGET), curve[-1][0])


def _others(
    module: str, steps: int, seed: int
) -> tuple[list[tuple[float, float]], int, list[dict[str, Any]]]:
    """The curve of the first, how many finish when one dies, and what all said before that."""
    ranks = _ranks(module, steps, seed, dies_at=-1)
    curve = list(zip(ranks[0]["seconds"], ranks[0]["accuracies"], strict=True))
    after = _ranks(module, steps, seed, dies_at=5)
    return curve, sum(each["done"] == steps for each in after), ranks


def _ranks(module: str, steps: int, seed: int, *, dies_at: int) -> list[dict[str, Any]]:
    """What every rank that still answers says."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        children: list[Child] = []
        meeting: list[str] = [str(Path(folder) / "meeting")] if module == _GLOO else []
        for rank, speed in enumerate(_SPEEDS.values()):
            settings = {
                "rank": rank,
                "n": len(_SPEEDS),
                "meeting": meeting,
                "speed": speed,
                "batch_size": _BATCH,
                "seed": seed,
            }
            children.append(stack.enter_context(Child(module, settings)))
            if module != _GLOO:  # each is told where those before it are
                meeting = [*meeting, *children[-1].answer()["meeting"]]
        if module == _GLOO:
            for child in children:
                child.answer()
        for child in children:
            child.tell({"steps": steps, "dies_at": dies_at})
        there = children if dies_at < 0 else children[:-1]
        return [child.answer(seconds=_PATIENCE_SECONDS) for child in there]


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
