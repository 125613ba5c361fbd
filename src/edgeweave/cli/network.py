"""Options of the network -> ``NetSettings``; and the line that others paste to join.

Where nothing is said, an address is chosen and the reason is told.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeweave.core.errors import ConfigError
from edgeweave.core.timeouts import Timeouts
from edgeweave.net import NetSettings, TlsFiles
from edgeweave.net.locators import Locator

__all__ = ["COORDINATOR_PORT", "Network", "join_lines", "split_list"]

COORDINATOR_PORT = 7447
"""Where a coordinator listens if nothing is said, so that devices find it again. Zenoh's own."""


@dataclass(frozen=True, slots=True)
class Network:
    """What the command line says about the network."""

    fleet: str = "default"
    connect: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    scout: bool = False
    insecure: bool = False
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    def tls(self) -> TlsFiles | None:
        """The certificates, all three or none."""
        files = (self.tls_ca, self.tls_certificate, self.tls_key)
        ca, certificate, key = files
        if ca is None and certificate is None and key is None:
            return None
        if ca is None or certificate is None or key is None:
            given = sum(file is not None for file in files)
            raise ConfigError(
                "--tls-ca, --tls-certificate and --tls-key come together "
                f"({given} of 3 given). Pass all three."
            )
        return TlsFiles(ca, certificate, key)

    def listens(self, port: int) -> tuple[tuple[str, ...], str]:
        """Where to listen, and why."""
        if self.listen:
            return self.listen, "as asked"
        protocol = "tcp" if self.tls() is None else "tls"
        outside = not all(Locator.parse(text).is_loopback for text in self.connect)
        if self.scout or outside:
            why = "devices talk to each other directly, so others must reach this one"
            return (f"{protocol}/0.0.0.0:{port}",), why
        return (f"{protocol}/127.0.0.1:{port}",), "loopback unless told otherwise"

    def settings(self, *, port: int = 0, timeouts: Timeouts | None = None) -> NetSettings:
        """The same for the network."""
        listen, _why = self.listens(port)
        return NetSettings(
            fleet=self.fleet,
            listen=listen,
            connect=self.connect,
            scouting=self.scout,
            tls=self.tls(),
            insecure=self.insecure,
            timeouts=timeouts or Timeouts(),
        )


def join_lines(network: Network, endpoints: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The command to paste on each device; one for any device if no ``names`` are wanted.

    Devices meet where the network says, or else at ``endpoints``, which may be gone after the run.
    """
    words = ["edgeweave", "join"]
    meeting = [*network.connect, *endpoints]
    if meeting:
        words += ["--connect", meeting[0]]
    if network.fleet != "default":
        words += ["--fleet", network.fleet]
    if network.tls() is not None:
        words += [
            "--tls-ca",
            "ca.pem",
            "--tls-certificate",
            "device.pem",
            "--tls-key",
            "device.key",
        ]
    if network.insecure:
        words.append("--insecure")
    if not names:
        return (shlex.join(words),)
    return tuple(shlex.join([*words, "--name", name]) for name in names)


def split_list(values: Sequence[str] | None) -> tuple[str, ...]:
    """Values of a repeated option, each of which may hold several, separated by commas.

    >>> split_list(["tcp/10.0.0.5:7447,tcp/10.0.0.6:7447"])
    ('tcp/10.0.0.5:7447', 'tcp/10.0.0.6:7447')
    """
    return tuple(
        part.strip() for value in values or () for part in value.split(",") if part.strip()
    )
