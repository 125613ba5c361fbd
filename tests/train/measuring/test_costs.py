"""What the coordinator measures itself: its own links."""

from __future__ import annotations

import pytest

import edgeweave as ew
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.device import Optimizer
from edgeweave.net import Links, LinkShape
from edgeweave.program import capture
from edgeweave.train import measure_costs
from tests.train.trained_models import MLP


@pytest.mark.slow
@pytest.mark.wire
def test_the_coordinator_s_links_are_measured_each_for_itself() -> None:
    links = Links(LinkShape(), {})
    links = links.with_shape(COORDINATOR_NAME, "a", LinkShape(bytes_per_second=1e5))
    links = links.with_shape(COORDINATOR_NAME, "b", LinkShape(delay_seconds=0.2))
    with ew.Fleet.local([ew.Device("a"), ew.Device("b")], links=links) as fleet:
        captured = capture(MLP.model(), MLP.loss, *MLP.batch(4))
        costs = measure_costs(
            fleet, captured, microbatch_size=4, optimizer=Optimizer("SGD"), repetitions=1
        )
    to_a, to_b = (costs.link(COORDINATOR_NAME, name) for name in ("a", "b"))
    # Waiting for the processor adds to a delay, and may be taken off what the bytes took.
    assert to_a.bytes_per_second <= 1.5e5
    assert to_b.latency_seconds >= 0.1
    assert costs.link("b", COORDINATOR_NAME) == to_b
    assert costs.link("a", "b").bytes_per_second > to_a.bytes_per_second
