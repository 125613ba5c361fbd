"""Members that were away or moved to another device, in the order in which it was noticed."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Absence", "Absences", "Move"]


@dataclass(frozen=True, slots=True)
class Absence:
    """A device that was away: from the first step without it to the first one with its slice again,
    there or where it had moved (``Move``).
    """

    device: str
    first_step: int
    stop_step: int | None = None
    """None: it has not come back."""

    def line(self) -> str:
        """A sentence for a person."""
        back = "and has not come back" if self.stop_step is None else f"to step {self.stop_step}"
        return f"{self.device} was away from step {self.first_step} {back}: a mask."


@dataclass(frozen=True, slots=True)
class Move:
    """A slice that went from a device that stayed away to one that had none."""

    device: str
    """Where it was."""
    to: str
    step: int
    """The first one with a part for the slice again."""

    def line(self) -> str:
        """A sentence for a person."""
        return (
            f"the slice of {self.device} moved to {self.to}, which has a part from step "
            f"{self.step} on, with the newest copy of its weights."
        )


class Absences:
    """All of one run. Guarded by whoever owns it."""

    def __init__(self) -> None:
        self.absences: tuple[Absence, ...] = ()
        self.moves: tuple[Move, ...] = ()

    def begin(self, device: str, step: int) -> None:
        """A device with a slice has no part from this step on."""
        self.absences = (*self.absences, Absence(device, step))

    def end(self, device: str, step: int) -> None:
        """Its slice has one again."""
        self.absences = tuple(
            replace(each, stop_step=step)
            if each.device == device and each.stop_step is None
            else each
            for each in self.absences
        )

    def move(self, device: str, to: str, step: int) -> None:
        """The same, on another device."""
        self.end(device, step)
        self.moves = (*self.moves, Move(device, to, step))
