"""What is said about a plan: values, and the same as sentences. ``explain`` finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.core.units import format_seconds
from edgeweave.plan.uncertainty import Interval

__all__ = ["DeviceShare", "Explanation", "LeftOut", "likely"]

_NOTHING = 0.005
"""A change by less is none."""


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """What one device does in a step, and the step of the best plan without it.

    ``transfer_seconds`` are those in which links carry what it sends or gets, the coordinator's
    among them; both ends of a link count it. ``step_seconds_without`` is ``None`` if there is no
    plan without it; ``slowdown_without`` is that step relative to the present one, minus one.
    Intervals are ``None`` where everything was measured.
    """

    device: str
    first_unit: int
    stop_unit: int
    units_share: float
    compute_seconds: float
    transfer_seconds: float
    idle_share: float
    memory_bytes: int
    memory_limit_bytes: int | None
    step_seconds_without: float | None
    slowdown_without: float | None
    compute_interval: Interval | None = None
    idle_interval: Interval | None = None
    slowdown_interval: Interval | None = None

    def line(self) -> str:
        """One sentence for a person: what the device adds."""
        if self.step_seconds_without is None or self.slowdown_without is None:
            return f"There is no plan without {self.device}."
        begin = f"Without {self.device} a step takes {format_seconds(self.step_seconds_without)}"
        share = _share(self.slowdown_without, self.slowdown_interval)
        if self.slowdown_without >= _NOTHING:
            return f"{begin}, {share} longer."
        if self.slowdown_without <= -_NOTHING:
            return f"{begin}: it costs you {share}."
        return f"{begin}, as long as with it."


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A device that the plan does not use, and the step of the best plan that adds it.

    Where that makes more than ``MAX_DEVICES``, it is the best plan that may use it beside them.
    ``slowdown`` is that step relative to the present one, minus one: 0.12 is 12 % slower. Both are
    ``None`` if no plan uses it beside the others. ``slowdown_interval`` is ``None`` where
    everything was measured.
    """

    device: str
    step_seconds_with: float | None
    slowdown: float | None
    slowdown_interval: Interval | None = None

    def line(self) -> str:
        """One sentence for a person."""
        if self.slowdown is None:
            return f"{self.device} cannot be added to these devices, left out."
        share = _share(self.slowdown, self.slowdown_interval)
        if self.slowdown >= _NOTHING:
            return f"{self.device} would slow you by {share}, left out."
        if self.slowdown <= -_NOTHING:
            return f"{self.device} would shorten a step by {share}, but this plan leaves it out."
        return f"{self.device} would change nothing, left out."


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answers about one plan, as plain data.

    ``bottleneck`` is a device (``pi-3``) or one direction of a link (``pi-1 -> pi-2``,
    ``coordinator -> pi-1``), and ``bottleneck_seconds`` what it takes for each microbatch. Where
    times were predicted, intervals hold nine of ten draws from what they may be, and
    ``bottleneck_chance`` is the share of draws in which it is the bottleneck; else they are
    ``None``. How often they hold what is measured: docs/reference-benchmarks.md, ``planner``.
    """

    n_microbatches: int
    step_seconds: float
    bottleneck: str
    bottleneck_kind: Literal["device", "link"]
    bottleneck_seconds: float
    devices: tuple[DeviceShare, ...]
    left_out: tuple[LeftOut, ...]
    best_single_device: str | None
    best_single_seconds: float | None
    step_interval: Interval | None = None
    bottleneck_chance: float | None = None
    speedup_interval: Interval | None = None
    direct: tuple[str, ...] = ()
    """Ways past stages, ``pi-1 -> pi-3 (2.0 MiB)``: what goes there for each microbatch."""
    codecs: tuple[str, ...] = ()
    """Links that code, ``pi-1 -> pi-2 (8 bits)``: what a value has there."""

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the best single device; ``None`` if none can do it alone."""
        if self.best_single_seconds is None or self.step_seconds == 0:
            return None
        return self.best_single_seconds / self.step_seconds

    def lines(self) -> tuple[str, ...]:
        """Sentences for a person, the most important first."""
        chance = self.bottleneck_chance
        surely = "" if chance is None else f" (in {_percent(chance)} of what may be)"
        first = (
            f"A step of {self.n_microbatches} microbatches takes "
            f"{likely(self.step_seconds, self.step_interval)}; the bottleneck is "
            f"{self._bottleneck()} with {format_seconds(self.bottleneck_seconds)} for each "
            f"microbatch{surely}."
        )
        shares = (share.line() for share in self.devices)
        left_out = (device.line() for device in self.left_out)
        lines = (
            first,
            self._single_line(),
            *self._direct_lines(),
            *self._codec_lines(),
            *shares,
            *left_out,
        )
        return (*lines, *self._caveat())

    def _direct_lines(self) -> tuple[str, ...]:
        if not self.direct:
            return ()
        return (f"Skip connections go past stages that do not use them: {', '.join(self.direct)}.",)

    def _codec_lines(self) -> tuple[str, ...]:
        if not self.codecs:
            return ()
        return (f"Values are coded on their way: {', '.join(self.codecs)}.",)

    def _bottleneck(self) -> str:
        if self.bottleneck_kind == "device":
            return self.bottleneck
        source, _, target = self.bottleneck.partition(" -> ")
        source = f"the {source}" if source == COORDINATOR_NAME else source
        return f"the link from {source} to {target}"

    def _single_line(self) -> str:
        if self.best_single_seconds is None:
            return "No device can do it alone: the model does not fit."
        alone = f"{self.best_single_device} alone takes {format_seconds(self.best_single_seconds)}"
        if len(self.devices) == 1 and self.devices[0].device == self.best_single_device:
            return f"{alone}; that is this plan."
        if self.speedup is None or 1 - _NOTHING <= self.speedup <= 1 + _NOTHING:
            return f"{alone}; this plan takes as long."
        if self.speedup > 1:
            between = self.speedup_interval
            maybe = "" if between is None else f" ({between.low:.2f} to {between.high:.2f})"
            return f"{alone}; this plan is {self.speedup:.2f}{maybe} times as fast."
        return f"{alone}; this plan is SLOWER, {1 / self.speedup:.2f} times as long."

    def _caveat(self) -> tuple[str, ...]:
        if self.step_interval is None:
            return ()
        return (
            "Times were predicted, not measured. Brackets are those of nine of ten cases, but a "
            "plan suffers most from the errors it was made from: expect six of ten.",
        )


def likely(seconds: float, interval: Interval | None) -> str:
    """Seconds, and where they probably lie if that is not certain.

    >>> likely(0.2, Interval(0.15, 0.26))
    '200 ms (150 ms to 260 ms)'
    """
    if interval is None:
        return format_seconds(seconds)
    between = f"{format_seconds(interval.low)} to {format_seconds(interval.high)}"
    return f"{format_seconds(seconds)} ({between})"


def _share(change: float, interval: Interval | None) -> str:
    """A change without its sign; the ends of its interval have the sign that it had."""
    if interval is None:
        return _percent(abs(change))
    ends = (interval.low, interval.high) if change > 0 else (-interval.high, -interval.low)
    return f"{_percent(abs(change))} ({ends[0] * 100:z.0f} to {ends[1] * 100:z.0f} %)"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
