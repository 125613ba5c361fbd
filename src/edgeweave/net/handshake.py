"""The first words of a join: who runs which versions, and whether they understand each other."""

from __future__ import annotations

import platform
import re

import msgspec
import torch

from edgeweave.core.errors import VersionError
from edgeweave.core.version import PROTOCOL_VERSION, __version__

__all__ = ["Hello", "check_hello", "hello_of"]


class Hello(msgspec.Struct, frozen=True):
    """What a process says of itself. Fields unknown to an older reader are ignored by it."""

    protocol: int
    package: str
    torch: str
    device: str
    python: str = ""


def hello_of(device: str) -> Hello:
    """What this process, under the name ``device``, says of itself."""
    return Hello(
        protocol=PROTOCOL_VERSION,
        package=__version__,
        torch=str(torch.__version__),
        device=device,
        python=platform.python_version(),
    )


def check_hello(mine: Hello, theirs: Hello) -> None:
    """Raise ``VersionError`` unless both can work together.

    The protocol must be the same, and so must the first two numbers of the package and of torch;
    a patch release or a build tag may differ. The message says which side to upgrade.

    >>> a = Hello(1, "0.1.0", "2.13.0+cpu", "laptop")
    >>> check_hello(a, Hello(1, "0.1.4", "2.13.1", "pi-1"))
    """
    if mine.protocol != theirs.protocol:
        newest = _newer(mine, theirs, mine.protocol > theirs.protocol)
        raise _mismatch(
            f"protocol {mine.protocol}",
            f"protocol {theirs.protocol}",
            mine,
            theirs,
            older=newest[1],
            command=f"pip install edgeweave=={newest[0].package}",
        )
    for library, here, there in (
        ("edgeweave", mine.package, theirs.package),
        ("torch", mine.torch, theirs.torch),
    ):
        if _release(here)[:2] != _release(there)[:2]:
            newer, older = _newer(mine, theirs, _release(here) > _release(there))
            wanted = newer.package if library == "edgeweave" else newer.torch.split("+")[0]
            raise _mismatch(
                f"{library} {here}",
                f"{library} {there}",
                mine,
                theirs,
                older=older,
                command=f"pip install {library}=={wanted}",
            )


def _newer(mine: Hello, theirs: Hello, mine_is_newer: bool) -> tuple[Hello, Hello]:
    return (mine, theirs) if mine_is_newer else (theirs, mine)


def _mismatch(
    here: str, there: str, mine: Hello, theirs: Hello, *, older: Hello, command: str
) -> VersionError:
    return VersionError(
        f"two devices must run versions that understand each other ({mine.device} runs {here}, "
        f"{theirs.device} runs {there}). Upgrade {older.device}: {command}."
    )


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version before any tag: ``2.13.0+cpu`` is (2, 13, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
