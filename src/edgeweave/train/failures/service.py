"""How a run stands failures: what was lost, how it went on, what another loss would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeweave.device import ServiceLevel
from edgeweave.plan import Plan

__all__ = ["Recovery", "Service"]


@dataclass(frozen=True, slots=True)
class Recovery:
    """Devices were lost in step ``step``, and the run went on without them. ``line()`` says it."""

    step: int
    lost: tuple[str, ...]
    left: tuple[str, ...]
    """All that were there then, whether they have a part in the plan or not."""
    plan: Plan
    """The one it went on with."""
    resumed_step: int
    """After so many steps it stood when it went on; those up to ``step`` were computed again."""
    silent_seconds: float
    """From the last result before the loss to its being noticed."""
    seconds: float
    """From there until the next step could begin."""

    @property
    def recomputed_steps(self) -> int:
        """Whole steps that were done and had to be done again."""
        return self.step - self.resumed_step

    def line(self) -> str:
        """One sentence for a person."""
        return (
            f"step {self.step}: {', '.join(self.lost)} lost (noticed after "
            f"{self.silent_seconds:.2f} s); goes on after step {self.resumed_step} with "
            f"{', '.join(self.plan.devices)}, {self.seconds:.2f} s later."
        )


class Service:
    """Told of a run as it goes. Without ``replicates`` no state is copied anywhere."""

    def __init__(self, *, replicates: bool) -> None:
        self._replicates = replicates
        self._recoveries: list[Recovery] = []
        self._replica_steps: dict[str, int] = {}
        self._age = self._oldest = 0

    @property
    def recoveries(self) -> Sequence[Recovery]:
        """All so far."""
        return tuple(self._recoveries)

    def recovered(self, recovery: Recovery) -> None:
        """The run went on without some devices."""
        self._recoveries.append(recovery)

    def term_begins(self) -> None:
        """Stages are others now: replicas of those before do not count."""
        self._replica_steps = {}

    def step_ended(
        self, done: int, devices: Sequence[str], told: Mapping[str, int], *, here: int
    ) -> None:
        """``done`` steps are done; ``told`` after which steps the replicas on some devices are,
        ``here`` after which the coordinator's own copy of everything is.
        """
        self._replica_steps.update(told)
        there = [self._replica_steps.get(device, -1) for device in devices]
        newest = max(min(there), here)
        self._age = done - newest
        self._oldest = max(self._oldest, self._age)

    def level(self) -> ServiceLevel:
        """All of it, in figures."""
        found = self._recoveries
        return ServiceLevel(
            n_lost=sum(len(each.lost) for each in found),
            detect_seconds=max((each.silent_seconds for each in found), default=0.0),
            recover_seconds=max((each.seconds for each in found), default=0.0),
            recomputed_steps=sum(each.recomputed_steps for each in found),
            replica_age_steps=self._age if self._replicates else None,
            oldest_replica_steps=self._oldest if self._replicates else None,
        )
