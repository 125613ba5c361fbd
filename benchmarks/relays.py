"""What it is worth that skip connections may go past the stages that do not use them.

Simulated, not run: units of a U-Net and of ResNet-18 are timed on one core of this host and
stretched to the devices of each preset; links are the preset's, memory has no limit. The best plan
that relays is compared with the best of both ways.

    gain_unet_...       1 - step of the best plan / step of the best that relays
    gain_unet_all_...   the same if every device must hold a stage
    gain_resnet_...     the first, for ResNet-18
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from statistics import median
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.harness import Result
from benchmarks.latency.blocks import Logits
from benchmarks.resnet import resnet18
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.device import Optimizer
from edgeweave.fleet import PRESETS, FleetDescription, load_preset
from edgeweave.net import GilbertElliott, LinkShape, RateTrace
from edgeweave.plan import Costs, DeviceCosts, Link, partition
from edgeweave.program import Captured, StageProgram, capture, cut, without_outputs
from edgeweave.train.measuring.costs import Sizes, costs_of

__all__ = ["UNet", "costs_on", "run", "unit_seconds"]

_SEED = 0
_MICROBATCH = 4
_MICROBATCHES = 8
_PIXELS = 96
_OPTIMIZER = Optimizer("SGD", lr=0.01)
_UNLIMITED = 1e10


class UNet(nn.Module):
    """Four levels; each level's features skip all that lies below."""

    def __init__(self, width: int = 32, levels: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        ins = [3, *widths[:-1]]
        self.down = nn.ModuleList(_double(i, o) for i, o in zip(ins, widths, strict=True))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * each, each, 2, 2) for each in reversed(widths[:-1])
        )
        self.join = nn.ModuleList(_double(2 * each, each) for each in reversed(widths[:-1]))
        self.classify = nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        return torch.as_tensor(self.classify(x))


def _double(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(*_layer(n_in, n_out), *_layer(n_out, n_out))


def _layer(n_in: int, n_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()


def run(*, quick: bool) -> Result:
    """Time the units, plan both ways; ``quick`` leaves ResNet-18 and two fleets out."""
    torch.manual_seed(_SEED)
    torch.set_num_threads(1)
    fleets = PRESETS[2:] if quick else PRESETS
    metrics: dict[str, float] = {}
    for name, captured in _networks(quick=quick).items():
        seconds = unit_seconds(captured, n_passes=3 if quick else 7)
        for fleet in fleets:
            costs = costs_on(load_preset(fleet), captured, seconds)
            row = fleet.replace("-", "_")
            metrics[f"gain_{name}_{row}"] = _gain(costs, use="fastest")
            if name == "unet":
                metrics[f"gain_unet_all_{row}"] = _gain(costs, use="all")
    return Result(
        name="relays",
        quick=quick,
        metrics=metrics,
        lines=tuple(f"{key:>36} = {value:6.3f}" for key, value in metrics.items()),
        samples={key: [value] for key, value in metrics.items()},
        settings={
            "seed": _SEED,
            "microbatch_size": _MICROBATCH,
            "microbatches": _MICROBATCHES,
            "pixels": _PIXELS,
        },
    )


def _networks(*, quick: bool) -> dict[str, Captured]:
    images = torch.randn(_MICROBATCH, 3, _PIXELS, _PIXELS)
    masks = torch.zeros(_MICROBATCH, _PIXELS, _PIXELS, dtype=torch.long)
    found = {"unet": capture(UNet(), F.cross_entropy, images, masks)}
    if not quick:
        labels = torch.zeros(_MICROBATCH, dtype=torch.long)
        found["resnet"] = capture(Logits(resnet18(_SEED)), F.cross_entropy, images, labels)
    return found


def unit_seconds(captured: Captured, *, n_passes: int) -> tuple[list[float], list[float]]:
    """What each unit takes here, forward and backward: medians of so many passes after one."""
    (whole,) = cut(without_outputs(captured.program), ())
    stage = StageProgram(whole, captured.state)
    passes = [stage.time_units(_MICROBATCH, time.process_time) for _ in range(n_passes + 1)][1:]
    return (
        _medians([list(each.forward_seconds.values()) for each in passes]),
        _medians([list(each.backward_seconds.values()) for each in passes]),
    )


def _medians(passes: Sequence[Sequence[float]]) -> list[float]:
    return [median(unit) for unit in zip(*passes, strict=True)]


def costs_on(
    fleet: FleetDescription, captured: Captured, seconds: tuple[list[float], list[float]]
) -> Costs:
    """The costs on an emulated fleet's devices, from what units take on one core of this host."""
    names = [COORDINATOR_NAME, *(device.name for device in fleet.devices)]
    links: dict[str, dict[str, Link]] = {name: {} for name in names}
    for source, target in permutations(names, 2):
        links[source][target] = _link(fleet.links.shape(source, target))
    forward, backward = seconds
    devices = (
        DeviceCosts(
            device.name,
            tuple(each / device.speed for each in forward),
            tuple(each / device.speed for each in backward),
            None,
        )
        for device in fleet.devices
    )
    return costs_of(Sizes.of(captured.program, _MICROBATCH), _OPTIMIZER, devices, links)


def _link(shape: LinkShape) -> Link:
    rate, loss = shape.bytes_per_second, shape.loss
    return Link(
        rate.mean if isinstance(rate, RateTrace) else rate or _UNLIMITED,
        shape.delay_seconds,
        loss.share if isinstance(loss, GilbertElliott) else loss,
    )


def _gain(costs: Costs, *, use: Literal["fastest", "all"]) -> float:
    relayed, best = (
        partition(given, n_microbatches=_MICROBATCHES, use=use).step_seconds
        for given in (replace(costs, skips=()), costs)
    )
    return 1 - best / relayed
