"""Stages of a small model and their assignments, for tests that play the other side."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from edgeweave.device import Assignment, Optimizer, tensor_frame
from edgeweave.net import Frame
from edgeweave.program import Captured, Program, capture, cut, without_outputs
from tests.models import ZOO

BOUNDARIES = (2, 5)
DEVICES = ("pi-a", "pi-b", "pi-c")
LONG = 30.0


@functools.cache
def captured_mlp() -> Captured:
    example = ZOO["mlp"]
    return capture(example.model(), example.loss, *example.batch(4))


def mlp_stages() -> tuple[Program, ...]:
    """Three stages; the first takes ``input:0``, the last ``target:0``."""
    return cut(without_outputs(captured_mlp().program), BOUNDARIES)


def assignment(stage: int, **changes: Any) -> Assignment:
    values: dict[str, Any] = {
        "run": "run-1",
        "term": 0,
        "coordinator": "coordinator-1",
        "stage": stage,
        "devices": DEVICES,
        "schedule": "1f1b",
        "extra_in_flight": 0,
        "microbatch_size": 4,
        "max_microbatches": 2,
        "seed": 0,
        "optimizer": Optimizer("SGD", lr=0.1, momentum=0.9),
        "clip_grad_norm": None,
        "parameter_order": tuple(spec.name for spec in captured_mlp().program.trainable),
        "tied": {},
    }
    return Assignment(**(values | changes))


def frame(
    kind: str,
    stage: int = -1,
    *,
    device: str | None = None,
    number: int = 0,
    microbatch: int = 0,
    tensors: Mapping[str, torch.Tensor] | None = None,
    **scalars: float,
) -> Frame:
    """A frame of a stage, by default under the name of the device that holds it."""
    holders = {-1: "coordinator-1", **dict(enumerate(DEVICES))}
    return tensor_frame(
        kind,
        device or holders.get(stage, "stranger"),
        stage,
        0,
        round=number,
        microbatch=microbatch,
        tensors=tensors or {},
        scalars=scalars,
    )


def begin(n_microbatches: int = 1, *, step: int = 0, train: float = 1.0) -> Frame:
    """The coordinator begins a round."""
    return frame(
        "begin",
        step=float(step),
        microbatches=float(n_microbatches),
        train=train,
        total_samples=4.0 * n_microbatches,
        **{"hp:lr": 0.1},
    )


def handed_on(stage: int, n_samples: int = 4) -> dict[str, torch.Tensor]:
    """What a stage hands on, made up."""
    program = mlp_stages()[stage]
    values = program.values()
    return {name: torch.ones(values[name].shape_at(n_samples)) for name in program.outputs}
