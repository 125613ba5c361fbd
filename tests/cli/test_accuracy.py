"""Errors are of units, ratios of all together; what takes no time is left out."""

from __future__ import annotations

import numpy as np
import pytest

from edgeweave.cli.accuracy import Accuracy
from edgeweave.plan import DeviceCosts
from edgeweave.predict import Predicted


def test_an_accuracy_is_of_units_and_of_all_together() -> None:
    measured = DeviceCosts("pi", (1.0, 2.0), (0.0, 4.0), None)
    predicted = Predicted(np.array([[1.5, 9.0], [2.0, 2.0]]), np.full((2, 2), 0.3))
    found = Accuracy.of(measured, predicted)
    assert found.mean_error == pytest.approx((0.5 + 0.0 + 0.5) / 3)
    assert (found.forward_ratio, found.backward_ratio) == pytest.approx((3.5 / 3, 0.5))
    assert found.within_interval == pytest.approx(2 / 3)
