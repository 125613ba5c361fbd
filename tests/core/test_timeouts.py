"""Deadlines: one frozen value, all of them finite."""

from __future__ import annotations

import dataclasses
import math

import pytest

from edgeweave.core.timeouts import Timeouts


def test_every_deadline_is_positive_and_finite() -> None:
    values = dataclasses.asdict(Timeouts()).values()
    assert all(0 < seconds < math.inf for seconds in values)


def test_deadlines_are_a_frozen_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Timeouts().connect = 1.0  # type: ignore[misc]


def test_one_deadline_is_changed_without_naming_the_others() -> None:
    assert dataclasses.replace(Timeouts(), connect=1.0).stop == Timeouts().stop
