"""Probes that are kept: one file for each device and its facts, or memory alone.

A file that cannot be read counts as none, one that cannot be written is a warning: then the device
is probed again another time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgeweave.core.errors import FormatError
from edgeweave.device.whole_files import write_whole
from edgeweave.predict.facts import DeviceFacts
from edgeweave.predict.probe import Probe

__all__ = ["ProbeCache", "user_cache_directory"]

_log = logging.getLogger(__name__)


def user_cache_directory(environment: Mapping[str, str], home: Path) -> Path:
    """Where this user's programs keep what they can make again (XDG base directories).

    >>> str(user_cache_directory({"XDG_CACHE_HOME": "/var/tmp"}, Path("/home/pi")))
    '/var/tmp/edgeweave'
    """
    told = Path(environment.get("XDG_CACHE_HOME", ""))
    return (told if told.is_absolute() else home / ".cache") / "edgeweave"


class ProbeCache:
    """The probes of one device, by its facts. ``directory=None`` keeps them while this lives."""

    def __init__(self, device: str, directory: Path | None) -> None:
        self._device, self._directory = device, directory
        self._kept: dict[DeviceFacts, Probe] = {}

    def load(self, facts: DeviceFacts) -> Probe | None:
        """The probe of a device with these facts, if one is kept and sound."""
        path = self._path(facts)
        if facts in self._kept or path is None or not path.exists():
            return self._kept.get(facts)
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Probe)
            found.check()
        except (OSError, UnicodeDecodeError, msgspec.MsgspecError, FormatError) as error:
            _log.warning("%s is probed again: %s is no probe (%s)", self._device, path, error)
            return None
        return found if found.facts == facts else None

    def keep(self, probe: Probe) -> None:
        """Keep it; in its file all of it appears at once."""
        self._kept[probe.facts] = probe
        path = self._path(probe.facts)
        if path is None:
            return
        try:
            write_whole(path, msgspec.json.encode(probe))
        except OSError as error:
            _log.warning("%s's probe is kept in memory alone (%s)", self._device, error)

    def _path(self, facts: DeviceFacts) -> Path | None:
        if self._directory is None:
            return None
        return self._directory / f"probe-{self._device}-{facts.digest()}.json"
