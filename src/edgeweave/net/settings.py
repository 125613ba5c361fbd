"""How a device stands in the network: settings, the rules of safety, and what Zenoh is told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zenoh

from edgeweave.core.errors import ConfigError
from edgeweave.core.timeouts import Timeouts
from edgeweave.net.keys import check_name
from edgeweave.net.locators import Locator

__all__ = ["LEASE_SECONDS", "NetSettings", "TlsFiles", "check_exposure", "zenoh_config"]

LEASE_SECONDS: Final = 2.0

_LARGEST_MESSAGE_BYTES = 1024 * 1024
"""Zenoh refuses to put together more than this; ours are pieces of 64 kB and headers of 256 KiB."""

_QUEUED_BATCHES = 16


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for mutual TLS: each side shows a certificate that ``ca`` signed.

    Holding such a certificate is being a member of the fleet. Names in it are compared with the
    address dialled only with ``verify_name``: devices find each other by addresses that change, and
    a certificate would have to list them all.
    """

    ca: Path
    certificate: Path
    key: Path
    verify_name: bool = False


@dataclass(frozen=True, slots=True)
class NetSettings:
    """Where to listen, whom to reach, and how safely. Loopback by default."""

    fleet: str = "default"
    listen: tuple[str, ...] = ("tcp/127.0.0.1:0",)
    """Port 0 takes a free one; ``ZenohTransport.endpoints()`` tells which."""
    connect: tuple[str, ...] = ()
    """One endpoint of the fleet, usually the coordinator's, is enough to find all others."""
    scouting: bool = False
    """Find others by multicast."""
    lease_seconds: float = LEASE_SECONDS
    """A peer that was silent for so long is gone."""
    tls: TlsFiles | None = None
    insecure: bool = False
    """Leave loopback without TLS: anyone on the network can read, and join."""
    timeouts: Timeouts = field(default_factory=Timeouts)


def check_exposure(settings: NetSettings) -> tuple[tuple[Locator, ...], tuple[Locator, ...]]:
    """The parsed ``listen`` and ``connect``; ``ConfigError`` if they break a rule."""
    check_name(settings.fleet, "fleet name")
    listen = tuple(Locator.parse(text) for text in settings.listen)
    connect = tuple(Locator.parse(text) for text in settings.connect)
    for locator in (*listen, *connect):
        if locator.protocol == "tls" and settings.tls is None:
            raise ConfigError(
                f"{locator} needs certificates (none given). "
                "Pass --tls-ca, --tls-certificate and --tls-key, or use a tcp/ endpoint."
            )
        if not (locator.is_loopback or locator.protocol == "tls" or settings.insecure):
            raise ConfigError(_exposed(f"{locator} leaves this machine"))
    if settings.scouting and settings.tls is None and not settings.insecure:
        raise ConfigError(_exposed("scouting leaves this machine"))
    if settings.lease_seconds <= 0:
        raise ConfigError(f"lease_seconds is positive (got {settings.lease_seconds}).")
    for path in _files(settings.tls):
        if not path.is_file():
            raise ConfigError(
                f"a TLS file exists and can be read ({path} does not). Check its path."
            )
    return listen, connect


def zenoh_config(settings: NetSettings, listen: tuple[Locator, ...]) -> zenoh.Config:
    """What Zenoh is told; ``listen`` has its real ports already."""
    config = zenoh.Config()
    for key, value in (_values(settings, listen) | _tls_values(settings.tls)).items():
        config.insert_json5(key, json.dumps(value))
    return config


def _values(settings: NetSettings, listen: tuple[Locator, ...]) -> dict[str, object]:
    timeouts = settings.timeouts
    queue = "transport/link/tx/queue/congestion_control/block/wait_before_close"
    return {
        "mode": "peer",
        "listen/endpoints": [str(locator) for locator in listen],
        "listen/exit_on_failure": True,
        "connect/endpoints": list(settings.connect),
        "connect/exit_on_failure": True,
        "connect/timeout_ms": round(timeouts.connect * 1e3),
        "connect/retry": {
            "period_init_ms": 200,
            "period_max_ms": 2000,
            "period_increase_factor": 1.5,
        },
        "scouting/multicast/enabled": settings.scouting,
        # Gossip is how peers that know one common endpoint come to link directly.
        "scouting/gossip/enabled": True,
        "scouting/gossip/autoconnect": {"router": [], "peer": ["router", "peer"]},
        "transport/link/protocols": _protocols(settings, listen),
        "transport/link/tx/lease": round(settings.lease_seconds * 1e3),
        # Past this Zenoh closes the link, and drops what was waiting, without an error.
        queue: round(timeouts.send * 1e6),
        # Pieces that may wait: the 2 of Zenoh's default make every sender wait for every piece.
        "transport/link/tx/queue/size/data": _QUEUED_BATCHES,
        "transport/link/rx/max_message_size": _LARGEST_MESSAGE_BYTES,
        # Frames are host memory already; the pool alone would be 16 MiB.
        "transport/shared_memory/enabled": False,
        "adminspace/enabled": False,
        "plugins_loading/enabled": False,
    }


def _tls_values(tls: TlsFiles | None) -> dict[str, object]:
    if tls is None:
        return {}
    prefix = "transport/link/tls"
    return {
        f"{prefix}/enable_mtls": True,
        f"{prefix}/root_ca_certificate": str(tls.ca),
        f"{prefix}/listen_certificate": str(tls.certificate),
        f"{prefix}/listen_private_key": str(tls.key),
        f"{prefix}/connect_certificate": str(tls.certificate),
        f"{prefix}/connect_private_key": str(tls.key),
        f"{prefix}/verify_name_on_connect": tls.verify_name,
    }


def _protocols(settings: NetSettings, listen: tuple[Locator, ...]) -> list[str]:
    """With TLS and nothing insecure, no address learnt from others is dialled in the clear."""
    used = {locator.protocol for locator in listen}
    used |= {Locator.parse(text).protocol for text in settings.connect}
    if settings.tls is None:
        return ["tcp"]
    return ["tcp", "tls"] if settings.insecure else sorted(used | {"tls"})


def _files(tls: TlsFiles | None) -> tuple[Path, ...]:
    return () if tls is None else (tls.ca, tls.certificate, tls.key)


def _exposed(what: str) -> str:
    return (
        f"traffic outside loopback is encrypted ({what}, and there is no TLS). "
        "Use tls/ endpoints with --tls-ca, --tls-certificate and --tls-key, or accept that anyone "
        "on the network can read and join: --insecure."
    )
