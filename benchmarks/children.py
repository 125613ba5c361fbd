"""Processes that a benchmark talks to in lines of JSON. Owned by ``with``: none is left behind."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

__all__ = ["ALLOCATOR", "Child", "reply", "same_allocator"]

_DEADLINE_SECONDS = 90.0
_STOP_SECONDS = 10.0

ALLOCATOR: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""Keep glibc from giving a tensor's pages back after every use (elsewhere nothing happens)."""


@contextmanager
def same_allocator() -> Iterator[None]:
    """Every process started inside, whoever's it is, uses ``ALLOCATOR``."""
    before = {name: os.environ.get(name) for name in ALLOCATOR}
    os.environ.update(ALLOCATOR)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Child:
    """``python -m MODULE SETTINGS``; ``ask`` sends a line and waits for the line that answers it.

    A child ends when its standard input closes. What it writes to standard error is ours.
    """

    def __init__(self, module: str, settings: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"reader of {module}", daemon=True)
        self._reader.start()
        self._module = module

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a line; its answer is taken with ``answer``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def answer(self, *, seconds: float = _DEADLINE_SECONDS) -> dict[str, Any]:
        """The next line it says; ``RuntimeError`` if it ended, ``TimeoutError`` if it is silent."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"{self._module} said nothing for {seconds:.0f} s") from None
        if not line:
            raise RuntimeError(f"{self._module} ended before it answered; its error is above.")
        message: dict[str, Any] = json.loads(line)
        return message

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.tell(message)
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_STOP_SECONDS)  # a child of the child may hold its output open
        if not self._reader.is_alive():
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


def reply(message: Mapping[str, Any]) -> None:
    """Answer the parent, from within a child."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
