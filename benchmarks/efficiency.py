"""How much of its devices' own speed a pipeline keeps.

MobileNetV2 at 32 x 32 on devices of 0.5, 0.5 and 0.25 cores, unshaped links, 1F1B, 16 microbatches.

    efficiency              the fleet's training throughput / the sum of what each device reaches
                            alone with the same microbatches; the bubble alone costs 11 %
    predicted_over_measured step time of the plan / median measured step time
    agent_overhead_mb       largest peak of an agent beyond "torch imported" and its stage's
                            weights, gradients, optimizer state and in-flight activations

Fleet and single devices take turns within one run (A B C D A B C D ...), medians are compared.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from statistics import median

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

import edgeweave as ew
from benchmarks.harness import Result
from edgeweave.plan import Costs, Plan, partition
from edgeweave.train import PipelineTrainer, Report

__all__ = ["run"]

_SPEEDS = {"pi-a": 0.5, "pi-b": 0.5, "old-laptop": 0.25}
_MICROBATCHES = 16
_MICROBATCH_SIZE = 8
_SEED = 0


def run(*, quick: bool) -> Result:
    """Measure; ``quick`` takes one turn of two steps instead of three turns of six."""
    torch.set_num_threads(1)
    turns, steps = (1, 2) if quick else (3, 6)
    samples: dict[str, list[float]] = {name: [] for name in ("fleet", *_SPEEDS)}
    batch_size = _MICROBATCHES * _MICROBATCH_SIZE
    with ew.Fleet.local([ew.Device(n, speed=s) for n, s in _SPEEDS.items()]) as fleet:
        trainer = _trainer(fleet)
        trainer.prepare(_dataset(batch_size), batch_size=batch_size)
        assert trainer.costs is not None
        costs = trainer.costs
        plans: dict[str, Plan] = {
            "fleet": partition(costs, n_microbatches=_MICROBATCHES, use="all")
        }
        for name in _SPEEDS:
            plans[name] = partition(costs, n_microbatches=_MICROBATCHES, devices=[name])
        report: Report | None = None
        for _ in range(turns):
            for name, chosen in plans.items():
                trainer.plan = chosen
                # A step is timed to its last loss: the first has no backward of another before it.
                n_steps = 1 + (steps if name == "fleet" else max(steps // 2, 1))
                outcome = trainer.fit(
                    _dataset(batch_size * n_steps), batch_size=batch_size, epochs=1, progress=False
                )
                samples[name].extend(outcome.step_seconds[1:])
                report = report or outcome  # the first: memory of agents with no past
    assert report is not None
    throughput = {name: batch_size / median(seconds) for name, seconds in samples.items()}
    alone = sum(throughput[name] for name in _SPEEDS)
    metrics = {
        "efficiency": throughput["fleet"] / alone,
        "predicted_over_measured": plans["fleet"].step_seconds / median(samples["fleet"]),
        "agent_overhead_mb": max(_overhead_mb(report, plans["fleet"]).values()),
    }
    return Result(
        name="efficiency",
        quick=quick,
        metrics=dict(metrics),
        lines=(
            *(f"{name:>12}  {rate:7.1f} samples/s" for name, rate in throughput.items()),
            *(
                f"{stage.device:>12}  units {stage.first_unit} to {stage.stop_unit - 1}, "
                f"overhead {_overhead_mb(report, plans['fleet'])[stage.device]:.1f} MB"
                for stage in plans["fleet"].stages
            ),
            *(f"{key:>24} = {value:.3f}" for key, value in metrics.items()),
        ),
        samples=samples,
        settings={
            "speeds": _SPEEDS,
            "n_microbatches": _MICROBATCHES,
            "microbatch_size": _MICROBATCH_SIZE,
            "schedule": plans["fleet"].schedule,
            "extra_in_flight": plans["fleet"].extra_in_flight,
            "seed": _SEED,
            "turns": turns,
            "steps": steps,
            "bound": _bound(costs, plans["fleet"]),
        },
    )


def _trainer(fleet: ew.Fleet) -> PipelineTrainer:
    torch.manual_seed(_SEED)
    model = MobileNetV2ForImageClassification(MobileNetV2Config(image_size=32))
    return ew.PipelineTrainer(
        model,
        lambda output, target: F.cross_entropy(output.logits, target),
        optimizer=ew.Optimizer("SGD", lr=0.05, momentum=0.9),
        fleet=fleet,
        n_microbatches=_MICROBATCHES,
        seed=_SEED,
    )


def _dataset(n_samples: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn(n_samples, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.randint(2, (n_samples,), generator=generator))


def _bound(costs: Costs, plan: Plan) -> float:
    """The efficiency of this plan if nothing but the bubble and the cut cost anything."""
    fastest = {
        device.device: sum(device.forward_seconds) + sum(device.backward_seconds)
        for device in costs.devices
    }
    alone = sum(1 / seconds for seconds in fastest.values())
    slots = plan.n_microbatches + len(plan.stages) - 1
    period = max(stage.forward_seconds + stage.backward_seconds for stage in plan.stages)
    return plan.n_microbatches / (slots * period) / alone


def _overhead_mb(report: Report, plan: Plan) -> Mapping[str, float]:
    base = _torch_bytes()
    planned = {stage.device: stage.memory_bytes for stage in plan.stages}
    return {
        device.device: (device.peak_memory_bytes - base - planned[device.device]) / 1e6
        for device in report.devices
    }


def _torch_bytes() -> int:
    """The resident size of a process that has imported torch and nothing else."""
    code = "import torch, psutil; print(psutil.Process().memory_info().rss)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(shown.stdout)
