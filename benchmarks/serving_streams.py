"""Requests streamed through equal and through unequal devices, against one of them alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

import edgeweave as ew
from benchmarks.harness import interleaved, ratios
from benchmarks.resnet import resnet18
from benchmarks.serving_changes import Measured
from edgeweave.plan import Costs, period_bounds
from edgeweave.serving import ServingReport
from edgeweave.train.models import lenet

__all__ = ["NETWORKS", "SETTINGS", "Network", "equal", "unequal"]

_UNEQUAL = (0.3, 0.2, 0.1)
_WARM_UP, _REQUESTS = 20, 200
_TURNS = 3
_SEED = 0


@dataclass(frozen=True, slots=True)
class Network:
    """What is served, and the prefix of its keys."""

    prefix: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    speed: float = 0.2
    """Of each of the equal devices."""

    def model(self) -> nn.Module:
        torch.manual_seed(_SEED)
        return self.build().eval()

    def requests(self, n_requests: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(_SEED)
        return [torch.randn(1, *self.shape, generator=generator) for _ in range(n_requests)]


_MOBILENET = Network(
    "",
    lambda: MobileNetV2ForImageClassification(MobileNetV2Config(image_size=96)),
    (3, 96, 96),
)
NETWORKS = {
    "mobilenetv2": _MOBILENET,
    "lenet": Network("lenet_", lenet, (1, 28, 28), speed=0.02),
    "resnet18": Network("resnet18_", lambda: resnet18(_SEED), (3, 32, 32)),
}
SETTINGS = {
    "speeds": {name: network.speed for name, network in NETWORKS.items()},
    "unequal_speeds": _UNEQUAL,
    "warm_up": _WARM_UP,
    "requests": _REQUESTS,
    "turns": _TURNS,
    "seed": _SEED,
}


def _effort(*, quick: bool) -> tuple[int, int]:
    """Turns, and requests in each."""
    return (1, 60) if quick else (_TURNS, _REQUESTS)


def equal(name: str, *, quick: bool) -> Measured:
    """One, two and three of three equal devices, in turns, all by the costs measured once."""
    network, (n_turns, n_requests) = NETWORKS[name], _effort(quick=quick)
    model, names = network.model(), ("a", "b", "c")
    requests = network.requests(_WARM_UP + n_requests)
    with torch.inference_mode():
        expected = [_logits(model(each)) for each in requests]
    reports: list[ServingReport] = []
    same: list[bool] = []
    ordered: list[bool] = []

    with ew.Fleet.local([ew.Device(name, speed=network.speed) for name in names]) as fleet:
        with ew.serve(model, fleet, requests[0]) as endpoint:
            costs = endpoint.costs
        assert costs is not None

        def rate(n_devices: int) -> float:
            options = ew.ServeOptions(use="all", devices=names[:n_devices])
            own = costs.only(names[:n_devices])
            with ew.serve(model, fleet, requests[0], options=options, costs=own) as endpoint:
                found, per_second = _streamed(endpoint, requests)
                reports.append(endpoint.report())
            same.append(all(map(torch.equal, found, expected)))
            distances = [[float((a - b).abs().sum()) for b in expected] for a in found[:20]]
            ordered.append(all(min(d) == d[i] for i, d in enumerate(distances)))
            return per_second

        turns = interleaved(
            n_turns,
            {"1": lambda: rate(1), "2": lambda: rate(2), "3": lambda: rate(3)},
        )
    series = {
        "speedup_2": ratios(turns["2"], turns["1"]),
        "speedup_3": ratios(turns["3"], turns["1"]),
    }
    bounds = _bounds(costs)
    metrics = {key: median(found) for key, found in series.items()}
    metrics |= {"bound_2": bounds[2], "bound_3": bounds[3]}
    metrics["fraction_of_bound_3"] = metrics["speedup_3"] / bounds[3]
    metrics["bit_equal"], metrics["in_order"] = float(all(same)), float(all(ordered))
    return Measured(
        {network.prefix + key: value for key, value in metrics.items()},
        {network.prefix + key: found for key, found in series.items()},
        tuple(f"{name}, {len(r.devices)} devices: {_line(r)}" for r in reports[-3:]),
    )


def _bounds(costs: Costs) -> dict[int, float]:
    """How much faster so many devices can be, were sending for nothing."""
    periods = period_bounds(costs)
    return {n_devices: periods[1] / seconds for n_devices, seconds in periods.items()}


def unequal(*, quick: bool) -> Measured:
    """All of unequal devices over the sum of each alone, and what the units allow."""
    network, (n_turns, n_requests) = _MOBILENET, _effort(quick=quick)
    model, requests = network.model(), network.requests(_WARM_UP + n_requests)
    devices = [ew.Device(f"at-{speed}", speed=speed) for speed in _UNEQUAL]
    names = tuple(device.name for device in devices)
    reports: list[ServingReport] = []
    with ew.Fleet.local(devices) as fleet:
        with ew.serve(model, fleet, requests[0]) as endpoint:
            costs = endpoint.costs
        assert costs is not None

        def rate(*used: str) -> float:
            options = ew.ServeOptions(use="all", devices=used)
            own = costs.only(used)
            with ew.serve(model, fleet, requests[0], options=options, costs=own) as endpoint:
                per_second = _streamed(endpoint, requests)[1]
                reports.append(endpoint.report())
            return per_second

        alone = [lambda name=name: rate(name) for name in names]
        turns = interleaved(
            n_turns,
            {
                **{str(index): each for index, each in enumerate(alone)},
                "all": lambda: rate(*names),
            },
        )
    sums = [sum(each) for each in zip(*(turns[str(i)] for i in range(len(names))), strict=True)]
    series = ratios(turns["all"], sums)
    return Measured(
        {"unequal_over_sum": median(series), "unequal_bound": _bound_of_sum(costs)},
        {"unequal_over_sum": series},
        (f"unequal devices: {_line(reports[-1])}",),
    )


def _bound_of_sum(costs: Costs) -> float:
    """What the units allow all devices together, were sending for nothing, over the sum of each."""
    alone = [1 / sum(device.forward_seconds) for device in costs.devices]
    return 1 / period_bounds(costs)[len(alone)] / sum(alone)


def _streamed(
    endpoint: ew.Endpoint, requests: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], float]:
    """The answers of a stream, and how many came in a second after the first ones."""
    found: list[torch.Tensor] = []
    started = 0.0
    for answer in endpoint.stream(requests):
        found.append(_logits(answer))
        if len(found) == _WARM_UP:
            started = time.perf_counter()
    return found, (len(found) - _WARM_UP) / (time.perf_counter() - started)


def _logits(answer: object) -> torch.Tensor:
    logits = getattr(answer, "logits", answer)
    assert isinstance(logits, torch.Tensor)
    return logits


def _line(report: ServingReport) -> str:
    """Latency and energy of a request, by device."""
    assert report.latency is not None
    used = ", ".join(
        f"{each.device} {1e3 * each.cpu_seconds_per_request:.1f} ms CPU, "
        f"{1e3 * each.joules_per_request:.1f} mJ"
        for each in report.devices
    )
    return f"p50 {1e3 * report.latency.p50_seconds:.0f} ms under load; a request: {used}"
