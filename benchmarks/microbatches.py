"""The microbatches that the planner chooses, against 16.

For both, the devices are measured and a plan is made; then they take turns on one emulated fleet,
and full steps are compared.

    chosen_over_16_...      median step with 16 microbatches / with those chosen
    chosen_predicted_...    predicted / measured step, with those chosen
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

import edgeweave as ew
from benchmarks.harness import Result
from benchmarks.latency.blocks import Logits
from edgeweave.fleet import FleetDescription, load_preset
from edgeweave.train.models import digits_cnn, mlp

__all__ = ["run"]

_SEED = 0
_UNEQUAL = FleetDescription(
    (ew.Device("pi-a", 0.3), ew.Device("pi-b", 0.3), ew.Device("old-laptop", 0.15))
)
_BEFORE = 16
_TURNS, _STEPS = 3, 8


@dataclass(frozen=True, slots=True)
class _Case:
    fleet: FleetDescription
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_size: int


def _mobilenet() -> nn.Module:
    config = MobileNetV2Config(image_size=32)
    return Logits(MobileNetV2ForImageClassification(config))


_CASES: Mapping[str, _Case] = {
    "digits_cnn": _Case(_UNEQUAL, digits_cnn, (1, 8, 8), 512),
    "mobilenet": _Case(_UNEQUAL, _mobilenet, (3, 32, 32), 128),
    "mlp": _Case(
        load_preset("raspberry-pi-wifi"), lambda: mlp(64, 10, hidden=[256, 256, 256]), (64,), 512
    ),
}


def run(*, quick: bool) -> Result:
    """Measure every case; ``quick`` the first one, in one turn."""
    torch.set_num_threads(1)
    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    settings: dict[str, object] = {"seed": _SEED, "before": _BEFORE}
    lines = []
    for name in list(_CASES)[: 1 if quick else None]:
        before, chosen = _measured(_CASES[name], 1 if quick else _TURNS)
        metrics[f"chosen_over_16_{name}"] = before.step / chosen.step
        metrics[f"chosen_predicted_{name}"] = chosen.plan.step_seconds / chosen.step
        for label, side in (("16", before), ("chosen", chosen)):
            samples[f"{name}, {label}"] = side.steps
            settings[f"{name}, {label}"] = side.document()
            lines.append(f"{name:>12} {label:>7}: {side.line()}")
    lines += [f"{key:>28} = {value:.3f}" for key, value in metrics.items()]
    return Result(
        name="microbatches",
        quick=quick,
        metrics=metrics,
        lines=tuple(lines),
        samples=samples,
        settings=settings,
    )


class _Side:
    """One way to cut the batch: its trainer, and the steps it took so far."""

    def __init__(self, case: _Case, fleet: ew.Fleet, n_microbatches: int | None) -> None:
        torch.manual_seed(_SEED)
        self._batch_size = case.batch_size
        self._trainer = ew.PipelineTrainer(
            case.build(),
            cross_entropy,
            optimizer=ew.Optimizer("SGD", lr=0.01, momentum=0.9),
            fleet=fleet,
            n_microbatches=n_microbatches,
        )
        started = time.monotonic()
        self.plan = self._trainer.prepare(_data(case, 1), batch_size=case.batch_size)
        self.planning_seconds = time.monotonic() - started
        self.steps: list[float] = []

    @property
    def step(self) -> float:
        """The median."""
        return median(self.steps)

    def train(self, data: TensorDataset) -> None:
        """One turn. Its first step follows no other's backward, and does not count."""
        report = self._trainer.fit(data, batch_size=self._batch_size, epochs=1, progress=False)
        self.steps += report.step_seconds[1:]

    def document(self) -> dict[str, object]:
        return {
            "n_microbatches": self.plan.n_microbatches,
            "devices": list(self.plan.devices),
            "predicted_seconds": self.plan.step_seconds,
            "planning_seconds": self.planning_seconds,
        }

    def line(self) -> str:
        return (
            f"{self.plan.n_microbatches} microbatches on {len(self.plan.stages)} devices, step "
            f"{self.step:.3f} s, predicted {self.plan.step_seconds:.3f} s, measured and planned in "
            f"{self.planning_seconds:.1f} s"
        )


def _measured(case: _Case, turns: int) -> tuple[_Side, _Side]:
    """With 16 and with the planner's choice, in turn."""
    with ew.Fleet.described(case.fleet) as fleet:
        sides = (_Side(case, fleet, _BEFORE), _Side(case, fleet, None))
        data = _data(case, 1 + _STEPS)
        for _ in range(turns):
            for side in sides:
                side.train(data)
    return sides


def _data(case: _Case, n_steps: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(_SEED)
    n = n_steps * case.batch_size
    inputs = torch.randn(n, *case.shape, generator=generator)
    return TensorDataset(inputs, torch.randint(2, (n,), generator=generator))
