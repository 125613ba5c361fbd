"""Opening a Zenoh session: real ports, and errors that name the endpoint and the way out."""

from __future__ import annotations

import functools
import os

import zenoh

from edgeweave.core.errors import ConfigError, FleetError
from edgeweave.core.units import format_seconds
from edgeweave.net.locators import Locator, unused_port
from edgeweave.net.settings import NetSettings, check_exposure, zenoh_config

__all__ = ["open_session"]

_MOST_PORT_TRIES = 5


def open_session(settings: NetSettings) -> tuple[zenoh.Session, tuple[Locator, ...]]:
    """Open a session on real ports: those asked for, or free ones where the port is 0."""
    listen, connect = check_exposure(settings)
    _start_log()
    tries = _MOST_PORT_TRIES if any(locator.port == 0 for locator in listen) else 1
    for left in reversed(range(tries)):
        # Zenoh tells no port it took for 0, so we look for a free one and try again if it is gone.
        real = tuple(each if each.port else each.with_port(unused_port(each)) for each in listen)
        try:
            return zenoh.open(zenoh_config(settings, real)), real
        except zenoh.ZError as error:
            if not ("Address already in use" in str(error) and left):
                raise _open_error(error, settings, real, connect) from error
    raise AssertionError("the last try returns or raises")


def _open_error(
    error: zenoh.ZError,
    settings: NetSettings,
    listen: tuple[Locator, ...],
    connect: tuple[Locator, ...],
) -> FleetError | ConfigError:
    text = str(error).split(" at /", 1)[0]
    if "Can not create a new T" in text:
        taken = next((each for each in listen if str(each) in text), listen[0])
        if "Address already in use" in text:
            return FleetError(
                f"port {taken.port} on {taken.host} is already in use (by another process). "
                "Pass another --listen or stop what listens there."
            )
        return FleetError(
            f"this machine cannot listen on {taken} ({text}). "
            "Pass a --listen address of this machine."
        )
    if "Unable to connect" in text:
        wanted = ", ".join(str(each) for each in connect)
        return FleetError(
            f"nobody answers at {wanted} (waited {format_seconds(settings.timeouts.connect)}). "
            "Check the address, that the coordinator runs, and that both sides use TLS or neither."
        )
    return ConfigError(f"Zenoh cannot start with these settings ({text}). Check --listen and TLS.")


@functools.cache
def _start_log() -> None:
    """Zenoh stays silent unless ``EDGEWEAVE_ZENOH_LOG`` names a level, such as ``debug``."""
    level = os.environ.get("EDGEWEAVE_ZENOH_LOG")
    if level:
        zenoh.init_log_from_env_or(level)
