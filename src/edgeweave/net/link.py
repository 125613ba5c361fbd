"""What emulated links are like, as values: rate, delay, jitter and loss of every direction.

Knows no transport and no clock; ``edgeweave.net.link_model`` says what follows for a message.
Everything here can be compared, hashed, and written as JSON by msgspec.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME, COORDINATOR_PREFIX
from edgeweave.net.keys import check_device_name

__all__ = [
    "GilbertElliott",
    "LinkShape",
    "Links",
    "RateTrace",
    "link_name",
]


def link_name(device: str) -> str:
    """The name under which ``Links`` know whoever is called ``device`` on the fabric."""
    return COORDINATOR_NAME if device.startswith(COORDINATOR_PREFIX) else device


def _check_range(what: str, value: float, least: float, most: float = math.inf) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        rule = f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
        raise ConfigError(f"{what} is {rule} (got {value}).")


@dataclass(frozen=True, slots=True)
class GilbertElliott:
    """Loss in bursts: a good and a bad state, each with its own share of lost packets.

    Before each packet the state changes with probability ``to_bad`` or ``to_good``; a stay in the
    bad state lasts ``1 / to_good`` packets on average.
    """

    to_bad: float
    to_good: float
    loss_good: float = 0.0
    loss_bad: float = 1.0

    def __post_init__(self) -> None:
        for name in ("to_bad", "to_good", "loss_good", "loss_bad"):
            _check_range(f"{name} of a Gilbert-Elliott loss", getattr(self, name), 0.0, 1.0)
        if self.to_good == 0:
            raise ConfigError(
                "a Gilbert-Elliott loss leaves its bad state again (to_good is 0). "
                "Give to_good, or up=False for a link that is down."
            )
        if self.share >= 1:
            raise ConfigError(
                f"a link loses less than everything (lost in the long run: {self.share:g}). "
                "Give a smaller loss, or up=False for a link that is down."
            )

    @property
    def share(self) -> float:
        """The share of packets lost in the long run."""
        bad = self.to_bad / (self.to_bad + self.to_good)
        return bad * self.loss_bad + (1 - bad) * self.loss_good


@dataclass(frozen=True, slots=True)
class RateTrace:
    """A rate that changes over time, and begins anew when it ends.

    >>> RateTrace(seconds=(0.0, 2.0), bytes_per_second=(1e6, 5e5), duration_seconds=3.0).mean
    833333.3333333334
    """

    seconds: tuple[float, ...]
    """Beginnings of the pieces: 0.0 first, increasing."""
    bytes_per_second: tuple[float, ...]
    """The rate of each piece: 0 or more, and not 0 in all of them."""
    duration_seconds: float
    """When it begins anew."""

    def __post_init__(self) -> None:
        if len(self.seconds) != len(self.bytes_per_second) or not self.seconds:
            raise ConfigError(
                "a rate trace has one beginning for each rate, and at least one "
                f"(got {len(self.seconds)} and {len(self.bytes_per_second)})."
            )
        if self.seconds[0] != 0 or not all(a < b for a, b in pairwise(self.seconds)):
            raise ConfigError("the pieces of a rate trace begin at 0 s and one after another.")
        if not (math.isfinite(self.duration_seconds) and self.duration_seconds > self.seconds[-1]):
            raise ConfigError(
                "a rate trace ends after its last piece has begun (it ends at "
                f"{self.duration_seconds:g} s, its last piece begins at {self.seconds[-1]:g} s)."
            )
        for rate in self.bytes_per_second:
            _check_range("bytes_per_second in a rate trace", rate, 0.0)
        if not any(self.bytes_per_second):
            raise ConfigError(
                "a rate trace lets something pass (all its rates are 0). "
                "Give up=False for a link that is down."
            )

    @property
    def mean(self) -> float:
        """Bytes per second over the whole trace."""
        stops = (*self.seconds[1:], self.duration_seconds)
        spans = zip(self.seconds, stops, self.bytes_per_second, strict=True)
        return sum((stop - start) * rate for start, stop, rate in spans) / self.duration_seconds


@dataclass(frozen=True, slots=True)
class LinkShape:
    """One direction between two devices. The default holds nothing back."""

    bytes_per_second: float | RateTrace | None = None
    """What the medium carries, headers of packets included; None: not limited."""
    delay_seconds: float = 0.0
    """One way."""
    jitter_seconds: float = 0.0
    """Standard deviation of what is added to the delay; the sum is never negative."""
    loss: float | GilbertElliott = 0.0
    """Share of packets lost. Reliable traffic sends them again, and pays in time."""
    up: bool = True
    """False: nothing passes until it is True again."""

    def __post_init__(self) -> None:
        if isinstance(self.bytes_per_second, float | int):
            rate = self.bytes_per_second
            if not (math.isfinite(rate) and rate > 0):
                raise ConfigError(
                    f"bytes_per_second of a link is above 0 (got {rate}). "
                    "Give None for no limit, or up=False for a link that is down."
                )
        _check_range("delay_seconds of a link", self.delay_seconds, 0.0)
        _check_range("jitter_seconds of a link", self.jitter_seconds, 0.0)
        if isinstance(self.loss, float | int) and not 0 <= self.loss < 1:
            raise ConfigError(
                f"loss of a link is a share from 0 to below 1 (got {self.loss}). "
                "Give up=False for a link that is down."
            )

    @property
    def is_plain(self) -> bool:
        """Whether it holds nothing back, so that messages may pass it by."""
        return self == _PLAIN


_PLAIN = LinkShape()


@dataclass(frozen=True, slots=True)
class Links:
    """Every directed link of a fleet. What is not among ``pairs`` is like ``default``.

    >>> slow = LinkShape(bytes_per_second=2.5e6, delay_seconds=0.02)
    >>> links = Links.of({("pi-1", "pi-2"): slow}, seed=7)
    >>> links.shape("pi-1", "pi-2").delay_seconds, links.shape("pi-2", "pi-1").is_plain
    (0.02, True)
    """

    default: LinkShape = _PLAIN
    pairs: tuple[tuple[str, str, LinkShape], ...] = ()
    """(source, target, shape), sorted whatever order they were given in."""
    seed: int = 0
    """With the names of source and target it decides what is lost and how much delays vary."""

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.pairs, key=_ends))
        for source, target, _shape in ordered:
            check_device_name(source)
            check_device_name(target)
            if source == target:
                raise ConfigError(f"a link joins two devices ({source!r} is given twice).")
        for one, other in pairwise(ordered):
            if _ends(one) == _ends(other):
                raise ConfigError(f"each link has one shape ({one[0]} -> {one[1]} has several).")
        if self.seed < 0:
            raise ConfigError(f"the seed of links is 0 or more (got {self.seed}).")
        object.__setattr__(self, "pairs", ordered)

    @classmethod
    def of(
        cls,
        pairs: Mapping[tuple[str, str], LinkShape],
        *,
        default: LinkShape = _PLAIN,
        seed: int = 0,
    ) -> Self:
        """Links from a mapping of (source, target)."""
        return cls(default, _triples(pairs.items()), seed)

    def shape(self, source: str, target: str) -> LinkShape:
        """What the way from ``source`` to ``target`` is like; a device's way to itself is plain."""
        if source == target:
            return _PLAIN
        place = bisect_left(self.pairs, (source, target), key=_ends)
        if place < len(self.pairs) and _ends(self.pairs[place]) == (source, target):
            return self.pairs[place][2]
        return self.default

    def with_shape(self, source: str, target: str, shape: LinkShape) -> Links:
        """The same links, but for the way from ``source`` to ``target``."""
        others = tuple(pair for pair in self.pairs if _ends(pair) != (source, target))
        return replace(self, pairs=(*others, (source, target, shape)))


def _triples(
    items: Iterable[tuple[tuple[str, str], LinkShape]],
) -> tuple[tuple[str, str, LinkShape], ...]:
    return tuple((source, target, shape) for (source, target), shape in items)


def _ends(pair: tuple[str, str, LinkShape]) -> tuple[str, str]:
    return pair[0], pair[1]
