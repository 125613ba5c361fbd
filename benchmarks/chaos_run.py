"""One run of `benchmarks/chaos.py`: ``python -m benchmarks.chaos_run '{"seed": 7}'``.

A fleet, a plan and a script of trouble drawn from the seed, real processes, some forty steps; says
in one line of JSON what came of it. Without a seed nothing happens to one device, as the reference.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import edgeweave as ew
from benchmarks.children import reply
from edgeweave.fleet.chaos import Restart
from edgeweave.plan import Plan, Replication, Stage
from edgeweave.program import capture

__all__ = ["Trouble", "drawn", "main"]

_BATCH_SIZE, _N_MICROBATCHES, _EPOCHS, _N_SAMPLES = 16, 4, 4, 160
_N_STEPS = _EPOCHS * _N_SAMPLES // _BATCH_SIZE
_WIDTH, _LAYERS, _CLASSES = 24, 5, 4
_SPEEDS = (0.3, 0.5, 1.0)
_SLOW_SECONDS = 0.3
_THREAD_SECONDS = 3.0
_COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a seed stands for."""

    speeds: dict[str, float]
    boundaries: tuple[int, ...]
    schedule: str
    replication: Replication
    chaos: ew.Chaos
    killed: frozenset[str]
    """For good, or to be started again."""

    @property
    def has_returns(self) -> bool:
        """Whether somebody is started again."""
        return any(isinstance(event.act, Restart) for event in self.chaos.events)


def drawn(seed: int, n_units: int) -> Trouble:
    """The same for the same seed, whatever the machine."""
    rng = random.Random(seed)
    names = [f"device-{letter}" for letter in "abcde"[: rng.randint(3, 5)]]
    boundaries = tuple(sorted(rng.sample(range(1, n_units), len(names) - 1)))
    chaos, killed = ew.Chaos(), set[str]()
    for _ in range(rng.randint(1, 4)):
        step = rng.randrange(_N_STEPS)
        act = rng.choice(("kill", "kill two", "restart", "stop", "slow", "link down", "rate"))
        one, other = rng.sample(names, 2)
        source, target = rng.sample([*names, _COORDINATOR], 2)
        if act in ("kill", "kill two"):
            victims = [one] if act == "kill" else [one, other]
            killed.update(victims)
            for victim in victims:
                chaos = chaos.kill(victim, at_step=step)
        elif act == "restart":
            killed.add(one)
            chaos = chaos.restart(one, at_step=step, for_seconds=rng.uniform(0.1, 2.0))
        elif act == "stop":
            chaos = chaos.stop(one, at_step=step, for_seconds=rng.uniform(0.2, 4.0))
        elif act == "slow":
            chaos = chaos.slow(one, rng.uniform(0.1, 1.0), at_step=step)
        elif act == "link down":
            seconds = rng.uniform(0.1, 4.0)
            chaos = chaos.link_down(source, target, both=True, at_step=step, for_seconds=seconds)
        else:
            chaos = chaos.rate(source, target, rng.uniform(2e5, 2e6), both=True, at_step=step)
    return Trouble(
        {name: rng.choice(_SPEEDS) for name in names},
        boundaries,
        rng.choice(("1f1b", "gpipe")),
        Replication(chain_every=rng.randint(1, 6), whole_every=rng.randint(2, 12)),
        chaos,
        frozenset(killed),
    )


def main(arguments: Sequence[str]) -> int:
    """Run one, and say what came of it."""
    seed: int | None = json.loads(arguments[0])["seed"]
    torch.set_num_threads(1)
    n_units = _n_units()
    trouble = _undisturbed() if seed is None else drawn(seed, n_units)
    # What capturing leaves (torch's own) is there before.
    sockets, threads, files = _sockets(), set(threading.enumerate()), _files()
    told: dict[str, Any] = {"n_steps": _N_STEPS, "left": sorted(_left(trouble))}
    try:
        report = _trained(trouble, n_units)
    except ew.EdgeweaveError as error:
        told |= {"error": type(error).__name__, "message": str(error)}
    else:
        told |= {
            "losses": [loss.hex() for loss in report.step_losses],
            "recoveries": [recovery.line() for recovery in report.recoveries],
            "returned": sorted(
                {device for recovery in report.recoveries for device in recovery.lost}
                & set(report.plan.devices)
            ),
        }
    ours = _left_running(threads)
    told |= {
        "sockets": max(_sockets() - sockets, 0),
        "threads": ours,
        "files": sorted(_files() - files),
        "processes": len(psutil.Process().children(recursive=True)),
    }
    reply(told)
    return 0


def _left_running(before: set[threading.Thread]) -> list[str]:
    """Threads that do not end within some seconds; Zenoh's end after what they served."""
    deadline = time.monotonic() + _THREAD_SECONDS
    for thread in set(threading.enumerate()) - before:
        thread.join(max(deadline - time.monotonic(), 0.0))
    return [each.name for each in threading.enumerate() if each not in before]


def _undisturbed() -> Trouble:
    return Trouble({"alone": 1.0}, (), "1f1b", Replication(), ew.Chaos(), frozenset())


def _left(trouble: Trouble) -> set[str]:
    return trouble.speeds.keys() - trouble.killed


def _sockets() -> int:
    return len(psutil.Process().net_connections("all"))


def _files() -> set[str]:
    """In the temporary folder, which this process has for itself."""
    return {path.name for path in Path(tempfile.gettempdir()).iterdir()}


def _model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.Tanh()) for _ in range(_LAYERS)]
    return nn.Sequential(*layers, nn.Linear(_WIDTH, _CLASSES))


def _data(n_samples: int = _N_SAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n_samples, _WIDTH, generator=generator)
    return TensorDataset(inputs, torch.randint(_CLASSES, (n_samples,), generator=generator))


def _n_units() -> int:
    return len(capture(_model(), F.cross_entropy, *_data(4).tensors).program.unit_numbers)


def _trained(trouble: Trouble, n_units: int) -> ew.Report:
    bounds = (0, *trouble.boundaries, n_units)
    stages = tuple(
        Stage(name, first, stop, 0.0, 0.0, 0)
        for name, first, stop in zip(trouble.speeds, bounds[:-1], bounds[1:], strict=True)
    )
    plan = Plan(
        stages,
        trouble.schedule,
        _N_MICROBATCHES,
        0,
        0.0,
        0.0,
        replication=trouble.replication,
    )
    devices = [ew.Device(name, speed=speed) for name, speed in trouble.speeds.items()]
    with ew.Fleet.local(devices, chaos=trouble.chaos) as fleet:
        trainer = ew.PipelineTrainer(
            _model(),
            F.cross_entropy,
            optimizer=ew.Optimizer("AdamW", lr=0.01),
            fleet=fleet,
            plan=plan,
            n_microbatches=_N_MICROBATCHES,
            seed=0,
        )
        data: Dataset[Any] = _Slow(_data()) if trouble.has_returns else _data()
        return trainer.fit(data, batch_size=_BATCH_SIZE, epochs=_EPOCHS, progress=False)


class _Slow(Dataset[Any]):
    """The same samples, read so slowly that who is started again comes before the last of them."""

    def __init__(self, data: TensorDataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: torch.Tensor) -> Any:
        time.sleep(_SLOW_SECONDS)
        return self._data[indices]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
