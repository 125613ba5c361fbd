"""The keys of a link in a fleet file -> ``LinkShape``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgeweave.core.errors import ConfigError
from edgeweave.core.units import parse_rate, parse_seconds
from edgeweave.fleet._tables import Table, flag, number, shortened, text
from edgeweave.net.link import GilbertElliott, LinkShape, RateTrace

__all__ = ["duration", "loss", "rate", "read_shape"]

_UNLIMITED = "unlimited"


def read_shape(table: Table, base: LinkShape, trace: Callable[[str], RateTrace]) -> LinkShape:
    """``base`` with what the table says; ``rate`` or ``trace`` replaces either of them."""
    if "rate" in table and "trace" in table:
        raise table.refused(f"{table.place} has a rate or a trace, not both. Leave one out.")
    limit = table.take("trace", lambda value: trace(text(value)), base.bytes_per_second)
    limit = table.take("rate", rate, limit)
    delay = table.take("delay", duration, base.delay_seconds)
    jitter = table.take("jitter", duration, base.jitter_seconds)
    lost = table.take("loss", loss, base.loss)
    up = table.take("up", flag, base.up)
    return LinkShape(limit, delay, jitter, lost, up)


def rate(value: object) -> float | RateTrace | None:
    """A reader of ``"20Mbit/s"``; ``"unlimited"`` is None."""
    if value == _UNLIMITED:
        return None
    if not isinstance(value, str):
        raise ConfigError(
            f'expected text with a unit (got {shortened(value)}). Write it like "20Mbit/s".'
        )
    return replace(LinkShape(), bytes_per_second=parse_rate(value)).bytes_per_second


def duration(value: object) -> float:
    """A reader of ``"3ms"``."""
    if not isinstance(value, str):
        raise ConfigError(
            f'expected text with a unit (got {shortened(value)}). Write it like "3ms".'
        )
    return parse_seconds(value)


def loss(value: object) -> float | GilbertElliott:
    """A reader of a share of packets, or of a table for loss in bursts."""
    if not isinstance(value, dict):
        return replace(LinkShape(), loss=number(value)).loss
    known = {"to_bad", "to_good", "loss_good", "loss_bad"}
    unknown = sorted(value.keys() - known)
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is not a key of a loss in bursts. It has {', '.join(sorted(known))}."
        )
    if not {"to_bad", "to_good"} <= value.keys():
        raise ConfigError(
            "a loss in bursts needs to_bad and to_good. Write it like "
            "{ to_bad = 0.01, to_good = 0.3 }."
        )
    return GilbertElliott(**{name: number(each) for name, each in value.items()})
