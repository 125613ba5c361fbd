"""Costs without a device having run the model: from probes that follow a rule."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from edgeweave.device import Optimizer
from edgeweave.predict import DeviceLatency
from edgeweave.program import Program, capture
from edgeweave.train import device_latencies, predict_units
from edgeweave.train.measuring.predictions import predict_devices
from tests.predict.probes import made_up_probe

SIZE = 8
SGD = Optimizer("SGD", lr=0.1)


def program_of(*, frozen: int = 0) -> Program:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    model[:frozen].requires_grad_(False)
    return capture(model, mse_loss, torch.zeros(SIZE, 64), torch.zeros(SIZE, 64)).program


@pytest.fixture(scope="module")
def latencies() -> dict[str, DeviceLatency]:
    probe = made_up_probe(4)
    return device_latencies({"fast": probe, "slow": probe.stretched(3.0)})


def test_a_slower_probe_predicts_a_slower_device(latencies: dict[str, DeviceLatency]) -> None:
    found = predict_devices(program_of(), SIZE, SGD, latencies)
    fast, slow = found["fast"], found["slow"]
    ratios = np.array(slow.forward_seconds) / np.array(fast.forward_seconds)
    assert (ratios > 1.4).all()
    assert sum(slow.forward_seconds) > 2 * sum(fast.forward_seconds)
    assert slow.update_seconds_per_byte == pytest.approx(3 * fast.update_seconds_per_byte)


def test_costs_are_the_predictions_with_their_deviation(
    latencies: dict[str, DeviceLatency],
) -> None:
    units = predict_units(program_of(), SIZE, latencies)["fast"]
    costs = predict_devices(program_of(), SIZE, SGD, latencies)["fast"]
    assert costs.forward_seconds == pytest.approx(units.seconds[:, 0])
    assert costs.deviation is not None
    assert costs.deviation.backward == pytest.approx(units.deviation[:, 1])
    assert 0 < costs.deviation.correlation < 1


def test_units_through_which_no_gradient_flows_have_no_backward(
    latencies: dict[str, DeviceLatency],
) -> None:
    program = program_of(frozen=2)
    costs = predict_devices(program, SIZE, SGD, latencies)["fast"]
    assert [seconds > 0 for seconds in costs.backward_seconds] == [False, False, True, True, True]
    assert predict_units(program, SIZE, latencies)["fast"].seconds[:2, 1].tolist() == [0, 0]


def test_an_optimizer_with_more_to_do_takes_longer(latencies: dict[str, DeviceLatency]) -> None:
    def seconds(optimizer: Optimizer) -> float:
        return predict_devices(program_of(), SIZE, optimizer, latencies)[
            "fast"
        ].update_seconds_per_byte

    assert seconds(Optimizer("SGD", lr=0.1, momentum=0.9)) == pytest.approx(8 / 3 * seconds(SGD))


def test_a_device_whose_probe_tells_no_rate_updates_for_nothing() -> None:
    silent = device_latencies({"pi": made_up_probe(3, seconds_per_byte=0.0)})
    assert predict_devices(program_of(), SIZE, SGD, silent)["pi"].update_seconds_per_byte == 0


def test_a_model_of_one_unit_errs_as_one() -> None:
    program = program_of()
    whole = msgspec.structs.replace(
        program, nodes=tuple(msgspec.structs.replace(node, unit=0) for node in program.nodes)
    )
    latencies = device_latencies({"pi": made_up_probe(3)})
    deviation = predict_devices(whole, SIZE, SGD, latencies)["pi"].deviation
    assert deviation is not None
    assert deviation.correlation == 1.0
