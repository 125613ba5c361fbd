"""``[[chaos]]`` of a fleet file -> ``Chaos``."""

from __future__ import annotations

from collections.abc import Callable

from edgeweave.core.errors import ConfigError
from edgeweave.core.words import suggest
from edgeweave.fleet._link_tables import loss, rate
from edgeweave.fleet._tables import Table, flag, number, text, whole
from edgeweave.fleet.chaos import Act, Chaos, Drop, Kill, LinkDown, Rate, Restart, Slow, Stop
from edgeweave.net.link import RateTrace

__all__ = ["read_chaos"]


def read_chaos(tables: tuple[Table, ...]) -> Chaos:
    """A script from its tables, in their order."""
    chaos = Chaos()
    for table in tables:
        with table:
            act = _ACTS[table.need("event", _kind, 'event = "kill"')](table)
            times = (
                table.take("at_step", whole, None),
                table.take("at_seconds", number, None),
                table.take("for_steps", whole, None),
                table.take("for_seconds", number, None),
            )
        chaos = table.checked(lambda: chaos.plus(act, *times))  # noqa: B023 - called at once
    return chaos


def _kind(value: object) -> str:
    if not isinstance(value, str) or value not in _ACTS:
        raise ConfigError(f"{value!r} is not an event. {suggest(str(value), _ACTS)}")
    return value


def _device(table: Table) -> str:
    return table.need("device", text, 'device = "pi-1"')


def _ends(table: Table) -> tuple[str, str, bool]:
    source = table.need("from", text, 'from = "pi-1"')
    target = table.need("to", text, 'to = "pi-2"')
    return source, target, table.take("both", flag, False)


def _kill(table: Table) -> Act:
    return Kill(_device(table))


def _restart(table: Table) -> Act:
    return Restart(_device(table))


def _stop(table: Table) -> Act:
    return Stop(_device(table))


def _slow(table: Table) -> Act:
    device, speed = _device(table), table.need("speed", number, "speed = 0.2")
    return table.checked(lambda: Slow(device, speed))


def _link_down(table: Table) -> Act:
    return LinkDown(*_ends(table))


def _drop(table: Table) -> Act:
    source, target, both = _ends(table)
    return Drop(source, target, table.need("loss", loss, "loss = 0.2"), both)


def _rate(table: Table) -> Act:
    source, target, both = _ends(table)
    return Rate(source, target, table.need("rate", _limit, 'rate = "1Mbit/s"'), both)


def _limit(value: object) -> float:
    limit = rate(value)
    if limit is None or isinstance(limit, RateTrace):
        raise ConfigError('an event sets a rate (got "unlimited"). Write it like "1Mbit/s".')
    return limit


_ACTS: dict[str, Callable[[Table], Act]] = {
    "kill": _kill,
    "restart": _restart,
    "stop": _stop,
    "slow": _slow,
    "link_down": _link_down,
    "drop": _drop,
    "rate": _rate,
}
