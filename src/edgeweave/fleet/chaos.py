"""Scripted trouble, as values: what happens to which device or link, when, and for how long.

    kill       the process dies (SIGKILL)                 link_down  nothing passes
    restart    it dies, and is started again              drop       packets are lost
    stop       it stands still (SIGSTOP), then goes on    rate       the link has another rate
    slow       it computes with another speed

Nothing happens here: ``chaos_runner`` lets it happen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.core.units import format_bytes
from edgeweave.core.words import suggest
from edgeweave.net.link import GilbertElliott, Links, LinkShape

__all__ = [
    "Act",
    "Chaos",
    "ChaosEvent",
    "Drop",
    "Kill",
    "LinkDown",
    "Rate",
    "Restart",
    "Slow",
    "Stop",
    "World",
]


@dataclass(frozen=True, slots=True)
class World:
    """How an emulated fleet is at one moment."""

    speeds: Mapping[str, float]
    links: Links
    stopped: frozenset[str] = frozenset()
    killed: frozenset[str] = frozenset()

    def reshaped(self, source: str, target: str, both: bool, **changes: object) -> World:
        """With a link, and for ``both`` the one back, changed in some fields of its shape."""
        links = self.links
        for ends in [(source, target), (target, source)] if both else [(source, target)]:
            shape: LinkShape = replace(links.shape(*ends), **changes)  # type: ignore[arg-type]
            links = links.with_shape(*ends, shape)
        return replace(self, links=links)


@dataclass(frozen=True, slots=True)
class Kill:
    """The process of a device dies. It does not come back."""

    device: str

    def __str__(self) -> str:
        return f"kill {self.device}"

    def act_on(self, world: World) -> World:
        return replace(world, killed=world.killed | {self.device})


@dataclass(frozen=True, slots=True)
class Restart:
    """The process of a device dies, and another is started when this is undone: as a board whose
    power failed. It comes back with nothing of the run, after the seconds that starting takes.
    """

    device: str

    def __str__(self) -> str:
        return f"restart {self.device}"

    def act_on(self, world: World) -> World:
        return replace(world, killed=world.killed | {self.device})


@dataclass(frozen=True, slots=True)
class Stop:
    """A device stands still, its links stay. Longer than its lease on the network, it is lost;
    longer than three steps and a second, too, while results are waited for.
    """

    device: str

    def __str__(self) -> str:
        return f"stop {self.device}"

    def act_on(self, world: World) -> World:
        return replace(world, stopped=world.stopped | {self.device})


@dataclass(frozen=True, slots=True)
class Slow:
    """A device computes with ``speed`` of a core, which may also be more than before."""

    device: str
    speed: float

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1:
            raise ConfigError(
                f"speed is a fraction of one core, above 0 and at most 1 (got {self.speed} for "
                f"{self.device!r}). Choose one between."
            )

    def __str__(self) -> str:
        return f"slow {self.device} to {self.speed:g}"

    def act_on(self, world: World) -> World:
        return replace(world, speeds={**world.speeds, self.device: self.speed})


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Nothing passes from ``source`` to ``target``: what is reliable waits, the rest is lost."""

    source: str
    target: str
    both: bool = False

    def __str__(self) -> str:
        return f"link down {_link(self.source, self.target, self.both)}"

    def act_on(self, world: World) -> World:
        return world.reshaped(self.source, self.target, self.both, up=False)


@dataclass(frozen=True, slots=True)
class Drop:
    """Packets are lost: a share of them, or in bursts."""

    source: str
    target: str
    loss: float | GilbertElliott
    both: bool = False

    def __post_init__(self) -> None:
        LinkShape(loss=self.loss)  # raises if that is no loss

    def __str__(self) -> str:
        bursty = isinstance(self.loss, GilbertElliott)
        share = self.loss.share if isinstance(self.loss, GilbertElliott) else self.loss
        how = f"{share:.3g}{' in bursts' if bursty else ''}"
        return f"drop {_link(self.source, self.target, self.both)} {how}"

    def act_on(self, world: World) -> World:
        return world.reshaped(self.source, self.target, self.both, loss=self.loss)


@dataclass(frozen=True, slots=True)
class Rate:
    """A link has another rate."""

    source: str
    target: str
    bytes_per_second: float
    both: bool = False

    def __post_init__(self) -> None:
        LinkShape(bytes_per_second=self.bytes_per_second)  # raises if that is no rate

    def __str__(self) -> str:
        rate = format_bytes(self.bytes_per_second)
        return f"rate {_link(self.source, self.target, self.both)} {rate}/s"

    def act_on(self, world: World) -> World:
        return world.reshaped(
            self.source, self.target, self.both, bytes_per_second=self.bytes_per_second
        )


Act = Kill | Restart | Stop | Slow | LinkDown | Drop | Rate


@dataclass(frozen=True, slots=True)
class ChaosEvent:
    """One act: when it begins, and when it is undone. Never undone if neither ``for_`` is given."""

    act: Act
    at_step: int | None = None
    at_seconds: float | None = None
    for_steps: int | None = None
    for_seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.at_step is None) == (self.at_seconds is None):
            raise self._refused("happens at_step or at_seconds, one of them", "Give one")
        if self.for_steps is not None and self.for_seconds is not None:
            raise self._refused("lasts for_steps or for_seconds, not both", "Leave one out")
        if self.at_step is not None and self.at_step < 0:
            raise self._refused("at_step is 0 or more", "Count steps from 0")
        if self.at_seconds is not None and not 0 <= self.at_seconds < math.inf:
            raise self._refused("at_seconds is 0 or more", "Count from the first step")
        if self.for_steps is not None and self.for_steps < 1:
            raise self._refused("for_steps is 1 or more", "Leave it out if it lasts")
        if self.for_seconds is not None and not 0 < self.for_seconds < math.inf:
            raise self._refused("for_seconds is above 0", "Leave it out if it lasts")
        if isinstance(self.act, Kill) and (self.for_steps or self.for_seconds):
            raise self._refused("is for good", "Leave for_steps and for_seconds out, or restart it")
        if isinstance(self.act, Restart) and not (self.for_steps or self.for_seconds):
            raise self._refused("lasts for_steps or for_seconds", "Give one, or kill it for good")

    def _refused(self, rule: str, fix: str) -> ConfigError:
        given = {
            name: value
            for name in ("at_step", "at_seconds", "for_steps", "for_seconds")
            if (value := getattr(self, name)) is not None
        }
        facts = ", ".join(f"{name} = {value}" for name, value in given.items()) or "none given"
        return ConfigError(f"chaos: {self.act}: {rule} ({facts}). {fix}.")


@dataclass(frozen=True, slots=True)
class Chaos:
    """A script of trouble for an emulated fleet. Methods return a longer script.

    ``at_step=7``: just before training step 7 begins (the first is 0, counted over the whole run;
    a run resumed after it does not see it). ``at_seconds=3``: three seconds after the first step
    began. Neither: with the first step. ``for_steps`` or ``for_seconds`` later it is undone. Each
    event happens once in the life of a fleet. Links are directed; ``both=True`` means both ways.

    >>> script = Chaos().stop("pi-1", at_step=3, for_seconds=2).kill("pi-2", at_step=7)
    >>> [str(event.act) for event in script.events]
    ['stop pi-1', 'kill pi-2']
    """

    events: tuple[ChaosEvent, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.events)

    def kill(
        self, device: str, *, at_step: int | None = None, at_seconds: float | None = None
    ) -> Chaos:
        """Kill the process of a device, for good."""
        return self.plus(Kill(device), at_step=at_step, at_seconds=at_seconds)

    def restart(
        self,
        device: str,
        *,
        at_step: int | None = None,
        at_seconds: float | None = None,
        for_steps: int | None = None,
        for_seconds: float | None = None,
    ) -> Chaos:
        """Kill the process of a device, and start it again ``for_steps`` or ``for_seconds`` later.

        ``for_steps`` only if the steps go on without it. Starting takes some seconds more; then a
        run that goes on takes it in as a newcomer, if that is worth it.
        """
        return self.plus(Restart(device), at_step, at_seconds, for_steps, for_seconds)

    def stop(
        self,
        device: str,
        *,
        at_step: int | None = None,
        at_seconds: float | None = None,
        for_steps: int | None = None,
        for_seconds: float | None = None,
    ) -> Chaos:
        """Let a device stand still. With ``for_steps`` only if the steps go on without it."""
        return self.plus(Stop(device), at_step, at_seconds, for_steps, for_seconds)

    def slow(
        self,
        device: str,
        speed: float,
        *,
        at_step: int | None = None,
        at_seconds: float | None = None,
        for_steps: int | None = None,
        for_seconds: float | None = None,
    ) -> Chaos:
        """Let a device compute with ``speed`` of a core."""
        return self.plus(Slow(device, speed), at_step, at_seconds, for_steps, for_seconds)

    def link_down(
        self,
        source: str,
        target: str,
        *,
        both: bool = False,
        at_step: int | None = None,
        at_seconds: float | None = None,
        for_steps: int | None = None,
        for_seconds: float | None = None,
    ) -> Chaos:
        """Let nothing pass from ``source`` to ``target``."""
        act = LinkDown(source, target, both)
        return self.plus(act, at_step, at_seconds, for_steps, for_seconds)

    def drop(
        self,
        source: str,
        target: str,
        loss: float | GilbertElliott,
        *,
        both: bool = False,
        at_step: int | None = None,
        at_seconds: float | None = None,
        for_steps: int | None = None,
        for_seconds: float | None = None,
    ) -> Chaos:
        """Lose a share of the packets, or bursts of them."""
        act = Drop(source, target, loss, both)
        return self.plus(act, at_step, at_seconds, for_steps, for_seconds)

    def rate(
        self,
        source: str,
        target: str,
        bytes_per_second: float,
        *,
        both: bool = False,
        at_step: int | None = None,
        at_seconds: float | None = None,
        for_steps: int | None = None,
        for_seconds: float | None = None,
    ) -> Chaos:
        """Give a link another rate."""
        act = Rate(source, target, bytes_per_second, both)
        return self.plus(act, at_step, at_seconds, for_steps, for_seconds)

    def plus(
        self,
        act: Act,
        at_step: int | None = None,
        at_seconds: float | None = None,
        for_steps: int | None = None,
        for_seconds: float | None = None,
    ) -> Chaos:
        """With one more event."""
        if at_step is None and at_seconds is None:
            at_step = 0
        event = ChaosEvent(act, at_step, at_seconds, for_steps, for_seconds)
        return Chaos((*self.events, event))

    def check(self, devices: Sequence[str]) -> None:
        """``ConfigError`` if an event is about a device or a link that this fleet does not have."""
        for event in self.events:
            names = _names(event.act)
            known = list(devices) if len(names) == 1 else [COORDINATOR_NAME, *devices]
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ConfigError(
                    f"chaos: {event.act}: {unknown[0]!r} is not in the fleet "
                    f"({', '.join(devices)}). {suggest(unknown[0], known)}"
                )
            if len(set(names)) < len(names):
                raise ConfigError(
                    f"chaos: {event.act}: a link has two ends ({names[0]} twice). Name another."
                )


def _names(act: Act) -> tuple[str, ...]:
    """The device, or the two ends of the link, that an act is about."""
    if isinstance(act, Kill | Restart | Stop | Slow):
        return (act.device,)
    return (act.source, act.target)


def _link(source: str, target: str, both: bool) -> str:
    return f"{source} {'<->' if both else '->'} {target}"
