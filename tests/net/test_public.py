"""What the network hands on, and that both transports are what they claim to be."""

from __future__ import annotations

import inspect

import pytest

import edgeweave.net
from edgeweave.net import MemoryTransport, ShapedTransport, Transport, ZenohTransport


def test_public_names_are_sorted_and_there() -> None:
    assert edgeweave.net.__all__ == sorted(edgeweave.net.__all__)
    assert all(hasattr(edgeweave.net, name) for name in edgeweave.net.__all__)


@pytest.mark.parametrize("kind", [MemoryTransport, ShapedTransport, ZenohTransport])
def test_a_transport_has_every_method_of_the_seam_as_it_stands_there(kind: type) -> None:
    for name, method in inspect.getmembers(Transport, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(kind, name)) == inspect.signature(method), name
