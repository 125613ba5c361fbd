"""The version is one, wherever it is read."""

from __future__ import annotations

import re
from importlib.metadata import version

from edgeweave.core.version import PROTOCOL_VERSION, __version__


def test_the_installed_version_is_the_version_of_the_source() -> None:
    assert version("edgeweave") == __version__


def test_the_version_is_three_numbers() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_protocol_version_counts_from_one() -> None:
    assert PROTOCOL_VERSION >= 1
