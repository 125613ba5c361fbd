"""``ip``, ``tc``, ``nsenter``, ``unshare``: whether they and the kernel can, and calling them."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edgeweave.core.errors import ConfigError, FleetError

__all__ = ["Kernel", "NamespaceHolder", "batch", "look", "run"]

_TOOLS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
_DEADLINE_SECONDS = 20.0
_WAY_OUT = "or leave kernel mode: emulated links need none of it."
_HTB = (
    "qdisc add dev lo root handle 1: htb",
    "class add dev lo parent 1: classid 1:1 htb rate 1mbit",
    "filter add dev lo parent 1: protocol ip prio 1 u32 match ip dst 192.0.2.1/32 flowid 1:1",
)
_FAILED = re.compile(r"Command failed .*:(\d+)$")
_NETEM = ("qdisc add dev lo root netem delay 1ms",)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What this kernel shapes with, beside the rates that kernel mode cannot do without."""

    netem: str
    """Why there is no ``netem``, so no delay, jitter and loss; empty if there is."""


def look() -> Kernel:
    """Find out what this machine can; ``ConfigError`` naming what kernel mode lacks.

    Each trial runs in a network namespace that ends with it.
    """
    if os.geteuid() != 0:
        raise ConfigError(
            f"kernel mode needs root (this process runs as user {os.geteuid()}). "
            f"Run it as root, {_WAY_OUT}"
        )
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise ConfigError(
                f"kernel mode needs the command {tool} (not found). Install {package}, {_WAY_OUT}"
            )
    if refused := _refused(("unshare", "--net", "true"), ()):
        raise ConfigError(
            f"kernel mode needs the right to make network namespaces ({refused}). "
            f"Give this container CAP_SYS_ADMIN and CAP_NET_ADMIN, {_WAY_OUT}"
        )
    if refused := _refused(("unshare", "--net", "tc", "-batch", "-"), _HTB):
        raise ConfigError(
            f"kernel mode needs the kernel modules sch_htb and cls_u32 ({refused}). "
            f"Load them, {_WAY_OUT}"
        )
    return Kernel(netem=_refused(("unshare", "--net", "tc", "-batch", "-"), _NETEM))


def batch(tool: str, lines: Sequence[str], prefix: Sequence[str] = ()) -> None:
    """Have ``ip`` or ``tc`` do several things, in one process, behind a command prefix."""
    run([*prefix, tool, "-batch", "-"], lines)


def run(command: Sequence[str], lines: Sequence[str] = ()) -> str:
    """Run a command with lines as its input and return its output; ``FleetError`` if it fails."""
    done = _call(command, lines)
    if done.returncode:
        raise FleetError(
            f"the kernel took no part of a network layout ({_reason(done, command, lines)}). "
            "See docs/how-to-kernel-mode.md, or leave kernel mode."
        )
    return done.stdout


class NamespaceHolder:
    """An anonymous network namespace, held by a process that ends when its standard input closes.

    The operating system closes it for an owner that was killed. With its last process the namespace
    vanishes, and with it every interface in it and the other end of every veth pair.
    """

    def __init__(self, *, stop_seconds: float) -> None:
        self._stop_seconds = stop_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            ["unshare", "--net", "--", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for its owner
        )
        try:
            _wait_for_echo(self._process)
        except BaseException:
            self._end(self._process)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._end(self._process)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise FleetError("the network namespace is not open. Use it in a with block.")
        return self._process.pid

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command so that it runs in this namespace."""
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net", "--")

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_echo(process: subprocess.Popen[bytes]) -> None:
    """Return when ``cat`` runs: it answers once ``unshare`` has made the namespace."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    ready, _, _ = select.select([process.stdout], [], [], _DEADLINE_SECONDS)
    if not ready or process.stdout.read(1) != b"\n":
        raise FleetError(
            f"a network namespace is there within {_DEADLINE_SECONDS:.0f} s (this one is not; "
            f"exit code {process.poll()}). See docs/how-to-kernel-mode.md, or leave kernel mode."
        )


def _refused(command: Sequence[str], lines: Sequence[str]) -> str:
    """Why the command fails; empty if it does not."""
    done = _call(command, lines)
    return _reason(done, command, lines) if done.returncode else ""


def _call(command: Sequence[str], lines: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            timeout=_DEADLINE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FleetError(
            f"{' '.join(command)} ends within {_DEADLINE_SECONDS:.0f} s (it did not). "
            "Is this machine overloaded?"
        ) from error


def _reason(
    done: subprocess.CompletedProcess[str], command: Sequence[str], lines: Sequence[str]
) -> str:
    """What was refused and why, in one line: a batch names the number of its line."""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    numbers = [found[1] for line in said if (found := _FAILED.match(line))]
    what = lines[int(numbers[0]) - 1] if numbers else " ".join(command)
    why = "; ".join(line for line in said if not _FAILED.match(line))
    return f"{what}: {why or f'exit code {done.returncode}'}"
