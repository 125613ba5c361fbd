"""What a profile and a finished run teach of their devices, noted for later predictions.

Emulated devices teach nothing: they take what they are paced to, and share the name and the facts
of a host that takes something else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import numpy as np

from edgeweave.device import StageTiming
from edgeweave.fleet import Fleet
from edgeweave.plan import DeviceCosts, Plan
from edgeweave.predict import Measurement, unit_features
from edgeweave.program import Program
from edgeweave.train.measuring.experience import Experience

__all__ = ["RunTimings", "Teacher"]

_log = logging.getLogger(__name__)

_WARM_UP_STEPS = 3
_LEAST_STEPS = 9
_STEADY = 1.1
_MOST_TIMINGS = 4096
"""Of a device; an even number."""


class RunTimings:
    """What every device took for a microbatch, step by step; of a long run at equal distances."""

    def __init__(self) -> None:
        self._timings: dict[str, Thinned] = {}

    def step(self, timings: Mapping[str, StageTiming]) -> None:
        """What a step told; a device that told 0 for want of a finer clock is left out."""
        for device, timing in timings.items():
            if timing.forward_seconds > 0:
                self._timings.setdefault(device, Thinned()).add(timing)

    def steady(self) -> dict[str, StageTiming]:
        """The medians after warming up, of devices that took the same all the time.

        Who heated up, or was slowed by something else, took in one third of the steps 10 % more or
        less than in another: it teaches nothing. Nor do fewer than a dozen steps.
        """
        found = {}
        for device, timings in self._timings.items():
            warm = timings.kept[_WARM_UP_STEPS:]
            if len(warm) < _LEAST_STEPS:
                continue
            levels = [median(each.seconds for each in third) for third in _thirds(warm)]
            if max(levels) > _STEADY * min(levels):
                _log.info("nothing is learnt of %s: its speed changed during the run", device)
                continue
            found[device] = StageTiming(
                median(each.forward_seconds for each in warm),
                median(each.backward_seconds for each in warm),
            )
        return found


class Thinned:
    """The first timing and every so-manieth after it: as many as memory may take."""

    def __init__(self) -> None:
        self.kept: list[StageTiming] = []
        self._every, self._n_seen = 1, 0

    def add(self, timing: StageTiming) -> None:
        if self._n_seen % self._every == 0:
            self.kept.append(timing)
        self._n_seen += 1
        if len(self.kept) == _MOST_TIMINGS:
            self.kept, self._every = self.kept[::2], 2 * self._every


class Teacher:
    """Notes what the real devices of a fleet took for units of a program; without experience,
    nothing.
    """

    def __init__(self, experience: Experience | None, fleet: Fleet) -> None:
        self._experience = experience
        self._fleet = fleet

    def teach_units(
        self, program: Program, microbatch_size: int, devices: Iterable[DeviceCosts]
    ) -> None:
        """A full profile: one measurement for each unit. What was predicted teaches nothing."""
        features = list(unit_features(program, microbatch_size).values())
        for device in devices:
            if device.deviation is not None:
                continue
            seconds = zip(device.forward_seconds, device.backward_seconds, strict=True)
            units = [
                Measurement(rows, forward, backward or None)
                for rows, (forward, backward) in zip(features, seconds, strict=True)
                if len(rows) and forward > 0
            ]
            self._note(device.device, units)

    def teach_stages(
        self,
        program: Program,
        microbatch_size: int,
        plan: Plan,
        timings: Mapping[str, StageTiming],
    ) -> None:
        """A run: one measurement for each stage, of the sum that plans take it for."""
        features = list(unit_features(program, microbatch_size).values())
        for stage in plan.stages:
            timing = timings.get(stage.device)
            rows = np.concatenate(features[stage.first_unit : stage.stop_unit])
            if timing is not None and len(rows):
                seconds = timing.forward_seconds, timing.backward_seconds or None
                self._note(stage.device, [Measurement(rows, *seconds)])

    def _note(self, device: str, batch: Sequence[Measurement]) -> None:
        if self._experience is None:
            return
        greeting = self._fleet.greet(device)
        if greeting.speed is None:
            self._experience.note(device, greeting.facts, batch)


def _thirds(timings: Sequence[StageTiming]) -> list[Sequence[StageTiming]]:
    first, second = len(timings) // 3, 2 * len(timings) // 3
    return [timings[:first], timings[first:second], timings[second:]]
