"""Key expressions: where on the fabric anything is said. Knows names, not what travels under them.

    ew/<fleet>/<device>/<verb>                       control: requests, liveliness tokens
    ew/<fleet>/run/<run>/<term>/<stage>/<kind>       frames of a run

A name is one section of a key, so it must not hold what separates or matches sections. ``run`` and
``bulk`` stand where a device's name stands and are therefore no device names.
"""

from __future__ import annotations

import re

from edgeweave.core.errors import ConfigError

__all__ = [
    "check_device_name",
    "check_key",
    "check_name",
    "control_key",
    "control_pattern",
    "device_of",
    "frame_key",
    "frame_pattern",
]

_ROOT = "ew"
_RESERVED = frozenset({"run", "bulk"})
_FORBIDDEN = re.compile(r"[/*$#?\s\x00-\x1f\x7f]")
_LONGEST_NAME = 128


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can be one section of a key; raise ``ConfigError`` if not.

    >>> check_name("pi-1", "device name")
    'pi-1'
    """
    if not name or len(name) > _LONGEST_NAME or name.startswith("@"):
        raise ConfigError(
            f"a {what} has 1 to {_LONGEST_NAME} characters and does not begin with @ "
            f"(got {name[:40]!r}). Choose a name like pi-1."
        )
    found = _FORBIDDEN.search(name)
    if found is not None:
        raise ConfigError(
            f"a {what} holds no / * $ # ? or white space (got {name!r}, which has "
            f"{found[0]!r}). Choose a name like pi-1."
        )
    return name


def check_device_name(name: str) -> str:
    """Return ``name`` if a device may carry it: one section, and none the fabric uses itself."""
    if name in _RESERVED:
        raise ConfigError(
            f"{name!r} is not a device name (the fabric uses it in its keys). "
            "Choose a name like pi-1."
        )
    return check_name(name, "device name")


def control_key(fleet: str, device: str, verb: str) -> str:
    """The key of one verb of one device.

    >>> control_key("home", "pi-1", "deploy")
    'ew/home/pi-1/deploy'
    """
    check_name(fleet, "fleet name")
    return f"{_ROOT}/{fleet}/{check_device_name(device)}/{check_name(verb, 'verb')}"


def control_pattern(fleet: str, verb: str) -> str:
    """The pattern that matches one verb of every device.

    >>> control_pattern("home", "alive")
    'ew/home/*/alive'
    """
    return f"{_ROOT}/{check_name(fleet, 'fleet name')}/*/{check_name(verb, 'verb')}"


def frame_key(fleet: str, run: str, term: int, stage: int, kind: str) -> str:
    """The key under which the frames of one kind reach one stage (-1: the coordinator) in a term.

    >>> frame_key("home", "r1", 2, 0, "activation")
    'ew/home/run/r1/2/0/activation'
    """
    return f"{_run(fleet, run)}/{term}/{stage}/{check_name(kind, 'frame kind')}"


def frame_pattern(fleet: str, run: str, term: int, stage: int) -> str:
    """The pattern that matches the frames of every kind that reach one stage in a term.

    >>> frame_pattern("home", "r1", 2, 0)
    'ew/home/run/r1/2/0/*'
    """
    return f"{_run(fleet, run)}/{term}/{stage}/*"


def device_of(key: str) -> str:
    """The device a control key belongs to.

    >>> device_of("ew/home/pi-1/alive")
    'pi-1'
    """
    sections = key.split("/")
    if len(sections) != 4 or sections[0] != _ROOT or sections[2] in _RESERVED:
        raise ConfigError(f"a control key is ew/<fleet>/<device>/<verb> (got {key!r}).")
    return sections[2]


def check_key(fleet: str, key: str) -> str:
    """Return ``key`` if it lies inside ``fleet``: one fleet neither hears nor disturbs another."""
    prefix = f"{_ROOT}/{fleet}/"
    if not key.startswith(prefix) or "" in key.split("/"):
        raise ConfigError(
            f"keys of the fleet {fleet!r} begin with {prefix} and have no empty section "
            f"(got {key!r}). Build keys with edgeweave.net.keys."
        )
    return key


def _run(fleet: str, run: str) -> str:
    return f"{_ROOT}/{check_name(fleet, 'fleet name')}/run/{check_name(run, 'run name')}"
