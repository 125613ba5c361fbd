"""What planning knows: units, what they are fed, the cuts between them, devices, and all links.

A plan is a function of these values and of nothing else. Who measured or predicted them is not
known here; of codecs only what they do to bytes and seconds is. A parameter that two units share
(tied weights) counts in both of them, because they may land on two devices; a plan that keeps them
together therefore shows more memory than it uses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan._checks import require_not_negative
from edgeweave.plan.links import Coding, Link

__all__ = [
    "Costs",
    "Crossing",
    "Cut",
    "Deviation",
    "DeviceCosts",
    "Feed",
    "StageSeconds",
    "UnitFacts",
    "crossings",
    "feeding",
    "stage_seconds",
]


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """The sizes of one unit, the same on every device.

    ``activation_bytes`` is what autograd keeps for each microbatch in flight.
    """

    name: str
    parameter_bytes: int
    trainable_bytes: int
    buffer_bytes: int
    activation_bytes: int

    def __post_init__(self) -> None:
        what = f"unit {self.name!r}"
        for field in ("parameter_bytes", "trainable_bytes", "buffer_bytes", "activation_bytes"):
            _require_not_negative(getattr(self, field), f"{field} of {what}")
        if self.trainable_bytes > self.parameter_bytes:
            raise ConfigError(
                f"trainable_bytes of {what} must be part of its parameter_bytes "
                f"({self.trainable_bytes} > {self.parameter_bytes}). Measure the unit again."
            )


@dataclass(frozen=True, slots=True)
class Cut:
    """The bytes that cross the boundary between two neighbouring units, for each microbatch."""

    forward_bytes: int
    backward_bytes: int

    def __post_init__(self) -> None:
        _require_not_negative(self.forward_bytes, "forward_bytes of a cut")
        _require_not_negative(self.backward_bytes, "backward_bytes of a cut")


@dataclass(frozen=True, slots=True)
class Skip:
    """A value that skips units: the unit that makes it and all that use it, ascending.

    Its bytes are among those of every cut it crosses; ``routes`` says how it may travel.
    """

    units: tuple[int, ...]
    forward_bytes: int
    backward_bytes: int

    def __post_init__(self) -> None:
        if len(self.units) < 2 or sorted(set(self.units)) != list(self.units):
            raise ConfigError(
                f"a skip names the unit that makes it and those that use it, ascending "
                f"(got {self.units}). Measure the model again."
            )
        _require_not_negative(self.forward_bytes, "forward_bytes of a skip")
        _require_not_negative(self.backward_bytes, "backward_bytes of a skip")


@dataclass(frozen=True, slots=True)
class Feed:
    """An input or target, of so many bytes for each microbatch, and the units that use it.

    The coordinator sends it to every stage that holds one of them, once, whatever lies between.
    """

    name: str
    size_bytes: int
    units: tuple[int, ...]

    def __post_init__(self) -> None:
        _require_not_negative(self.size_bytes, f"size_bytes of {self.name!r}")


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the seconds of a device may be from what was predicted, as it is known itself.

    Standard deviations of their logarithms, by unit. ``correlation`` is that of any two of them:
    1 where the whole device is slower or faster than predicted, 0 where every unit errs for itself.
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    correlation: float

    def __post_init__(self) -> None:
        for each in (*self.forward, *self.backward):
            _require_not_negative(each, "the deviation of a unit")
        if not 0 <= self.correlation <= 1:
            raise ConfigError(
                f"the correlation of a device's errors is 0 to 1 (got {self.correlation}). "
                "Predict again."
            )


@dataclass(frozen=True, slots=True)
class DeviceCosts:
    """What each unit costs on one device, for each microbatch, and the memory it may use.

    ``memory_limit_bytes=None`` sets no limit. ``update_seconds_per_byte`` is the optimizer's step
    for each trainable byte; codecs take their seconds for each byte that is not coded yet, or not
    any more. ``deviation=None`` where the seconds were measured.
    """

    device: str
    forward_seconds: tuple[float, ...]
    backward_seconds: tuple[float, ...]
    memory_limit_bytes: int | None
    update_seconds_per_byte: float = 0.0
    deviation: Deviation | None = None
    encode_seconds_per_byte: float = 0.0
    decode_seconds_per_byte: float = 0.0
    message_seconds: float = 0.0
    """What a message takes of the device that sends or receives it, whatever its size."""

    def __post_init__(self) -> None:
        for name in ("encode_seconds_per_byte", "decode_seconds_per_byte", "message_seconds"):
            _require_not_negative(getattr(self, name), f"{name} of device {self.device!r}")
        for seconds in self.forward_seconds:
            _require_not_negative(seconds, f"forward_seconds of device {self.device!r}")
        for seconds in self.backward_seconds:
            _require_not_negative(seconds, f"backward_seconds of device {self.device!r}")
        _require_not_negative(
            self.update_seconds_per_byte, f"update_seconds_per_byte of device {self.device!r}"
        )
        _require_not_negative(
            self.memory_limit_bytes or 0, f"memory_limit_bytes of device {self.device!r}"
        )


@dataclass(frozen=True, slots=True)
class Costs:
    """Everything a plan is made from.

    ``cuts[i]`` lies between unit ``i`` and unit ``i + 1``. ``links[src][dst]`` is one direction,
    ``COORDINATOR_NAME`` an end like the devices; what is not in there is ``default_link``. Adam
    with float32 state keeps ``optimizer_bytes_per_trainable_byte=2``, SGD with momentum 1, plain
    SGD 0. Without ``feeds`` the data are where they are used, and the coordinator's links count for
    nothing. Without ``skips`` every value travels from stage to stage. Without ``coding`` plans use
    no codecs.
    """

    units: tuple[UnitFacts, ...]
    cuts: tuple[Cut, ...]
    devices: tuple[DeviceCosts, ...]
    links: dict[str, dict[str, Link]]
    default_link: Link
    optimizer_bytes_per_trainable_byte: float
    feeds: tuple[Feed, ...] = ()
    skips: tuple[Skip, ...] = ()
    coding: Coding | None = None

    def __post_init__(self) -> None:
        if not self.units or not self.devices:
            raise ConfigError(
                "a plan needs at least one unit and one device "
                f"(got {len(self.units)} and {len(self.devices)}). Join a device first."
            )
        if len(self.cuts) != len(self.units) - 1:
            raise ConfigError(
                "there is one cut between two neighbouring units "
                f"(got {len(self.cuts)} cuts for {len(self.units)} units). Measure the model again."
            )
        for device in self.devices:
            self._check_unit_counts(device)
        self._check_names()
        self._check_feeds()
        self._check_skips()
        _require_not_negative(
            self.optimizer_bytes_per_trainable_byte, "optimizer_bytes_per_trainable_byte"
        )

    def device(self, name: str) -> DeviceCosts:
        """The costs of one device."""
        for device in self.devices:
            if device.device == name:
                return device
        known = ", ".join(device.device for device in self.devices)
        raise ConfigError(f"no costs for device {name!r} (known: {known}). Measure it first.")

    def link(self, src: str, dst: str) -> Link:
        """The link from one device to another."""
        return self.links.get(src, {}).get(dst, self.default_link)

    def only(self, names: Collection[str]) -> Costs:
        """The same costs with some of the devices, in the order they have here."""
        for name in names:
            self.device(name)
        kept = tuple(device for device in self.devices if device.device in names)
        return replace(self, devices=kept)

    def with_device(self, device: DeviceCosts, links: Mapping[tuple[str, str], Link]) -> Costs:
        """The same costs with one more device, or with other costs of one, and its links."""
        known = {each.device: each for each in self.devices}
        joined = {source: dict(targets) for source, targets in self.links.items()}
        for (source, target), link in links.items():
            joined.setdefault(source, {})[target] = link
        devices = tuple({**known, device.device: device}.values())
        return replace(self, devices=devices, links=joined)

    def _check_unit_counts(self, device: DeviceCosts) -> None:
        counts = (len(device.forward_seconds), len(device.backward_seconds))
        if counts != (len(self.units), len(self.units)):
            raise ConfigError(
                f"device {device.device!r} must have a forward and a backward time for each unit "
                f"(got {counts[0]} and {counts[1]} for {len(self.units)} units). Measure it again."
            )
        deviation = device.deviation
        if deviation is not None and (len(deviation.forward), len(deviation.backward)) != counts:
            raise ConfigError(
                f"device {device.device!r} must have a deviation for each of its times "
                f"(got {len(deviation.forward)} and {len(deviation.backward)} for {counts[0]} "
                "units). Predict again."
            )

    def _check_names(self) -> None:
        names = [device.device for device in self.devices]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(
                f"device names must differ (twice: {', '.join(repeated)}). Rename one of them."
            )

    def _check_feeds(self) -> None:
        for feed in self.feeds:
            if not all(0 <= unit < len(self.units) for unit in feed.units):
                raise ConfigError(
                    f"{feed.name!r} must be used by some of the units 0 to {len(self.units) - 1} "
                    f"(got {feed.units}). Measure the model again."
                )

    def _check_skips(self) -> None:
        for skip in self.skips:
            if not 0 <= skip.units[0] < skip.units[-1] < len(self.units):
                raise ConfigError(
                    f"a skip lies between units 0 and {len(self.units) - 1} (got {skip.units}). "
                    "Measure the model again."
                )
        for index, cut in enumerate(self.cuts):
            over = [skip for skip in self.skips if skip.units[0] <= index < skip.units[-1]]
            there = sum(skip.forward_bytes for skip in over)
            back = sum(skip.backward_bytes for skip in over)
            if there > cut.forward_bytes or back > cut.backward_bytes:
                raise ConfigError(
                    f"the bytes of skips are among those of the cuts they cross (cut {index}: "
                    f"{there} of {cut.forward_bytes} there, {back} of {cut.backward_bytes} back). "
                    "Measure the model again."
                )


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """What a stage takes: forward and backward for each microbatch, update for each step."""

    forward: float
    backward: float
    update: float

    @property
    def microbatch(self) -> float:
        """Forward and backward together."""
        return self.forward + self.backward

    def stretched(self, factor: float) -> StageSeconds:
        """What a device takes that takes ``factor`` times as long."""
        return StageSeconds(factor * self.forward, factor * self.backward, factor * self.update)


def stage_seconds(costs: Costs, device: str, first: int, stop: int) -> StageSeconds:
    """What units ``first`` to ``stop - 1`` take on a device."""
    measured = costs.device(device)
    trainable_bytes = sum(unit.trainable_bytes for unit in costs.units[first:stop])
    return StageSeconds(
        forward=sum(measured.forward_seconds[first:stop]),
        backward=sum(measured.backward_seconds[first:stop]),
        update=measured.update_seconds_per_byte * trainable_bytes,
    )


@dataclass(frozen=True, slots=True)
class Crossing:
    """What one link carries for each microbatch."""

    src: str
    dst: str
    size_bytes: int
    link: Link

    @property
    def occupied_seconds(self) -> float:
        """How long it keeps the next message waiting."""
        return self.link.occupied_seconds(self.size_bytes)

    @property
    def arrival_seconds(self) -> float:
        """From when it has left until it is there, on average."""
        return self.link.arrival_seconds(self.size_bytes)

    @property
    def transfer_seconds(self) -> float:
        """Until it is there, on average."""
        return self.occupied_seconds + self.arrival_seconds

    def drawn_arrival_seconds(self, chance: float) -> float:
        """From when it has left until it is there, unluckier than a share ``chance`` of all."""
        return self.link.drawn_arrival_seconds(self.size_bytes, chance)


def feeding(costs: Costs, device: str, first: int, stop: int) -> Crossing | None:
    """What the coordinator sends to units ``first`` to ``stop - 1`` on a device, if anything."""
    sizes = [
        feed.size_bytes for feed in costs.feeds if any(first <= unit < stop for unit in feed.units)
    ]
    if not sizes:
        return None
    link = costs.link(COORDINATOR_NAME, device)
    return Crossing(COORDINATOR_NAME, device, sum(sizes), link)


def crossings(costs: Costs, src: str, dst: str, cut: int) -> tuple[Crossing, Crossing]:
    """What a cut between two devices takes: the outputs there, the gradients back."""
    return (
        Crossing(src, dst, costs.cuts[cut].forward_bytes, costs.link(src, dst)),
        Crossing(dst, src, costs.cuts[cut].backward_bytes, costs.link(dst, src)),
    )


def _require_not_negative(value: float, what: str) -> None:
    require_not_negative(value, what, fix="Measure again.")
