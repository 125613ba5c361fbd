"""Agent processes on this machine, owned by ``with``: none is left behind, however it ends.

An agent ends when its standard input closes, which the operating system does for a parent that was
killed; here it is closed on purpose, and what does not end by its deadline is killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from edgeweave.core.errors import FleetError
from edgeweave.device.process import ProcessSettings

__all__ = ["AgentProcesses"]

_SHOWN_LINES = 12


@dataclass(frozen=True, slots=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]


class AgentProcesses:
    """One agent process per settings value.

    ``prefix`` tells by a device's name what to put before the command that starts its agent; it
    becomes the agent (``nsenter`` does), so that signals reach that.
    """

    def __init__(
        self,
        settings: Sequence[ProcessSettings],
        *,
        stop_seconds: float,
        prefix: Callable[[str], Sequence[str]] = lambda _name: (),
    ) -> None:
        self._settings = settings
        self._prefix = prefix
        self._stop_seconds = stop_seconds
        self._children: list[_Child] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeweave-")))
            stack.callback(self._stop)
            for settings in self._settings:
                self._children.append(
                    _start(settings, directory, self._prefix(settings.agent.name))
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def pid(self, name: str) -> int:
        """The process number of a device's agent: where signals go, those of chaos too."""
        for child in self._children:
            if child.name == name:
                return child.process.pid
        known = ", ".join(child.name for child in self._children)
        raise FleetError(f"no agent of this fleet is called {name!r} (there are: {known}).")

    def check(self) -> None:
        """Raise ``FleetError`` with the end of its log if an agent has ended."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                raise FleetError(
                    f"the agent of {child.name} ended with exit code {code}:\n{_tail(child.log)}"
                )

    def _stop(self) -> None:
        for child in self._children:
            if child.process.stdin is not None:
                child.process.stdin.close()
        for child in self._children:
            try:
                child.process.wait(self._stop_seconds)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            child.log.close()
        self._children.clear()


def _start(settings: ProcessSettings, directory: Path, prefix: Sequence[str]) -> _Child:
    name = settings.agent.name
    path = directory / f"{name}.json"
    path.write_bytes(msgspec.json.encode(settings))
    log = (directory / f"{name}.log").open("w+b")
    environment = {
        **os.environ,
        # One arena per thread would cost memory that small devices do not have.
        "MALLOC_ARENA_MAX": "2",
        "OMP_NUM_THREADS": "1" if settings.agent.speed is not None else "",
    }
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "edgeweave.device", str(path)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env={key: value for key, value in environment.items() if value},
        start_new_session=True,  # Ctrl-C reaches the coordinator alone, which then stops them
    )
    return _Child(name, process, log)


def _tail(log: IO[bytes]) -> str:
    log.flush()
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_SHOWN_LINES:]) or "(it wrote nothing)"
