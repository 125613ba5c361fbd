"""Keep a plan or change it: what the change gains, what the move costs, and what is worth it.

Worth it means: a step gets shorter by a share that is no rounding of the prediction, and the steps
left pay for the move. Knows nothing of how it was noticed that the costs changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from edgeweave.core.errors import ConfigError
from edgeweave.core.units import format_bytes, format_seconds
from edgeweave.plan.codec_choice import choose_codecs
from edgeweave.plan.costs import Costs, UnitFacts
from edgeweave.plan.partition import partition
from edgeweave.plan.simulate import simulate
from edgeweave.plan.stages import Plan

__all__ = ["Caution", "Decision", "Departure", "decide"]

Verdict = Literal["change", "none better", "small gain", "too late", "worse"]
"""``"worse"``: the new plan of an earlier change was tried and is left again."""


@dataclass(frozen=True, slots=True)
class Caution:
    """When a change is worth it.

    ``least_gain`` is the share by which a step must get shorter: predictions of two plans differ by
    a few percent from what they measure. ``horizon_steps`` is how long the present state is trusted
    to last; None trusts it until the last step. ``least_steps_between`` is the pause after a
    change. It doubles whenever a device changes again within the pause, or before the change has
    paid for itself: what does not last is not worth following.
    """

    least_gain: float = 0.1
    least_steps_between: int = 50
    horizon_steps: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.least_gain < 1:
            raise ConfigError(
                f"least_gain is a share of a step, 0 or more and below 1 (got {self.least_gain}). "
                "0.1 is 10 %."
            )
        horizon_steps = 1 if self.horizon_steps is None else self.horizon_steps
        if min(self.least_steps_between, horizon_steps) < 1:
            raise ConfigError(
                "least_steps_between and horizon_steps are at least one step (got "
                f"{self.least_steps_between} and {self.horizon_steps}). Leave them out."
            )


@dataclass(frozen=True, slots=True)
class Departure:
    """A device that was noticed to have left what it was believed to take; with ``target``, its
    link there.
    """

    device: str
    ratio: float
    """What it takes now, over what it was predicted to take."""
    target: str | None = None

    def __str__(self) -> str:
        who = self.device if self.target is None else f"the link {self.device} -> {self.target}"
        return f"{who} takes {self.ratio:.2f} times as long as predicted"


@dataclass(frozen=True, slots=True)
class Decision:
    """Keep the plan or change it, and all that speaks for it. ``line()`` says it.

    Times are predicted from the corrected costs. ``move_seconds`` is one transfer after another, as
    on one Wi-Fi, and one step to drain and fill the pipeline.
    """

    step: int
    verdict: Verdict
    departures: tuple[Departure, ...]
    old: Plan
    """The one in use, with the codecs that it has for these costs."""
    new: Plan
    """The fastest plan now; ``old`` itself if no other is faster."""
    old_step_seconds: float
    new_step_seconds: float
    move_bytes: int
    move_seconds: float
    steps_left: int
    """How many steps may pay for it: those to come, or the horizon."""
    arrivals: tuple[str, ...] = ()
    """Devices that have joined."""

    @property
    def changes(self) -> bool:
        """Whether the plan should be changed."""
        return self.verdict in ("change", "worse")

    @property
    def gain_seconds(self) -> float:
        """What each step would take less."""
        return self.old_step_seconds - self.new_step_seconds

    @property
    def gain(self) -> float:
        """The same as a share of the step."""
        return self.gain_seconds / self.old_step_seconds if self.old_step_seconds else 0.0

    @property
    def break_even_steps(self) -> int | None:
        """After how many steps the move is paid back; None if it never is."""
        return math.ceil(self.move_seconds / self.gain_seconds) if self.gain_seconds > 0 else None

    def line(self) -> str:
        """One sentence for a person."""
        joined = (f"{device} has joined" for device in self.arrivals)
        noticed = " and ".join((*(str(departure) for departure in self.departures), *joined))
        return f"step {self.step}: {noticed}; {self._consequence()}"

    def _consequence(self) -> str:
        if self.verdict == "none better":
            return "the plan stays, no other is faster."
        if self.verdict == "worse":
            return (
                f"a step takes {format_seconds(self.old_step_seconds)} with the new plan and took "
                f"{format_seconds(self.new_step_seconds)} with the old one: back to that."
            )
        shorter = (
            f"another plan would shorten a step from {format_seconds(self.old_step_seconds)} to "
            f"{format_seconds(self.new_step_seconds)} ({self.gain:.0%})"
        )
        if self.verdict == "small gain":
            return f"the plan stays, {shorter}, which is too little to be sure of."
        paid = (
            f"moving {format_bytes(self.move_bytes)} takes {format_seconds(self.move_seconds)}, "
            f"paid back after {self.break_even_steps} steps, {self.steps_left} to come"
        )
        if self.verdict == "too late":
            return f"the plan stays, {shorter}, but {paid}."
        return f"{shorter}: {paid}."


def decide(
    plan: Plan,
    costs: Costs,
    departures: tuple[Departure, ...],
    *,
    step: int,
    steps_left: int,
    caution: Caution,
    arrivals: tuple[str, ...] = (),
) -> Decision:
    """Plan anew for what ``costs`` say now, and weigh that plan against the one in use.

    Codecs follow their links without any decision, so the plan in use has those that suit it now.
    """
    if costs.coding is not None:
        plan = replace(plan, codecs=choose_codecs(plan, costs))
    new = partition(
        costs,
        n_microbatches=plan.n_microbatches,
        schedule=plan.schedule,
        weight_aggregation=plan.weight_aggregation,
    )
    old_step_seconds = simulate(plan, costs).step_seconds
    if new.step_seconds >= old_step_seconds:
        new = replace(plan, step_seconds=old_step_seconds)
    move_bytes, transfer_seconds = _move(costs, plan, new)
    decision = Decision(
        step=step,
        verdict="change",
        departures=departures,
        old=plan,
        new=new,
        old_step_seconds=old_step_seconds,
        new_step_seconds=new.step_seconds,
        move_bytes=move_bytes,
        move_seconds=transfer_seconds + old_step_seconds,
        steps_left=min(steps_left, caution.horizon_steps or steps_left),
        arrivals=arrivals,
    )
    if decision.gain_seconds == 0:
        return replace(decision, verdict="none better")
    if decision.gain < caution.least_gain:
        return replace(decision, verdict="small gain")
    if decision.gain_seconds * decision.steps_left <= decision.move_seconds:
        return replace(decision, verdict="too late")
    return decision


def _move(costs: Costs, old: Plan, new: Plan) -> tuple[int, float]:
    """The bytes of all units that change their device, and how long these take on their links."""
    bytes_by_link: dict[tuple[str, str], int] = {}
    for unit, source, target in zip(costs.units, _owners(old), _owners(new), strict=True):
        if source != target:
            moved = bytes_by_link.get((source, target), 0) + _state_bytes(unit, costs)
            bytes_by_link[source, target] = moved
    seconds = 0.0
    for (source, target), size in bytes_by_link.items():
        link = costs.link(source, target)
        seconds += link.occupied_seconds(size) + link.latency_seconds
    return sum(bytes_by_link.values()), seconds


def _owners(plan: Plan) -> list[str]:
    """The device of every unit."""
    return [s.device for s in plan.stages for _ in range(s.first_unit, s.stop_unit)]


def _state_bytes(unit: UnitFacts, costs: Costs) -> int:
    """What a unit takes along: weights, buffers and what the optimizer keeps for it."""
    optimizer_bytes = math.ceil(costs.optimizer_bytes_per_trainable_byte * unit.trainable_bytes)
    return unit.parameter_bytes + unit.buffer_bytes + optimizer_bytes
