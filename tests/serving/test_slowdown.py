"""A device that gets slower while it serves is planned around, and no request is lost by it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from edgeweave.core.errors import WireError
from edgeweave.device.serving.stage import ServingStage
from edgeweave.device.timings import forward_scalars, told_forwards
from edgeweave.plan import Costs
from edgeweave.serving import serve
from tests.fleet.worlds import memory_fleet, wait_until
from tests.models import ZOO
from tests.serving.trouble import EVERYBODY, HURRIED, request

UNIT_SECONDS = 0.002


def unit_times(costs: Costs) -> Costs:
    """As if every unit took as long, on every device."""
    return replace(
        costs,
        devices=tuple(
            replace(device, forward_seconds=(UNIT_SECONDS,) * len(costs.units))
            for device in costs.devices
        ),
    )


def test_a_device_that_gets_four_times_slower_hands_units_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factors = {"a": 1.0, "b": 1.0}
    plain = ServingStage._forward

    def forward(stage: ServingStage, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        units = len(stage._stage.program.unit_numbers)
        time.sleep(units * UNIT_SECONDS * factors[stage._place.device])
        return plain(stage, inputs)

    monkeypatch.setattr(ServingStage, "_forward", forward)
    model, hurried = ZOO["mlp"].model().eval(), replace(HURRIED, silence=0.05)
    with memory_fleet("a", "b", timeouts=hurried) as world:
        with serve(model, world.fleet, request(0), options=EVERYBODY) as endpoint:
            assert endpoint.costs is not None
            costs = unit_times(endpoint.costs)
        with serve(model, world.fleet, request(0), options=EVERYBODY, costs=costs) as endpoint:
            plan = endpoint.plan
            assert plan is not None
            assert plan.bounds == (0, 3, 6)
            found, n_requests = [], 0

            def ask(n_more: int) -> None:
                nonlocal n_requests
                numbers = range(n_requests, n_requests + n_more)
                found.extend(endpoint.stream(map(request, numbers)))
                n_requests += n_more

            ask(20)
            factors["b"] = 4.0

            def is_cut_anew() -> bool:
                ask(20)
                return len(endpoint.changes) > 1

            wait_until(is_cut_anew, "it is planned anew")
            change = endpoint.changes[1]
            assert "b takes " in change.why
            assert change.why.endswith("times as long as predicted")
            assert change.n_resent == 0
            units = {s.device: s.stop_unit - s.first_unit for s in change.plan.stages}
            assert units["b"] < 3
            assert endpoint.costs is not None
            assert endpoint.costs.device("b").forward_seconds[0] > 2 * UNIT_SECONDS
            with torch.inference_mode():
                expected = [model(request(number)) for number in range(n_requests)]
            assert all(map(torch.equal, found, expected))
            assert endpoint.statistics().expired == 0


def test_what_stages_took_rides_on_the_requests() -> None:
    first = forward_scalars(0, 0.5, {"samples": 1.0})
    second = forward_scalars(1, None, {**first, "samples": 1.0})  # not of the usual size
    third = forward_scalars(2, 0.25, second)
    assert told_forwards({**third, "samples": 1.0}, 3) == {0: 0.5, 2: 0.25}
    assert told_forwards({"samples": 1.0}, 3) == {}


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_what_is_no_duration_is_refused(seconds: float) -> None:
    told = forward_scalars(0, seconds, {})
    with pytest.raises(WireError, match="the time that stage 0 took is finite and not negative"):
        told_forwards(told, 1)
