"""``fleet.toml``: devices, links and chaos of an emulated fleet; docs/reference-fleet-file.md.

Presets are such files that come with the package; ``PRESETS`` names them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.core.words import suggest
from edgeweave.fleet._chaos_tables import read_chaos
from edgeweave.fleet._link_tables import read_shape
from edgeweave.fleet._tables import Table, flag, number, shortened, text, whole
from edgeweave.fleet.chaos import Chaos
from edgeweave.fleet.spec import Device, check_devices, check_links
from edgeweave.fleet.traces import read_trace
from edgeweave.net.link import Links, LinkShape, RateTrace

__all__ = ["PRESETS", "FleetDescription", "load_fleet", "load_preset"]

PRESETS = (
    "campus-lte",
    "equal-lan",
    "jetson-and-laptops",
    "lan",
    "raspberry-pi-wifi",
)
"""Names of the fleets that come with the package."""

_LARGEST_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FleetDescription:
    """An emulated fleet as a value; ``Fleet.described`` starts it."""

    devices: tuple[Device, ...]
    links: Links = field(default_factory=Links)
    chaos: Chaos = field(default_factory=Chaos)
    source: str = ""
    """Where the figures come from."""

    def __post_init__(self) -> None:
        check_devices(self.devices)
        names = [device.name for device in self.devices]
        check_links(self.links, names)
        self.chaos.check(names)


def load_fleet(path: Path) -> FleetDescription:
    """Read a fleet file; ``ConfigError`` with file, key, rule and fix if anything in it is wrong.

    A trace it names is read too; its path starts from the folder of the file.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise ConfigError(f"{path}: a fleet file has at most 1 MiB. Put traces beside it.")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: a fleet file is a file that can be read ({error}). Check the path."
        ) from error
    return _parse(content, str(path), lambda name: read_trace(path.parent / Path(name)))


def load_preset(name: str) -> FleetDescription:
    """A fleet that comes with the package.

    >>> [device.name for device in load_preset("equal-lan").devices]
    ['fast-1', 'fast-2', 'slow']
    """
    if name not in PRESETS:
        raise ConfigError(f"{name!r} is not a preset. {suggest(name, PRESETS)}")

    def no_trace(_name: str) -> RateTrace:
        raise ConfigError("a preset has no traces. Write a rate.")

    content = resources.files("edgeweave.fleet").joinpath("presets", f"{name}.toml").read_bytes()
    return _parse(content, f"preset {name}", no_trace)


def _parse(content: bytes, origin: str, load_trace: Callable[[str], RateTrace]) -> FleetDescription:
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{origin}: a fleet file is TOML in UTF-8 ({error}). Correct the line."
        ) from error

    with Table(document, origin, "") as table:
        source = table.take("source", text, "")
        seed = table.take("seed", whole, 0)
        devices = tuple(_device(each) for each in table.tables("devices"))
        names = [device.name for device in devices]
        if not names:
            raise table.refused('a fleet has at least one device. Write [[devices]], name = "a".')
        with table.table("links") as links:
            with links.table("default") as shape:
                default = read_shape(shape, LinkShape(), load_trace)
            pairs = _pairs(links.tables("pairs"), default, names, load_trace)
        chaos = read_chaos(table.tables("chaos"))
    links_of_all = Links.of(pairs, default=default, seed=seed)
    return table.checked(lambda: FleetDescription(devices, links_of_all, chaos, source))


def _device(table: Table) -> Device:
    with table:
        name = table.need("name", text, 'name = "pi-1"')
        speed = table.take("speed", number, 1.0)
        memory = table.take("memory", _memory, None)
    return table.checked(lambda: Device(name, speed, memory))


def _memory(value: object) -> str | int | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConfigError(f"expected a size (got {shortened(value)}). Write it like 512MiB.")
    return value


def _pairs(
    tables: tuple[Table, ...],
    default: LinkShape,
    devices: list[str],
    load_trace: Callable[[str], RateTrace],
) -> dict[tuple[str, str], LinkShape]:
    """Every link that is named. What it does not say is as in ``links.default``."""
    known = [COORDINATOR_NAME, *devices]
    found: dict[tuple[str, str], LinkShape] = {}
    for table in tables:
        with table:
            source = table.need("from", text, f'from = "{known[0]}"')
            target = table.need("to", text, f'to = "{known[1]}"')
            both = table.take("both", flag, False)
            shape = read_shape(table, default, load_trace)
        if source == target:
            raise table.refused(
                f"{table.place}: a link joins two devices ({source!r} is given twice). "
                "Name another."
            )
        for ends in [(source, target), (target, source)] if both else [(source, target)]:
            for name in ends:
                if name not in known:
                    raise table.refused(
                        f"{table.place}: {name!r} is not in the fleet. {suggest(name, known)}"
                    )
            if ends in found:
                raise table.refused(
                    f"{table.place}: a link is described once ({ends[0]} -> {ends[1]} again). "
                    "Leave one out."
                )
            found[ends] = shape
    return found
