"""Codecs while the run goes on: chosen anew when links, devices or accuracy ask for others.

    measured rates -> what each link is believed to carry -> choose_codecs -> next step's codecs

A link is believed to be slower soon, by the median of the last three rates that were told, and
faster with care, by the least of the last eight: one step with too many bits is longer, one with
too few is not. Of a link that stays silent nothing is known but that it is not slow: it is believed
to be a little faster from time to time, until more bits make it tell. If it then tells the old
rate, it is asked less often. Links between stages that are no neighbours never tell, and are
believed to be as they were.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from edgeweave.plan.codec_choice import choose_codecs
from edgeweave.plan.coding import EXACT_BITS, Ends, LinkCodec, with_link_rates
from edgeweave.plan.costs import Costs, DeviceCosts
from edgeweave.plan.routes import routes
from edgeweave.plan.simulate import simulate
from edgeweave.plan.stages import Plan

__all__ = ["Recoding"]

_TOLD, _LATEST = 8, 3
_OTHER_RATE = 1.1
"""By which factor a rate must change to be another."""
_WORTH_CHANGING = 1.02
"""So much shorter must a step be with new codecs of fewer bits."""
_RAISE = 1.3
_HIGHEST_RAISE = 1e11
"""Bytes per second: where a codec must stay, silence says nothing more of the link."""
_LEAST_SILENT_STEPS, _MOST_SILENT_STEPS = 4, 64


class Recoding:
    """Follows the links of a plan. ``costs`` are as the plan was made from: links without codecs.

    Planning costs milliseconds for a few devices, and is done only when a rate has changed.
    """

    def __init__(self, plan: Plan, costs: Costs) -> None:
        self._plan, self._costs = plan, costs
        self._links = {
            (crossing.src, crossing.dst): _LinkBelief(crossing.link.bytes_per_second)
            for route in routes(costs, plan.devices, plan.bounds, plan.skips)
            for crossing in (route.there, route.back)
            if crossing.size_bytes
        }
        neighbours = {frozenset(pair) for pair in pairwise(plan.devices)}
        self._telling = [ends for ends in self._links if frozenset(ends) in neighbours]

    @property
    def codecs(self) -> tuple[LinkCodec, ...]:
        """Of the links now."""
        return self._plan.codecs

    @property
    def link_rates(self) -> dict[Ends, float]:
        """Bytes per second that links are believed to carry now."""
        return {ends: link.bytes_per_second for ends, link in self._links.items()}

    def observe(
        self, link_bytes_per_second: Mapping[Ends, float], devices: Sequence[DeviceCosts] = ()
    ) -> bool:
        """Take in the rates that one step told, of some links; whether other codecs are better.

        ``devices`` are the costs of all devices as they are believed to be now.
        """
        others = bool(devices) and tuple(devices) != self._costs.devices
        if others:
            self._costs = replace(self._costs, devices=tuple(devices))
        coded = {codec.ends for codec in self.codecs}
        changed = [
            self._links[ends].observe(link_bytes_per_second.get(ends), is_coded=ends in coded)
            for ends in self._telling
        ]
        return (any(changed) or others) and self._choose()

    def keep_more_bits(self) -> bool:
        """Give up the fewest bits that a link has, and fewer, in the end all codecs.

        False if links must have one, and have no other.
        """
        coding = self._costs.coding
        if coding is None or not self.codecs:
            return False
        fewest = min(codec.bits for codec in self.codecs)
        wider = tuple(bits for bits in coding.widths if bits > fewest)
        if not wider and coding.always:
            return False
        self._costs = replace(self._costs, coding=replace(coding, widths=wider) if wider else None)
        return self._choose(must=True)

    def _choose(self, *, must: bool = False) -> bool:
        costs = with_link_rates(self._costs, self.link_rates)
        new = replace(self._plan, codecs=choose_codecs(self._plan, costs))
        if new.codecs == self.codecs:
            return False
        if not must and _exactness(new) < _exactness(self._plan):
            old_seconds = simulate(self._plan, costs).step_seconds
            if old_seconds < _WORTH_CHANGING * simulate(new, costs).step_seconds:
                return False
        self._plan = new
        return True


class _LinkBelief:
    """What one link is believed to carry."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._told: deque[float] = deque(maxlen=_TOLD)
        self._before_raises: float | None = None
        self._silent_steps = 0
        self._patience = _LEAST_SILENT_STEPS

    def observe(self, told: float | None, *, is_coded: bool) -> bool:
        """Take in one step; whether the belief has changed."""
        if told is not None:
            return self._hear(told)
        self._silent_steps += 1
        is_fast = self.bytes_per_second * _RAISE > _HIGHEST_RAISE
        if not is_coded or is_fast or self._silent_steps < self._patience:
            return False
        self._silent_steps = 0
        self._told.clear()
        self._before_raises = self._before_raises or self.bytes_per_second
        self.bytes_per_second *= _RAISE
        return True

    def _hear(self, told: float) -> bool:
        self._silent_steps = 0
        self._told.append(told)
        level, believed = self._level(), self.bytes_per_second
        if max(level, believed) < _OTHER_RATE * min(level, believed):
            return False
        if self._before_raises is not None:
            in_vain = level < _OTHER_RATE * self._before_raises
            longer = min(2 * self._patience, _MOST_SILENT_STEPS)
            self._patience = longer if in_vain else _LEAST_SILENT_STEPS
        self.bytes_per_second, self._before_raises = level, None
        return True

    def _level(self) -> float:
        """What the rates that were told say of the link."""
        latest, believed = median(list(self._told)[-_LATEST:]), self.bytes_per_second
        if latest <= believed:
            return latest
        return max(min(self._told), believed) if len(self._told) == _TOLD else believed


def _exactness(plan: Plan) -> int:
    """More is better: the bits of all links together, less those that no codec would have."""
    return sum(codec.bits - EXACT_BITS for codec in plan.codecs)
