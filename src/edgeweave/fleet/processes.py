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
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from edgeweave.core.errors import FleetError
from edgeweave.device.process import ProcessSettings
from edgeweave.net import Links

__all__ = ["AgentProcesses"]

_SHOWN_LINES = 12


@dataclass(frozen=True, slots=True)
class _Child:
    settings: ProcessSettings
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    @property
    def name(self) -> str:
        return self.settings.agent.name


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
        self._directory = Path()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeweave-"))
            self._directory = Path(folder)
            stack.callback(self._stop)
            for settings in self._settings:
                self._children.append(self._started(settings))
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
        return self._children[self._index(name)].process.pid

    def start_again(self, name: str, speed: float | None, links: Links | None) -> None:
        """Start the agent of a device anew, killing what is left of the one before. Returns before
        it is there.
        """
        index = self._index(name)
        old = self._children[index]
        old.process.kill()
        try:
            old.process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired as error:
            raise FleetError(
                f"the agent of {name} was killed and has not ended after {self._stop_seconds:.0f} "
                "s, so it is not started again. Look what its process waits for."
            ) from error
        _close(old)
        agent = replace(old.settings.agent, speed=speed)
        settings = msgspec.structs.replace(old.settings, agent=agent, links=links)
        self._children[index] = self._started(settings)

    def check(self) -> None:
        """Raise ``FleetError`` with the end of its log if an agent has ended."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                raise FleetError(
                    f"the agent of {child.name} ended with exit code {code}:\n{_tail(child.log)}"
                )

    def _index(self, name: str) -> int:
        names = [child.name for child in self._children]
        if name not in names:
            known = ", ".join(names)
            raise FleetError(f"no agent of this fleet is called {name!r} (there are: {known}).")
        return names.index(name)

    def _started(self, settings: ProcessSettings) -> _Child:
        return _start(settings, self._directory, self._prefix(settings.agent.name))

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
            _close(child)
        self._children.clear()


def _start(settings: ProcessSettings, directory: Path, prefix: Sequence[str]) -> _Child:
    name = settings.agent.name
    path = directory / f"{name}.json"
    path.write_bytes(msgspec.json.encode(settings))
    log = (directory / f"{name}.log").open("a+b")
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
    return _Child(settings, process, log)


def _close(child: _Child) -> None:
    """Let go what belongs to a process that has ended."""
    if child.process.stdin is not None:
        child.process.stdin.close()
    child.log.close()


def _tail(log: IO[bytes]) -> str:
    log.flush()
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_SHOWN_LINES:]) or "(it wrote nothing)"
