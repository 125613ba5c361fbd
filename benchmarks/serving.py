"""Served models: how much faster several devices are, what losses cost, what HTTP stands.

MobileNetV2 (96 x 96) and ResNet-18 (32 x 32) on devices of 0.2 cores each, LeNet (28 x 28) on 0.02,
one sample a request; MobileNetV2 on 0.3, 0.2 and 0.1 too. Keys without a prefix are MobileNetV2's.

    speedup_2, speedup_3        requests a second, by 2 and 3 devices / by one
    bound_2, bound_3            what the units allow: the whole / the longest stage of the best cut
    fraction_of_bound_3         the second / the fourth
    unequal_over_sum            the unequal devices together / the sum of each alone
    bit_equal, in_order         answers are the unsplit model's, in the order of requests (1 is yes)
    lost_requests, twice        a device killed and another added under load: not answered, or twice
    gap_seconds_p99             the longest time without an answer around a kill, the largest of all
    http_*                      good and bad requests in turn: see ``serving_http``
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

import edgeweave as ew
from benchmarks.harness import Result, interleaved, ratios
from benchmarks.resnet import resnet18
from benchmarks.serving_changes import changes
from benchmarks.serving_http import http
from edgeweave.plan import Costs, period_bounds
from edgeweave.serving import ServingReport
from edgeweave.train.models import lenet

__all__ = ["run"]

_UNEQUAL = (0.3, 0.2, 0.1)
_WARM_UP, _REQUESTS = 20, 200
_KILLS = 20
_SEED = 0


@dataclass(frozen=True, slots=True)
class _Network:
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


_MOBILENET = _Network(
    "",
    lambda: MobileNetV2ForImageClassification(MobileNetV2Config(image_size=96)),
    (3, 96, 96),
)
_OTHERS = (
    _Network("lenet_", lenet, (1, 28, 28), speed=0.02),
    _Network("resnet18_", lambda: resnet18(_SEED), (3, 32, 32)),
)


def run(*, quick: bool) -> Result:
    """``quick``: one turn of MobileNetV2 with 60 requests, one kill, a thousand HTTP requests."""
    torch.set_num_threads(1)
    n_turns, n_requests = (1, 60) if quick else (3, _REQUESTS)
    samples: dict[str, list[float]] = {}
    metrics: dict[str, float] = {}
    lines: list[str] = []
    for network in (_MOBILENET,) if quick else (_MOBILENET, *_OTHERS):
        found = _equal(network, n_turns, n_requests)
        for key, series in found.series.items():
            samples[network.prefix + key] = series
        metrics |= {network.prefix + key: value for key, value in found.metrics.items()}
        lines += [f"{network.prefix or 'mobilenetv2_'}{line}" for line in found.lines]
    if not quick:
        samples["unequal_over_sum"] = _unequal(_MOBILENET, n_turns, n_requests)
        metrics["unequal_over_sum"] = median(samples["unequal_over_sum"])
    for each in (changes(n_turns=1 if quick else _KILLS), http(quick=quick)):
        samples |= each.samples
        metrics |= each.metrics
    return Result(
        name="serving",
        quick=quick,
        metrics=metrics,
        lines=(*lines, *(f"{key:>30} = {value:.4g}" for key, value in metrics.items())),
        samples=samples,
        settings={
            "speeds": {n.prefix or "mobilenetv2_": n.speed for n in (_MOBILENET, *_OTHERS)},
            "unequal_speeds": _UNEQUAL,
            "warm_up": _WARM_UP,
            "requests": n_requests,
            "turns": n_turns,
            "kills": 1 if quick else _KILLS,
            "seed": _SEED,
        },
    )


@dataclass(frozen=True, slots=True)
class _Found:
    metrics: dict[str, float]
    series: dict[str, list[float]]
    lines: tuple[str, ...]


def _equal(network: _Network, n_turns: int, n_requests: int) -> _Found:
    """One, two and three of three equal devices, in turns, all by the costs measured once."""
    model, names = network.model(), ("a", "b", "c")
    requests = network.requests(_WARM_UP + n_requests)
    with torch.inference_mode():
        expected = [_logits(model(each)) for each in requests]
    reports: list[ServingReport] = []
    equal: list[bool] = []
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
            equal.append(all(map(torch.equal, found, expected)))
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
    metrics["bit_equal"], metrics["in_order"] = float(all(equal)), float(all(ordered))
    lines = tuple(f"{len(r.devices)} devices: {_line(r)}" for r in reports[-3:])
    return _Found(metrics, series, lines)


def _bounds(costs: Costs) -> dict[int, float]:
    """How much faster so many devices can be, were sending for nothing."""
    periods = period_bounds(costs)
    return {n_devices: periods[1] / seconds for n_devices, seconds in periods.items()}


def _unequal(network: _Network, n_turns: int, n_requests: int) -> list[float]:
    """All of unequal devices over the sum of each alone."""
    model, requests = network.model(), network.requests(_WARM_UP + n_requests)
    devices = [ew.Device(f"at-{speed}", speed=speed) for speed in _UNEQUAL]
    names = tuple(device.name for device in devices)
    with ew.Fleet.local(devices) as fleet:
        with ew.serve(model, fleet, requests[0]) as endpoint:
            costs = endpoint.costs
        assert costs is not None

        def rate(*used: str) -> float:
            options = ew.ServeOptions(use="all", devices=used)
            own = costs.only(used)
            with ew.serve(model, fleet, requests[0], options=options, costs=own) as endpoint:
                return _streamed(endpoint, requests)[1]

        alone = [lambda name=name: rate(name) for name in names]
        turns = interleaved(
            n_turns,
            {
                "all": lambda: rate(*names),
                **{str(index): each for index, each in enumerate(alone)},
            },
        )
    sums = [sum(each) for each in zip(*(turns[str(i)] for i in range(len(names))), strict=True)]
    return ratios(turns["all"], sums)


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
