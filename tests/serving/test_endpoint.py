"""Models served over agents in this process answer what the unsplit model answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree

import edgeweave as ew
from edgeweave.codec import none, uniform
from edgeweave.core.errors import ConfigError, RequestError
from edgeweave.plan import Link
from edgeweave.serving import Endpoint, ServeOptions, serve
from edgeweave.serving.desk import Desk
from edgeweave.serving.report import Change
from tests.fleet.worlds import MemoryFleet, memory_fleet
from tests.models import ZOO
from tests.program.running import call


@pytest.fixture(scope="module")
def world() -> Iterator[MemoryFleet]:
    """Three agents in this process. Nobody breaks them."""
    with memory_fleet("a", "b", "c") as found:
        yield found


def answers_of(model: torch.nn.Module, requests: list[Any]) -> list[Any]:
    """What the unsplit model answers to each request alone."""
    with torch.inference_mode():
        return [call(model.eval(), request) for request in requests]


def test_answers_are_those_of_the_unsplit_model_bit_for_bit(world: MemoryFleet) -> None:
    model = ZOO["mlp"].model()
    requests = [torch.randn(1, 12) for _ in range(20)]
    with serve(model, world.fleet, requests[0]) as endpoint:
        found = [endpoint(request) for request in requests]
    assert all(map(torch.equal, found, answers_of(model, requests)))


SERVED_WHOLE_ZOO = [
    "mlp",
    pytest.param("lenet", marks=pytest.mark.slow),
    pytest.param("mobilenetv2", marks=pytest.mark.slow),
    pytest.param("resnet18", marks=pytest.mark.slow),
    "unet",
    pytest.param("vit", marks=pytest.mark.slow),
    pytest.param("bert", marks=pytest.mark.slow),
    pytest.param("gpt2", marks=pytest.mark.slow),
    pytest.param("llama", marks=pytest.mark.slow),
    pytest.param("lstm", marks=pytest.mark.slow),
]


def leaves(answer: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(answer) if torch.is_tensor(x)]


@pytest.mark.parametrize("name", SERVED_WHOLE_ZOO)
def test_cut_over_all_devices_every_model_answers_bit_for_bit(
    world: MemoryFleet, name: str
) -> None:
    model = ZOO[name].model().eval()
    requests = [ZOO[name].batch(1, seed=seed)[0] for seed in range(6)]
    options = ServeOptions(use="all")
    with serve(model, world.fleet, requests[0], options=options) as endpoint:
        assert endpoint.plan is not None
        assert len(endpoint.plan.stages) == 3
        found = list(endpoint.stream(requests))
    for answer, expected in zip(found, answers_of(model, requests), strict=True):
        assert type(answer) is type(expected)
        assert len(leaves(answer)) == len(leaves(expected))
        assert all(map(torch.equal, leaves(answer), leaves(expected)))


def test_a_stream_keeps_the_order_and_reads_no_further_than_the_queue(world: MemoryFleet) -> None:
    model, read = ZOO["mlp"].model().eval(), []

    def requests() -> Iterator[torch.Tensor]:
        for number in range(40):
            read.append(number)
            yield torch.full((1, 12), float(number))

    options = ServeOptions(use="all", queue_size=8)
    with serve(model, world.fleet, torch.ones(1, 12), options=options) as endpoint:
        found = []
        for answer in endpoint.stream(requests()):
            found.append(answer)
            assert len(read) <= len(found) + 8
    expected = answers_of(model, [torch.full((1, 12), float(number)) for number in range(40)])
    assert all(map(torch.equal, found, expected))


def test_a_tensor_may_be_written_into_once_it_was_submitted(shared: Endpoint) -> None:
    reused, expected = torch.empty(1, 12), []

    def requests() -> Iterator[torch.Tensor]:
        for number in range(20):
            reused.fill_(float(number))
            expected.extend(answers_of(ZOO["mlp"].model(), [reused]))
            yield reused

    assert all(map(torch.equal, list(shared.stream(requests())), expected))


def test_requests_of_several_sizes_and_the_most_samples(world: MemoryFleet) -> None:
    model = ZOO["mlp"].model().eval()
    requests = [torch.randn(n, 12) for n in (1, 5, 3)]
    options = ServeOptions(use="all", max_samples=5)
    with serve(model, world.fleet, requests[0], options=options) as endpoint:
        found = [endpoint(request) for request in requests]
        with pytest.raises(RequestError, match=r"a request has 1 to 5 samples.*\(got 6\)"):
            endpoint(torch.randn(6, 12))
    assert all(map(torch.equal, found, answers_of(model, requests)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.randn(1, 13), r"input of a request with 1 samples is float32 \(1, 12\)"),
        (torch.randn(1, 12).double(), r"is float32 \(1, 12\) \(got float64"),
        ((torch.randn(1, 12), torch.randn(1, 12)), r"the model takes 1 tensors \(got 2\)"),
        ("words", "a request holds tensors"),
        (torch.randn(()), "a request has 1 to 1 samples"),
    ],
)
def test_what_the_model_does_not_take_is_refused(
    shared: Endpoint, given: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        shared(given)


@pytest.fixture(scope="module")
def shared(world: MemoryFleet) -> Iterator[Endpoint]:
    """One endpoint that nobody breaks; alone on its devices."""
    with (
        memory_fleet("x") as own,
        serve(ZOO["mlp"].model(), own.fleet, torch.randn(1, 12)) as found,
    ):
        yield found


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 1e9])
def test_a_deadline_that_is_none_is_refused(shared: Endpoint, seconds: float) -> None:
    with pytest.raises(RequestError, match="timeout_seconds of a request is above 0"):
        shared(torch.randn(1, 12), timeout_seconds=seconds)


def test_a_report_tells_requests_latency_and_energy_by_device(shared: Endpoint) -> None:
    before = shared.report().answered
    list(shared.stream(torch.randn(1, 12) for _ in range(20)))
    report = shared.report()
    (device,) = report.devices
    assert report.answered == before + 20
    assert report.latency is not None
    assert 0 < report.latency.p50_seconds <= report.latency.p99_seconds
    assert device.requests == report.answered
    assert device.cpu_seconds_per_request == pytest.approx(device.cpu_seconds / device.requests)
    assert report.joules_per_request == pytest.approx(1.0 * device.cpu_seconds_per_request)
    assert device.joules == pytest.approx(1.0 * device.cpu_seconds)
    assert device.compute_seconds_per_request == device.compute_seconds / device.requests
    assert report.plan is not None
    assert [change.why for change in report.changes] == ["serving begins"]


def test_a_change_says_when_it_was_noticed_and_how_much_later_it_was_over(
    shared: Endpoint,
) -> None:
    assert shared.plan is not None
    change = Change(9.9, "serving begins", shared.plan, 6.0, 0)
    assert change.line() == "3.9 s: serving begins; 6.00 s later served by x."


@pytest.mark.slow
def test_costs_of_an_endpoint_serve_the_next_and_devices_can_be_named(world: MemoryFleet) -> None:
    model, example = ZOO["mlp"].model(), torch.randn(1, 12)
    with serve(model, world.fleet, example) as endpoint:
        costs = endpoint.costs
    options = ServeOptions(use="all", devices=("a", "c"))
    with serve(model, world.fleet, example, options=options, costs=costs) as endpoint:
        assert endpoint.costs is costs
        assert endpoint.plan is not None
        assert sorted(endpoint.plan.devices) == ["a", "c"]


def test_values_that_skip_stages_may_go_past_them(world: MemoryFleet) -> None:
    model = ZOO["unet"].model().eval()
    requests = [ZOO["unet"].batch(1, seed=seed)[0] for seed in range(6)]
    options = ServeOptions(use="all", objective="latency")
    with serve(model, world.fleet, requests[0], options=options) as endpoint:
        costs = endpoint.costs
    assert costs is not None
    slow = {here: {there: Link(1e5, 0.0) for there in "abc"} for here in "abc"}
    slow_costs = replace(costs, links=slow, default_link=Link(1e9, 0.0))
    with serve(model, world.fleet, requests[0], options=options, costs=slow_costs) as endpoint:
        assert endpoint.plan is not None
        assert endpoint.plan.skips == "direct"
        found = list(endpoint.stream(requests))
    assert all(map(torch.equal, found, answers_of(model, requests)))


def test_joined_requests_are_close_to_the_models_answers(world: MemoryFleet) -> None:
    model = ZOO["mlp"].model().eval()
    requests = [torch.randn(1, 12) for _ in range(30)]
    options = ServeOptions(use="all", join_samples=4, join_seconds=0.01)
    with serve(model, world.fleet, requests[0], options=options) as endpoint:
        found = list(endpoint.stream(requests))
        shipments = endpoint.report().devices[0].requests
    assert shipments < 30
    for answer, expected in zip(found, answers_of(model, requests), strict=True):
        torch.testing.assert_close(answer, expected)


def test_fast_kernels_answer_to_rounding(world: MemoryFleet) -> None:
    model = ZOO["unet"].model().eval()
    requests = [ZOO["unet"].batch(1, seed=seed)[0] for seed in range(3)]
    options = ServeOptions(use="all", kernels="fast")
    with serve(model, world.fleet, requests[0], options=options) as endpoint:
        assert not any("batch_norm" in node.op for node in endpoint.program.nodes)
        found = list(endpoint.stream(requests))
    for answer, expected in zip(found, answers_of(model, requests), strict=True):
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_with_a_codec_answers_are_close_and_less_travels(world: MemoryFleet) -> None:
    model = ZOO["unet"].model().eval()
    requests = [ZOO["unet"].batch(1, seed=seed)[0] for seed in range(3)]
    sent = {}
    for codec in (none(), uniform(8)):
        options = ServeOptions(use="all", codec=codec)
        with serve(model, world.fleet, requests[0], options=options) as endpoint:
            found = list(endpoint.stream(requests))
            sent[codec.name] = endpoint.report().devices[0].bytes_out
        for answer, expected in zip(found, answers_of(model, requests), strict=True):
            torch.testing.assert_close(answer, expected, rtol=0.1, atol=0.1)
    assert sent["uniform"] < 0.5 * sent["none"]


class Summing(torch.nn.Module):
    """Its answer has no row for each sample."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0)


def test_a_model_without_rows_is_not_joined_but_served(world: MemoryFleet) -> None:
    with pytest.raises(ConfigError, match="requests are joined where each sample has its own row"):
        serve(Summing(), world.fleet, torch.ones(2, 3), options=ServeOptions(join_samples=4))
    with serve(Summing(), world.fleet, torch.ones(2, 3)) as endpoint:
        assert endpoint(torch.ones(2, 3)).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "options",
    [
        {"queue_size": 0},
        {"timeout_seconds": 0.0},
        {"max_samples": 0},
        {"join_samples": -1},
        {"watts": 0.0},
        {"objective": "speed"},
        {"use": "some"},
        {"kernels": "slow"},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServeOptions(**options)


def test_devices_are_free_also_if_waiting_for_answers_is_interrupted(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_desk: Desk) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Desk, "finish", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        serve(ZOO["mlp"].model(), world.fleet, torch.ones(1, 12)),
    ):
        pass
    assert all(agent.greeting().run is None for agent in world.agents.values())


@pytest.mark.slow
def test_devices_are_free_before_and_after(world: MemoryFleet) -> None:
    endpoint = serve(ZOO["mlp"].model(), world.fleet, torch.randn(1, 12))
    with pytest.raises(RequestError, match="the endpoint is not open"):
        endpoint(torch.randn(1, 12))
    with endpoint:
        endpoint(torch.randn(1, 12))
    assert all(agent.greeting().run is None for agent in world.agents.values())


@pytest.mark.slow
@pytest.mark.wire
def test_real_processes_answer_bit_for_bit() -> None:
    model = ZOO["unet"].model().eval()
    requests = [ZOO["unet"].batch(1, seed=seed)[0] for seed in range(30)]
    devices = [ew.Device(name, speed=0.3) for name in ("a", "b", "c")]
    options = ServeOptions(use="all")
    with (
        ew.Fleet.local(devices) as fleet,
        ew.serve(model, fleet, requests[0], options=options) as endpoint,
    ):
        found = list(endpoint.stream(requests))
        assert len(endpoint.report().devices) == 3
    assert all(map(torch.equal, found, answers_of(model, requests)))
