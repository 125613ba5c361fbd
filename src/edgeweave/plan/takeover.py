"""The plan that is left when devices vanish and nothing is known of what the others take.

Each lost stage's units go to the nearest stage that is left, before or behind it, as in ResPipe,
the other side of FTPipeHD's comparison.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edgeweave.core.errors import PlanError
from edgeweave.plan.stages import Plan, Stage

__all__ = ["taken_over"]


def taken_over(plan: Plan, left: Collection[str]) -> Plan:
    """The same order of those who are ``left``, with all units. Its times are sums, no forecast.

    ``PlanError`` if none of the plan's devices is left.
    """
    stages = [stage for stage in plan.stages if stage.device in left]
    if not stages:
        raise PlanError(
            f"no device of the plan is left (it had {', '.join(plan.devices)}). Plan again."
        )
    heirs: dict[str, list[Stage]] = {stage.device: [] for stage in stages}
    numbers = {stage.device: number for number, stage in enumerate(plan.stages)}
    for number, stage in enumerate(plan.stages):
        heir = min(stages, key=lambda each: abs(numbers[each.device] - number))
        heirs[heir.device].append(stage)
    return replace(
        plan,
        stages=tuple(_joined(device, parts) for device, parts in heirs.items()),
        codecs=tuple(c for c in plan.codecs if set(c.ends) <= heirs.keys()),
    )


def _joined(device: str, parts: list[Stage]) -> Stage:
    return Stage(
        device,
        parts[0].first_unit,
        parts[-1].stop_unit,
        sum(part.forward_seconds for part in parts),
        sum(part.backward_seconds for part in parts),
        sum(part.memory_bytes for part in parts),
    )
