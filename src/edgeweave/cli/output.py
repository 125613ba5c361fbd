"""Where a command speaks: people get tables and sentences, ``--json`` gets one document.

without --json   people: stdout          progress bars: stderr
with --json      people: stderr          the document: stdout, once, at the end
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console, RenderableType

from edgeweave.core.errors import ConfigError
from edgeweave.core.version import __version__

__all__ = ["Output", "encode_document", "read_file", "write_file"]

_WIDTH_OF_FILES = 120
"""Columns where the reader is a file or a pipe, which have no width."""


class Output:
    """What one command tells, and to whom."""

    def __init__(self, command: str, *, as_json: bool) -> None:
        self._command = command
        self._as_json = as_json
        self._people = _console(stderr=as_json)
        self._activity = _console(stderr=True)

    def say(self, text: str) -> None:
        """One line for people, never wrapped: it may be meant to be copied."""
        self._people.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, *renderables: RenderableType) -> None:
        """Tables for people, with an empty line before each."""
        for renderable in renderables:
            self._people.print()
            self._people.print(renderable, highlight=False)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show that something takes its time; only on a terminal."""
        with self._activity.status(what):
            yield

    def finish(self, document: Mapping[str, object]) -> None:
        """The result, as the one document of ``--json``."""
        if self._as_json:
            sys.stdout.write(encode_document(self._command, document))
            sys.stdout.flush()


def encode_document(command: str, document: Mapping[str, object]) -> str:
    """A document that says what made it. Numbers JSON does not have (NaN) become null."""
    whole = {"edgeweave": __version__, "command": command, **document}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode() + "\n"


def read_file(path: Path) -> bytes:
    """The content of a file that the user named."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} is a file that can be read ({error.strerror}).") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file that the user named, with the folders above it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(
            f"{path} is a place that can be written to ({error.strerror}). Name another."
        ) from error


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_OF_FILES
    return console
