"""Captures of the zoo, made once per test run: ``torch.export`` takes seconds for each."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from edgeweave.program import Captured, capture
from tests.models import ZOO


@functools.cache
def _captured(name: str) -> Captured:
    example = ZOO[name]
    return capture(example.model(), example.loss, *example.batch(4))


@pytest.fixture(scope="session")
def captured() -> Callable[[str], Captured]:
    """Capture a model of the zoo by name; the second call is free."""
    return _captured
