"""A term takes nothing once it was taken back, whatever the desk is about to send."""

from __future__ import annotations

import torch

from edgeweave.plan import ServingPlan, Stage
from edgeweave.program import capture_inference
from edgeweave.serving.requests import Request, Shipment
from edgeweave.serving.term import Hearing, ServingTerm
from tests.fleet.worlds import memory_fleet


def shipment(number: int) -> Shipment:
    return Shipment((Request(number, {"input:0": torch.ones(1, 3)}, 1, 0.0, 60.0),))


def test_what_comes_after_it_was_taken_back_is_refused_and_nothing_is_lost() -> None:
    inference = capture_inference(torch.nn.Linear(3, 2), torch.ones(1, 3))
    n_units = len(inference.program.unit_numbers)
    plan = ServingPlan((Stage("a", 0, n_units, 0.0, 0.0, 0),), 1, 4, 0.0, 0.0)
    hearing = Hearing(
        lambda shipment, outputs: None,
        lambda shipment, error: None,
        lambda: None,
        lambda n, e: None,
    )
    with memory_fleet("a") as world:
        fleet = world.fleet
        term = ServingTerm(
            fleet, "run-1", 0, inference.program, plan, most_samples=1, hearing=hearing
        )
        fleet.transport.subscribe(
            "ew/default/run/run-1/0/0/*",
            lambda frame: None,
            on_error=lambda error: None,
            expect=lambda header: None,
            limit_bytes=1 << 20,
        )
        assert term.send(shipment(0))
        assert term.send(shipment(1))
        assert [s.requests[0].number for s in term.take_back()] == [0, 1]
        assert not term.send(shipment(2))
        assert term.take_back() == []
