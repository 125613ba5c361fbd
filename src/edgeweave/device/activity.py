"""What the compute thread of a stage does right now, for who asks from another thread.

    begin(round) -> idles | waits | works | computes | works | waits | ...

Written by the compute thread alone. Each state is one value that is replaced as a whole, so that
who reads never sees half of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple

from edgeweave.core.clock import Clock
from edgeweave.device.frames.inbox import FrameId
from edgeweave.device.messages import Pulse
from edgeweave.device.place import Place

__all__ = ["Activity"]

_GAIN: Final = 1 / 8


class _State(NamedTuple):
    doing: Literal["idles", "waits", "works", "computes"]
    kind: str
    microbatch: int
    began: float
    action: int


class Activity:
    """The present state, and what actions of each kind took: an exponentially weighted mean."""

    def __init__(
        self, assignment: Place, clock: Clock, awaited: Callable[[], FrameId | None]
    ) -> None:
        """``awaited`` tells which frame is waited for at this moment."""
        self._assignment = assignment
        self._clock = clock
        self._awaited = awaited
        self._usual: dict[str, float] = {}
        self._state = _State("works", "", -1, clock.now(), 0)

    @contextmanager
    def of(self, account: str, kind: str, microbatch: int) -> Iterator[None]:
        """The compute thread is in this account of its time: ``idle``, ``wait`` or ``compute``."""
        began, action = self._clock.now(), self._state.action
        if account == "compute":
            self._state = _State("computes", kind, microbatch, began, action + 1)
        else:
            doing: Literal["idles", "waits"] = "idles" if account == "idle" else "waits"
            self._state = _State(doing, kind, microbatch, began, action)
        try:
            yield
        finally:
            ended = self._clock.now()
            if account == "compute":
                usual = self._usual.get(kind, ended - began)
                self._usual[kind] = usual + _GAIN * (ended - began - usual)
            self._state = _State("works", kind, microbatch, ended, self._state.action)

    def pulse(self, rounds: int) -> Pulse:
        """The state as a message."""
        state, awaited = self._state, self._awaited()
        doing = state.doing
        if doing == "waits" and awaited is None:
            doing = "works"  # a wait in several parts, between two of them
        return Pulse(
            run=self._assignment.run,
            rounds=rounds,
            doing=doing,
            what=self._what(state, awaited if doing in ("idles", "waits") else None),
            seconds=max(self._clock.now() - state.began, 0.0),
            action=state.action,
            usual_seconds=self._usual.get(state.kind) if doing == "computes" else None,
        )

    def _what(self, state: _State, awaited: FrameId | None) -> str:
        if awaited is not None:
            sender = self._assignment.peer(awaited.sender)
            return f"the {awaited.kind} of microbatch {awaited.microbatch} from {sender}"
        if state.microbatch < 0:
            return f"the {state.kind}"
        return f"the {state.kind} of microbatch {state.microbatch}"
