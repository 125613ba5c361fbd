"""What each device of a run is given when it begins: its stage, weights and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from edgeweave.codec import Codec
from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.device import Assignment, Deploy, Optimizer
from edgeweave.fleet import Fleet
from edgeweave.plan import Plan, is_flushed
from edgeweave.program import (
    Program,
    cut,
    encode,
    encode_state,
    shared_parameters,
    ways,
    without_outputs,
)
from edgeweave.train.failures.holders import Origin

__all__ = ["Deployment", "RunSettings", "check_clipping", "check_place"]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run needs beside program, state and plan."""

    optimizer: Optimizer
    microbatch_size: int
    seed: int = 0
    clip_grad_norm: float | None = None
    codec: Codec | None = None
    """What links code with, in as many bits as the plan says of each; None: with nothing."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A program cut by a plan, with the state it begins with."""

    plan: Plan
    settings: RunSettings
    stages: Sequence[Program]
    parameter_order: tuple[str, ...]
    state: Mapping[str, torch.Tensor]
    optimizer_state: Mapping[str, torch.Tensor] | None

    @classmethod
    def of(
        cls,
        program: Program,
        plan: Plan,
        settings: RunSettings,
        state: Mapping[str, torch.Tensor],
        optimizer_state: Mapping[str, torch.Tensor] | None,
    ) -> Deployment:
        """Cut the program where the plan says.

        ``ConfigError`` if stages would have to agree before they update, and do not wait to.
        """
        first_units = [stage.first_unit for stage in plan.stages[1:]]
        stages = cut(without_outputs(program), first_units, direct=plan.skips == "direct")
        check_clipping(plan.schedule, settings.clip_grad_norm)
        _check_tied(plan, shared_parameters(stages))
        return cls(
            plan,
            settings,
            stages,
            tuple(spec.name for spec in program.trainable),
            state,
            optimizer_state,
        )

    def message(
        self, device: str, *, run: str, term: int, coordinator: str, origin: Origin
    ) -> Deploy:
        """The message that puts its stage on a device. As large as what comes along with it."""
        plan, settings = self.plan, self.settings
        index = plan.devices.index(device)
        stage = self.stages[index]
        way = ways(self.stages)[index]
        graph, tensors = encode(stage, self.state, without=origin.absent)
        assignment = Assignment(
            run=run,
            term=term,
            coordinator=coordinator,
            stage=index,
            devices=plan.devices,
            schedule=plan.schedule,
            extra_in_flight=plan.extra_in_flight,
            microbatch_size=settings.microbatch_size,
            max_microbatches=plan.n_microbatches,
            seed=settings.seed,
            optimizer=settings.optimizer,
            clip_grad_norm=settings.clip_grad_norm,
            parameter_order=self.parameter_order,
            tied=shared_parameters(self.stages),
            sources=way.sources,
            targets=way.targets,
            codec=settings.codec,
            weight_aggregation=plan.weight_aggregation,
        )
        return Deploy(
            assignment,
            graph,
            memoryview(tensors),
            self._optimizer_part(stage, origin),
            step=origin.step,
            own=origin.own,
            elsewhere=dict(origin.elsewhere),
        )

    def _optimizer_part(self, stage: Program, origin: Origin) -> memoryview | None:
        """The optimizer state of those parameters that come along."""
        if self.optimizer_state is None:
            return None
        names = {spec.name for spec in stage.trainable} - origin.absent
        part = {
            key: tensor
            for key, tensor in self.optimizer_state.items()
            if key.rpartition("|")[0] in names
        }
        return memoryview(encode_state(part))


def check_clipping(schedule: str, clip_grad_norm: float | None) -> None:
    """``ConfigError`` where the norm of all stages' gradients would be needed, and none waits."""
    if clip_grad_norm is not None and not is_flushed(schedule):
        raise ConfigError(
            f"clip_grad_norm needs all stages' gradients of a step at once (got "
            f"{clip_grad_norm:g} with {schedule}, whose stages update without waiting for each "
            "other). Leave it out, or take the schedule '1f1b'."
        )


def _check_tied(plan: Plan, tied: Mapping[str, tuple[int, ...]]) -> None:
    if tied and not is_flushed(plan.schedule):
        name, holders = next(iter(sorted(tied.items())))
        where = " and ".join(f"stage {each} on {plan.devices[each]}" for each in holders)
        raise ConfigError(
            f"tied weights are in one stage under {plan.schedule} (got {name} in {where}, which "
            "would update it without waiting for each other). Cut the model elsewhere, or take "
            "the schedule '1f1b'."
        )


def check_place(plan: Plan, fleet: Fleet, program: Program) -> None:
    """``PlanError`` if the plan is not for this fleet and this program."""
    n_units = len(program.unit_numbers)
    missing = sorted(set(plan.devices) - set(fleet.devices))
    if missing or plan.stages[-1].stop_unit != n_units:
        raise PlanError(
            f"the plan is for another fleet or model (it uses {', '.join(plan.devices)} and "
            f"{plan.stages[-1].stop_unit} units; the fleet has "
            f"{', '.join(fleet.devices)}, the model {n_units} units). Plan again."
        )
