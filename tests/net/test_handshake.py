"""Two versions work together, or the message says which side to upgrade."""

from __future__ import annotations

import re

import pytest

from edgeweave.core.errors import VersionError
from edgeweave.core.version import PROTOCOL_VERSION, __version__
from edgeweave.net.handshake import Hello, check_hello, hello_of

LAPTOP = Hello(protocol=2, package="0.3.1", torch="2.13.0+cpu", device="laptop")


def other(protocol: int = 2, package: str = "0.3.1", torch: str = "2.13.0") -> Hello:
    return Hello(protocol=protocol, package=package, torch=torch, device="pi-1")


def test_this_process_says_what_it_runs() -> None:
    hello = hello_of("laptop")
    assert (hello.protocol, hello.package, hello.device) == (
        PROTOCOL_VERSION,
        __version__,
        "laptop",
    )


@pytest.mark.parametrize(
    "theirs", [other(), other(package="0.3.9"), other(torch="2.13.2+cu130"), other(package="0.3")]
)
def test_patch_releases_and_build_tags_may_differ(theirs: Hello) -> None:
    check_hello(LAPTOP, theirs)
    check_hello(theirs, LAPTOP)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (
            other(protocol=1),
            "(laptop runs protocol 2, pi-1 runs protocol 1). "
            "Upgrade pi-1: pip install edgeweave==0.3.1.",
        ),
        (
            other(protocol=3, package="0.4.0"),
            "(laptop runs protocol 2, pi-1 runs protocol 3). "
            "Upgrade laptop: pip install edgeweave==0.4.0.",
        ),
        (
            other(package="0.2.7"),
            "(laptop runs edgeweave 0.3.1, pi-1 runs edgeweave 0.2.7). "
            "Upgrade pi-1: pip install edgeweave==0.3.1.",
        ),
        (
            other(torch="2.9.1"),
            "(laptop runs torch 2.13.0+cpu, pi-1 runs torch 2.9.1). "
            "Upgrade pi-1: pip install torch==2.13.0.",
        ),
    ],
)
def test_a_mismatch_says_who_runs_what_and_whom_to_upgrade(theirs: Hello, message: str) -> None:
    with pytest.raises(VersionError, match=re.escape(message)):
        check_hello(LAPTOP, theirs)


def test_both_sides_name_the_same_side_to_upgrade() -> None:
    with pytest.raises(VersionError, match=r"Upgrade pi-1: pip install torch==2\.13\.0"):
        check_hello(other(torch="2.12.0"), LAPTOP)
