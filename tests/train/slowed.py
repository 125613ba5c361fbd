"""A run on three emulated devices, of which a script slows one to a third.

``python -m tests.train.slowed`` records what the coordinator learns of such a run, for the tests
that decide without any device, in ``tests/plan/slowed_run.json``.
"""

from __future__ import annotations

import msgspec
import torch
import torch.nn.functional as F
from torch import nn

import edgeweave as ew
from edgeweave.data.batches import Batch
from edgeweave.plan import partition
from edgeweave.program import capture
from edgeweave.train import measure_costs
from edgeweave.train.run import PipelineRun, RunSettings
from tests.plan.recorded import RECORDING, Recording

SLOWED = "b"
SGD = ew.Optimizer("SGD", lr=0.01)
N_MICROBATCHES = 4
MICROBATCH_SIZE = 16
BATCH_SIZE = N_MICROBATCHES * MICROBATCH_SIZE
_WIDTH, _LAYERS, _CLASSES = 128, 12, 10
_SPEED = 0.1
_SLOWED_AT, _FREED_AT, _N_STEPS = 120, 220, 300


def model() -> nn.Module:
    """Layers of equal work, so that every cut is as good as the next."""
    layers = [nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.ReLU()) for _ in range(_LAYERS)]
    return nn.Sequential(*layers, nn.Linear(_WIDTH, _CLASSES))


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target)


def samples(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, _WIDTH), torch.randint(_CLASSES, (n,))


def slowed_fleet(*, at_step: int, for_steps: int | None = None) -> ew.Fleet:
    """Slow devices: what they are paced to, and not the host, says how long anything takes."""
    chaos = ew.Chaos().slow(SLOWED, _SPEED / 3, at_step=at_step, for_steps=for_steps)
    return ew.Fleet.local([ew.Device(name, speed=_SPEED) for name in "abc"], chaos=chaos)


def record() -> Recording:
    """Train, and keep what every step told."""
    inputs, target = samples(BATCH_SIZE)
    captured = capture(model(), loss, inputs, target)
    batch = Batch({"input:0": inputs, "target:0": target}, BATCH_SIZE)
    settings = RunSettings(SGD, MICROBATCH_SIZE)
    with slowed_fleet(at_step=_SLOWED_AT, for_steps=_FREED_AT - _SLOWED_AT) as fleet:
        costs = measure_costs(fleet, captured, microbatch_size=MICROBATCH_SIZE, optimizer=SGD)
        plan = partition(costs, n_microbatches=N_MICROBATCHES)
        with PipelineRun(fleet, captured.program, captured.state, plan, settings) as run:
            told = [run.train_step(step, batch, {}).timings for step in range(_N_STEPS)]
    seconds = {
        device: tuple(round(each[device].seconds if each else 0.0, 6) for each in told)
        for device in plan.devices
    }
    return Recording(SLOWED, _SLOWED_AT, _FREED_AT, plan, costs, seconds)


if __name__ == "__main__":
    RECORDING.write_bytes(msgspec.json.encode(record()))
