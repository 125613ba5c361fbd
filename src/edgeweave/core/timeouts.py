"""How long anything waits before it gives up: one value, in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Timeouts"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds. Every wait in Edgeweave ends by one of these.

    They bound how long a fault stays unnoticed when nothing else reports it. A killed process is
    noticed far earlier, by its liveliness token, and one that stands still by its silence.
    """

    connect: float = 10.0
    """Opening a session, and the devices of a local fleet appearing."""
    request: float = 15.0
    """A short question to a device: facts, status, stop."""
    work: float = 300.0
    """A request that computes or moves weights: deploy, profile, fetch the state of a stage."""
    frame: float = 120.0
    """The next activation, gradient or result that a run is waiting for."""
    silence: float = 1.0
    """What a device that answers no pulse gets beside three steps, before it is lost. Steps are
    learnt; see ``edgeweave.train.failures.deadlines``. Longer, it outlives longer holes in a bad
    link."""
    send: float = 10.0
    """Handing one piece of a frame to the network before the link counts as stuck."""
    idle: float = 3600.0
    """A stage waiting for the coordinator to begin something, while the coordinator lives."""
    keep: float = 600.0
    """What a device computed for a coordinator that vanished, waiting for one that resumes."""
    stop: float = 5.0
    """A process or thread ending after it was told to."""
