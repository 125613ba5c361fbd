"""The plan: which consecutive units run on which device, and what that is predicted to take.

A plan is a frozen value and travels as JSON. It knows nothing of how it was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edgeweave.core.errors import ConfigError, FormatError
from edgeweave.plan._checks import require_not_negative
from edgeweave.plan.coding import LinkCodec
from edgeweave.plan.replication import Replication
from edgeweave.plan.routes import SKIPS, Skips
from edgeweave.plan.schedule import (
    SCHEDULE_NAMES,
    check_weight_aggregation,
    is_flushed,
    window,
)

__all__ = ["Plan", "Stage", "check_stages", "from_json", "steps_to_settle", "to_json"]

_FORMAT = "edgeweave/plan"
_VERSION = 4
_USUAL_REPLICATION = Replication()


@dataclass(frozen=True, slots=True)
class Stage:
    """Units ``first_unit`` to ``stop_unit - 1`` on one device, with seconds for each microbatch."""

    device: str
    first_unit: int
    stop_unit: int
    forward_seconds: float
    backward_seconds: float
    memory_bytes: int

    def __post_init__(self) -> None:
        if not self.device:
            raise ConfigError("a stage must name its device (got ''). Name one.")
        if not 0 <= self.first_unit < self.stop_unit:
            raise ConfigError(
                f"the stage on {self.device!r} must hold at least one unit "
                f"(got {self.first_unit} to {self.stop_unit}). Plan again."
            )
        for field in ("forward_seconds", "backward_seconds", "memory_bytes"):
            _require_not_negative(getattr(self, field), f"{field} of the stage on {self.device!r}")


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in the order of the pipeline, and how a step runs through them.

    ``period_seconds`` is what a microbatch takes in the steady state, the largest of the stages'
    computing, the links' transfers, and the time that feeding a stage keeps a link busy.
    ``step_seconds`` is a whole step as simulated, with the pipeline's filling and draining and the
    optimizer's step. With ``skips="direct"`` values go past the stages that do not use them. Links
    that are not among ``codecs`` carry values as they are. With ``weight_aggregation=k``, which
    goes with ``async-1f1b``, every ``k`` updates weights become the mean of their last versions.
    ``replication`` says how often states are copied.
    """

    stages: tuple[Stage, ...]
    schedule: str
    n_microbatches: int
    extra_in_flight: int
    period_seconds: float
    step_seconds: float
    skips: Skips = "relayed"
    codecs: tuple[LinkCodec, ...] = ()
    replication: Replication = _USUAL_REPLICATION
    weight_aggregation: int | None = None

    def __post_init__(self) -> None:
        check_stages(self.stages)
        self._check_codecs()
        if self.schedule not in SCHEDULE_NAMES:
            raise ConfigError(
                f"unknown schedule {self.schedule!r} (known: {', '.join(SCHEDULE_NAMES)}). "
                "Choose one."
            )
        check_weight_aggregation(self.weight_aggregation, self.schedule)
        if self.skips not in SKIPS:
            raise ConfigError(
                f"skips of a plan are {' or '.join(SKIPS)} (got {self.skips!r}). Plan again."
            )
        if self.n_microbatches < 1:
            raise ConfigError(
                f"n_microbatches must be positive (got {self.n_microbatches}). Use at least one."
            )
        for field in ("extra_in_flight", "period_seconds", "step_seconds"):
            _require_not_negative(getattr(self, field), f"{field} of a plan")

    @property
    def bounds(self) -> tuple[int, ...]:
        """Stage ``k`` holds units ``bounds[k]`` to ``bounds[k + 1] - 1``."""
        return (0, *(stage.stop_unit for stage in self.stages))

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices in the order of the pipeline."""
        return tuple(stage.device for stage in self.stages)

    def _check_codecs(self) -> None:
        ends = [codec.ends for codec in self.codecs]
        strangers = {name for pair in ends for name in pair} - set(self.devices)
        if strangers or len(set(ends)) != len(ends):
            shown = ", ".join(f"{source} -> {target}" for source, target in ends)
            raise ConfigError(
                f"a plan has one codec for a link between two of its devices (got {shown}). "
                "Plan again."
            )


def check_stages(stages: Sequence[Stage]) -> None:
    """``ConfigError`` unless these hold every unit from the first on, each on a device of its own.

    >>> check_stages([])
    Traceback (most recent call last):
    edgeweave.core.errors.ConfigError: a plan must have a stage (got none). Plan again.
    """
    if not stages:
        raise ConfigError("a plan must have a stage (got none). Plan again.")
    devices = [stage.device for stage in stages]
    if len(set(devices)) != len(devices):
        raise ConfigError(f"a device holds one stage (got {', '.join(devices)}). Plan again.")
    expected = 0
    for index, stage in enumerate(stages):
        if stage.first_unit != expected:
            raise ConfigError(
                f"stage {index} must begin at unit {expected} (got {stage.first_unit}). Plan again."
            )
        expected = stage.stop_unit


def steps_to_settle(plan: Plan) -> int:
    """How many steps at a run's begin, and at its end, are not like those in the middle.

    None with a flush. Without one, everybody has less to wait for as long as some of the
    coordinator's window is empty.
    """
    if is_flushed(plan.schedule):
        return 0
    return -(-window(len(plan.stages), plan.extra_in_flight) // plan.n_microbatches)


class _Header(msgspec.Struct, frozen=True):
    format: str
    version: int


class _Document(_Header, frozen=True, forbid_unknown_fields=True):
    plan: Plan


def to_json(plan: Plan) -> bytes:
    """The plan as a JSON document that names its format and version."""
    return msgspec.json.encode(_Document(format=_FORMAT, version=_VERSION, plan=plan))


def from_json(data: bytes) -> Plan:
    """Read what ``to_json`` wrote; anything else is refused with a ``FormatError``.

    >>> from_json(b"[]")
    Traceback (most recent call last):
    edgeweave.core.errors.FormatError: not a plan (Expected `object`, got `array`). Save it again.
    """
    try:
        header = msgspec.json.decode(data, type=_Header)
        if (header.format, header.version) != (_FORMAT, _VERSION):
            raise FormatError(
                f"not a plan that this package reads (got {header.format!r} version "
                f"{header.version}, reads {_FORMAT!r} version {_VERSION}). Plan again."
            )
        return msgspec.json.decode(data, type=_Document).plan
    except (msgspec.MsgspecError, ConfigError, ValueError, RecursionError) as error:
        raise FormatError(f"not a plan ({error}). Save it again.") from error


def _require_not_negative(value: float, what: str) -> None:
    require_not_negative(value, what, fix="Plan again.")
