"""One device's copy of the model, and its data: gradients, updates and evaluation.

Models are flat float32 vectors that nobody changes: those that travel, are mixed and are kept. The
learner has one of its own in which it computes, and takes in and hands out copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from edgeweave.core.errors import CaptureError, ConfigError
from edgeweave.device.optimizer import Optimizer, StageOptimizer
from edgeweave.device.peers.rows import Rows
from edgeweave.device.peers.sampler import Sampler
from edgeweave.device.peers.scorer import Scorer, input_and_target
from edgeweave.device.throttle import Throttle
from edgeweave.mixing import (
    Chosen,
    GossipSettings,
    Groups,
    Trained,
    aggregate,
    weighted,
    whole_groups,
)
from edgeweave.program import Captured, Moment, Program, StageProgram

__all__ = ["Layout", "Learner", "SelectionCosts", "layout_of"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor of a model lies in its flat vector: name, begin, shape.

    Parameters come first, then running statistics.
    """

    places: tuple[tuple[str, int, tuple[int, ...]], ...]
    n_values: int

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors by name, sharing the vector's memory."""
        return {
            name: flat[start : start + math.prod(shape)].view(shape)
            for name, start, shape in self.places
        }

    def flat(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The vector of a state."""
        parts = [state[name].detach().cpu().reshape(-1) for name, _, _ in self.places]
        return torch.cat(parts) if parts else torch.zeros(0)


def layout_of(program: Program) -> Layout:
    """Parameters that train, and floating buffers that training updates.

    ``CaptureError`` if one of them is not float32.
    """
    specs = {spec.name: spec for spec in program.state}
    trained = [specs[name] for name in program.trained]
    kept = [spec for spec in trained if spec.trainable or spec.dtype.startswith("float")]
    places, start = [], 0
    for spec in kept:
        if spec.dtype != "float32":
            raise CaptureError(
                f"gossip mixes float32 ({spec.name} is {spec.dtype}). Convert the model: "
                "model.float()."
            )
        places.append((spec.name, start, spec.shape))
        start += math.prod(spec.shape)
    return Layout(tuple(places), start)


@dataclass(frozen=True, slots=True)
class SelectionCosts:
    """What choosing samples takes beside training."""

    grouping_seconds: float = 0.0
    """Once, before training."""
    n_groups: int = 0
    n_bytes: int = 0
    """Memory of groups and their points."""


class Learner:
    """Computes for one peer. Not thread-safe: one ``train`` or ``apply`` at a time."""

    def __init__(
        self,
        captured: Captured,
        optimizer: Optimizer,
        rows: Rows,
        settings: GossipSettings,
        *,
        number: int,
        now: Callable[[], float],
        throttle: Throttle | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """``number`` is the peer's own among all: what is drawn depends on it and on the seed."""
        self.layout = layout_of(captured.program)
        self._program = captured.program
        self._rows = rows
        self._settings = settings
        self._now = now
        self._throttle = throttle
        self._device = torch.device(device)
        self._work = self.layout.flat(captured.state).to(self._device)
        views = self.layout.views(self._work)
        self._seed = seed = settings.seed * 65_537 + number
        self._buffers = {n: views[n] for n in captured.program.updates if n in views}
        self._stage = StageProgram(
            captured.program,
            {**captured.state, **views},
            device=self._device,
            seed=seed,
            take_over=True,
        )
        self._optimizer = StageOptimizer(optimizer, self._stage.parameters)
        self._batches = Sampler(len(rows), settings.batch_size, seed=seed)
        self.selection = SelectionCosts()
        self._groups: Groups | None = None
        if settings.selects:
            self._prepare_selection({**captured.state, **views}, seed)

    @property
    def n_samples(self) -> int:
        """How many samples the device has."""
        return len(self._rows)

    def train(self, model: torch.Tensor, n_samples: int, step: int) -> Trained:
        """Compute the gradient of ``model`` on ``n_samples`` of the step's batch.

        It is kept for ``apply``.
        """
        self._load(model)
        began = self._now()
        choice, n_scored = self._choose(n_samples, step)
        scored = self._now()
        inputs = self._rows.take(torch.from_numpy(choice.indices))
        with self._paced(("gradient", len(choice.indices))):
            result = self._stage.forward(inputs, Moment(step=step, microbatch=0))
            if choice.weights is not None:
                self._stage.weigh_rows(0, self._program.outputs[0], choice.weights)
            self._stage.backward(0, {})
        if result.loss is None:
            raise CaptureError("a program that trains has a loss (this one has none).")
        scoring_seconds = scored - began if n_scored else 0.0
        return Trained(
            n_samples=len(choice.indices),
            seconds=self._now() - began - scoring_seconds,
            loss=result.loss.item(),
            n_scored=n_scored,
            scoring_seconds=scoring_seconds,
        )

    def apply(self, model: torch.Tensor, step: int) -> torch.Tensor:
        """The model that the optimizer makes of ``model`` with the gradient computed last."""
        trained = self._stage.trained_state()
        deltas = {name: trained[name] - old for name, old in self._buffers.items()}
        self._work.copy_(model)
        self._optimizer.step({})
        self._optimizer.clear_gradients()
        for name, delta in deltas.items():
            self._buffers[name].add_(delta)
        return self._work.to("cpu", copy=True)

    def evaluate(self, model: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Mean loss and metrics of a batch in evaluation mode."""
        self._load(model)
        result = self._stage.evaluate(batch)
        found = {name: value.item() for name, value in result.metrics.items()}
        return {**found, "loss": float("nan") if result.loss is None else result.loss.item()}

    def state_dict(self, model: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model by the user's names; what does not train is this device's own."""
        own = {name: t.detach().cpu().clone() for name, t in self._stage.state_dict().items()}
        return {**own, **{n: t.clone() for n, t in self.layout.views(model).items()}}

    def _load(self, model: torch.Tensor) -> None:
        self._work.copy_(model)
        self._stage.replace_buffers(self._buffers)

    def _prepare_selection(self, state: Mapping[str, torch.Tensor], seed: int) -> None:
        settings, began = self._settings, self._now()
        input_name, target_name = input_and_target(self._program)
        rows = self._rows.take(torch.arange(len(self._rows)))
        inputs = rows[input_name]
        if not inputs.is_floating_point():
            raise ConfigError(
                f"importance needs inputs that can be averaged (got {inputs.dtype}). "
                "Use importance='none'."
            )
        self._groups = aggregate(inputs, rows[target_name], settings.samples_per_point, seed=seed)
        self._scorer = Scorer(self._program, state, settings.importance, device=self._device)
        self._scores = torch.full((len(self._groups),), torch.nan)
        size = settings.scoring.most
        self._candidates = Sampler(len(self._groups), size, seed=seed, whole_only=True)
        self.selection = SelectionCosts(
            self._now() - began, len(self._groups), self._groups.n_bytes
        )

    def _choose(self, n_samples: int, step: int) -> tuple[Chosen, int]:
        """The samples of a step, and how many points were scored for it."""
        batch = self._batches.at(step)
        groups = self._groups
        is_warm = step // self._batches.steps_per_epoch >= self._settings.warm_up_epochs
        if groups is None or not is_warm or n_samples >= len(batch):
            return Chosen(batch[:n_samples].numpy()), 0
        scoring, seed = self._settings.scoring, self._seed * 1_000_003 + step
        turn, rest = divmod(step, scoring.every)
        if rest:
            return weighted(groups, self._scores, n_samples, seed=seed), 0
        points = self._candidates.at(turn)[: scoring.n_points(n_samples)]
        with self._paced(("scores", len(points))):
            scores = self._scorer.scores(groups.points[points], groups.labels[points])
        if self._settings.choosing == "groups":
            return whole_groups(groups, points.tolist(), scores, n_samples), len(points)
        self._scores[points] = scores
        return weighted(groups, self._scores, n_samples, seed=seed), len(points)

    def _paced(self, key: tuple[str, int]) -> AbstractContextManager[None]:
        """Work as slow as the device is, where it is emulated."""
        return nullcontext() if self._throttle is None else self._throttle.pace(key)
