"""The planner's microbatches against 16: ``python -m benchmarks.microbatches mlp@equal-lan``.

For both the devices are measured and a plan is made; then they take turns on one fleet, and medians
of full steps are compared. Each line has the predicted step too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

import edgeweave as ew
from edgeweave.fleet import FleetDescription, load_preset
from edgeweave.train.models import digits_cnn, mlp

__all__ = ["main"]

_SPEEDS = FleetDescription(
    (ew.Device("pi-a", 0.3), ew.Device("pi-b", 0.3), ew.Device("old-laptop", 0.15))
)
_BEFORE = 16


@dataclass(frozen=True, slots=True)
class _Case:
    fleet: FleetDescription
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_size: int


class _MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = MobileNetV2ForImageClassification(MobileNetV2Config(image_size=32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(images).logits
        return logits


def _case(name: str) -> _Case:
    model, _, preset = name.partition("@")
    fleet = load_preset(preset) if preset else _SPEEDS
    build, shape, batch_size = {
        "digits-cnn": (digits_cnn, (1, 8, 8), 512),
        "mlp": (lambda: mlp(64, 10, hidden=[256, 256, 256]), (64,), 512),
        "mobilenet": (_MobileNet, (3, 32, 32), 128),
    }[model]
    return _Case(fleet, build, shape, batch_size)


def _data(case: _Case, n_steps: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    n = n_steps * case.batch_size
    inputs = torch.randn(n, *case.shape, generator=generator)
    return TensorDataset(inputs, torch.randint(2, (n,), generator=generator))


def main(name: str, *, turns: int = 3, steps: int = 8) -> None:
    """Measure one case, such as ``digits-cnn`` or ``mlp@raspberry-pi-wifi``, and print it."""
    torch.set_num_threads(1)
    case = _case(name)
    with ew.Fleet.described(case.fleet) as fleet:
        trainers: dict[str, ew.PipelineTrainer] = {}
        for label, count in (("16", _BEFORE), ("chosen", None)):
            torch.manual_seed(0)
            trainers[label] = ew.PipelineTrainer(
                case.build(),
                cross_entropy,
                optimizer=ew.Optimizer("SGD", lr=0.01, momentum=0.9),
                fleet=fleet,
                n_microbatches=count,
            )
            started = time.monotonic()
            trainers[label].prepare(_data(case, 1), batch_size=case.batch_size)
            print(f"{label:>8}: measured and planned in {time.monotonic() - started:.1f} s")
        for each in trainers["chosen"].tried:
            print(f"          {each.n_microbatches} of {each.microbatch_size}: {each.step_seconds}")
        data = _data(case, 1 + steps)
        taken: dict[str, list[float]] = {label: [] for label in trainers}
        for _ in range(turns):
            for label, trainer in trainers.items():
                report = trainer.fit(data, batch_size=case.batch_size, epochs=1, progress=False)
                taken[label] += report.step_seconds[1:]  # the first follows no other's backwards
        for label, trainer in trainers.items():
            plan = trainer.plan
            assert plan is not None
            print(
                f"{name} {label:>8}: {plan.n_microbatches} microbatches on {len(plan.stages)} "
                f"devices, step {median(taken[label]):.3f} s, predicted {plan.step_seconds:.3f} s"
            )
        print(f"{name}: 16 / chosen = {median(taken['16']) / median(taken['chosen']):.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
