"""Who has which part of a run's state, and from whom each device gets the part it needs.

A state after some step is whole if every parameter and buffer that training changes is somewhere:
on a device that is there, as the state of its own stage or as a replica, or here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from edgeweave.core.errors import FleetError
from edgeweave.device import Holdings
from edgeweave.program import Program

__all__ = ["Holders", "Origin", "Term"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a device finds its stage's state after ``step`` steps; the rest comes along."""

    step: int = 0
    own: tuple[str, ...] = ()
    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def absent(self) -> frozenset[str]:
        """What need not come along."""
        return frozenset(self.own).union(*self.elsewhere.values())


@dataclass(frozen=True, slots=True)
class Holders:
    """What the devices that are there keep, and the step of the whole state that is here."""

    devices: Mapping[str, Holdings]
    here: int

    @property
    def steps(self) -> set[int]:
        """The steps of which a device keeps something."""
        return {step for holdings in self.devices.values() for step in holdings.steps}

    def newest_step(self, trained: Collection[str], of: Collection[int] | None = None) -> int:
        """The latest step whose state is whole, of all or of some. That of ``here`` always is."""
        steps = self.steps if of is None else self.steps & set(of)
        whole = (step for step in steps if self._held(step) >= set(trained))
        return max((self.here, *whole))

    def origin(
        self, stage: Program, device: str, step: int, *, seconds: Callable[[str], float]
    ) -> Origin:
        """From whom ``device`` gets the state of ``stage`` after ``step`` steps.

        What it has itself does not travel; the rest comes from whom ``seconds(source)`` is least
        for, this process only where no device has it. ``FleetError`` if nobody has.
        """
        mine = self.devices.get(device, Holdings({}, ()))
        trained = set(stage.trained)
        fixed = {spec.name for spec in stage.state} - trained
        own = (trained & set(mine.steps.get(step, ()))) | (fixed & set(mine.fixed))
        elsewhere: dict[str, list[str]] = {}
        for name in sorted(trained - own):
            holders = [d for d in self._who(name, step) if d != device]
            if holders:
                elsewhere.setdefault(min(holders, key=seconds), []).append(name)
            elif step != self.here:
                raise FleetError(
                    f"the state of {name} after step {step} is lost (nobody keeps it). "
                    "Resume from the last checkpoint."
                )
        return Origin(step, tuple(sorted(own)), {d: tuple(n) for d, n in elsewhere.items()})

    def _held(self, step: int) -> set[str]:
        return {name for each in self.devices.values() for name in each.steps.get(step, ())}

    def _who(self, name: str, step: int) -> Iterable[str]:
        return (d for d, each in self.devices.items() if name in each.steps.get(step, ()))


@dataclass(frozen=True, slots=True)
class Term:
    """The part of a run that one plan serves. It begins with the state after ``step`` steps."""

    run: str
    number: int
    step: int
    holders: Holders
    link_seconds: Callable[[str, str], float]
    """What a byte takes from one device to another, as far as it is known."""

    def origin(self, stage: Program, device: str) -> Origin:
        """From whom a device gets the state of its stage."""
        return self.holders.origin(
            stage, device, self.step, seconds=lambda source: self.link_seconds(source, device)
        )
