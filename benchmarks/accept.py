"""AccEPT's four arms: FTPipeHD's knowledge of devices and raw float32, and what each half adds.

    scalar      one capacity for each device (FTPipeHD), values as they are
    predictor   seconds of every unit, predicted after 50 samples of other networks
    codec       one capacity for each device, codecs chosen for each link
    both        seconds predicted, codecs chosen

Each arm plans from what it believes, then trains for some steps on one emulated fleet: real frames
on shaped links, devices paced to what each unit was measured to take on another kind of device
(``benchmarks/latency``), at a board's speed. Sending goes on beside computing in every arm.

    speedup_<arm>_<rate>      step of ``scalar`` / step of the arm, at so many Mbit/s; the median of
                              the networks
    best_speedup              the best of ``both``, of one network at one rate
    speedup_at_80mbit         the worst network's, of ``both``
    best_speedup_json         simulated: ``scalar`` with floats as JSON text, as FTPipeHD sends them
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from statistics import median

import torch

import edgeweave as ew
from benchmarks.emulator_runs import repeated_batch
from benchmarks.harness import Result, read
from benchmarks.latency.held_out import HeldOut
from benchmarks.latency.samples import Samples
from benchmarks.regret import BOARD, Knowledge, Network, networks_of
from edgeweave.device import Profile, UnitTimings
from edgeweave.fleet.profiles import without_weights
from edgeweave.net import Links, LinkShape
from edgeweave.plan import (
    Costs,
    DeviceCosts,
    Link,
    Plan,
    partition,
    simulate,
    stage_memory_bytes,
)
from edgeweave.plan.links import LinkCoding
from edgeweave.predict import LatencyModel
from edgeweave.train.compression import Compression, measure_coding
from edgeweave.train.run import PipelineRun, RunSettings

__all__ = ["run"]

_FLEET = ("no-onednn", "sse", "bfloat16")
_NETWORKS = ("mobilenetv2-96", "vit-32")
_RATES = (5, 10, 20, 40, 80)
_ARMS: Mapping[str, tuple[str, bool]] = {
    "scalar": ("scalar_capacity", False),
    "predictor": ("50_samples", False),
    "codec": ("scalar_capacity", True),
    "both": ("50_samples", True),
}
"""What is known of devices, and whether there are codecs."""
_MICROBATCHES = 16
_DELAY_SECONDS = 2e-3
_MEMORY_SHARE, _IN_FLIGHT = 0.4, 2
"""Of what the whole model needs for two microbatches: no two devices can hold it."""
_OPTIMIZER = ew.Optimizer("SGD", lr=0.01)
_SEED = 0
_FAST = Link(bytes_per_second=1e9, latency_seconds=0.0)


@dataclass(frozen=True, slots=True)
class _Setting:
    """A network on the fleet at one rate: what each way of knowing believes, and what is."""

    network: Network
    rate: int
    costs: Mapping[str, Costs]

    def plan(self, arm: str) -> Plan:
        """As the arm plans."""
        knowledge, has_codecs = _ARMS[arm]
        costs = self.costs[knowledge]
        coding = costs.coding if has_codecs else None
        return partition(replace(costs, coding=coding), n_microbatches=_MICROBATCHES)


def run(*, quick: bool) -> Result:
    """``quick``: one network at two rates, and the shipped model, which knows the kinds."""
    torch.manual_seed(_SEED)
    samples = Samples.load()
    model = LatencyModel.shipped() if quick else HeldOut(samples, _FLEET).model
    knowledge = Knowledge(samples, _FLEET, model)
    compression = Compression.of("auto")
    assert compression is not None
    steps: dict[str, dict[str, float]] = {}
    as_json: list[float] = []
    plans: dict[str, dict[str, str]] = {}
    for network in networks_of(samples, _NETWORKS[:1] if quick else _NETWORKS):
        believed = knowledge.of(network)
        for rate in _RATES[2::2] if quick else _RATES:
            with _fleet(network, believed["measured"], rate) as fleet:
                setting = _setting(network, rate, believed, fleet, compression)
                case = f"{network.example.name} {rate}"
                made = {arm: setting.plan(arm) for arm in _ARMS}
                steps[case] = {
                    arm: _step_seconds(fleet, setting, plan, compression, 1 if quick else 3)
                    for arm, plan in made.items()
                }
                plans[case] = {arm: _shown(plan) for arm, plan in made.items()}
                as_json.append(_json_step_seconds(setting, made["scalar"]) / steps[case]["both"])
    return _result(steps, as_json, plans, compression, quick=quick)


def _result(
    steps: Mapping[str, Mapping[str, float]],
    as_json: list[float],
    plans: Mapping[str, Mapping[str, str]],
    compression: Compression,
    *,
    quick: bool,
) -> Result:
    speedups = {
        case: {arm: each["scalar"] / each[arm] for arm in _ARMS} for case, each in steps.items()
    }
    rates = sorted({int(case.split()[1]) for case in steps})
    by_rate = {
        f"speedup_{arm}_{rate}": median(
            each[arm] for case, each in speedups.items() if case.endswith(f" {rate}")
        )
        for arm in list(_ARMS)[1:]
        for rate in rates
    }
    metrics = {
        "best_speedup": max(each["both"] for each in speedups.values()),
        "speedup_at_80mbit": min(
            each["both"] for case, each in speedups.items() if case.endswith(" 80")
        ),
        "best_speedup_json": max(as_json),
        "accuracy_loss_points": _accuracy_loss_points(compression.widths[-1]),
        **by_rate,
    }
    lines = [f"{case:>20}: " + _in_words(each, plans[case]) for case, each in speedups.items()]
    return Result(
        name="accept",
        quick=quick,
        metrics=metrics,
        lines=(*lines, *(f"{key:>24} = {value:.3f}" for key, value in metrics.items())),
        samples={key: [value] for key, value in metrics.items()},
        settings={
            "seed": _SEED,
            "fleet": list(_FLEET),
            "microbatches": _MICROBATCHES,
            "memory_share": _MEMORY_SHARE,
            "widths": list(compression.widths),
            "step_seconds": steps,
            "plans": plans,
        },
    )


def _in_words(speedups: Mapping[str, float], plans: Mapping[str, str]) -> str:
    return "; ".join(f"{arm} {speedups[arm]:.2f} ({plans[arm]})" for arm in _ARMS)


def _accuracy_loss_points(bits: int) -> float:
    """What ``convergence`` found for values of so many bits, the fewest that links may have."""
    found = read("convergence")
    assert found is not None, "convergence is measured before"
    return float(found["metrics"][f"cifar10_accuracy_loss_points_{bits}bit"])


def _shown(plan: Plan) -> str:
    bits = "/".join(str(codec.bits) for codec in plan.codecs)
    stages = " ".join(f"{stage.device}:{stage.stop_unit}" for stage in plan.stages)
    return f"{stages}, {bits} bits" if bits else stages


def _setting(
    network: Network,
    rate: int,
    believed: Mapping[str, Mapping[str, DeviceCosts]],
    fleet: ew.Fleet,
    compression: Compression,
) -> _Setting:
    coding = measure_coding(fleet, _FLEET, compression)
    whole = stage_memory_bytes(network.costs, 0, len(network.units), _IN_FLIGHT)

    def device(name: str, costs: DeviceCosts) -> DeviceCosts:
        return replace(
            costs,
            forward_seconds=tuple(each / BOARD for each in costs.forward_seconds),
            backward_seconds=tuple(each / BOARD for each in costs.backward_seconds),
            memory_limit_bytes=int(_MEMORY_SHARE * whole),
            encode_seconds_per_byte=coding[name].encode_seconds_per_byte,
            decode_seconds_per_byte=coding[name].decode_seconds_per_byte,
            deviation=None,
        )

    costs = {
        way: replace(
            network.costs,
            devices=tuple(device(name, by_kind[name]) for name in _FLEET),
            links=_links(rate),
            default_link=_FAST,
            coding=compression.coding(network.captured.program),
        )
        for way, by_kind in believed.items()
    }
    return _Setting(network, rate, costs)


def _links(rate: int) -> dict[str, dict[str, Link]]:
    """Between devices; the coordinator sits beside the data and is not held back."""
    link = Link(rate * 125_000.0, _DELAY_SECONDS)
    return {one: {other: link for other in _FLEET if other != one} for one in _FLEET}


@contextmanager
def _fleet(network: Network, kinds: Mapping[str, DeviceCosts], rate: int) -> Iterator[ew.Fleet]:
    """Emulated devices that take for each unit what a kind of device was measured to take."""
    shape = LinkShape(bytes_per_second=rate * 125_000.0, delay_seconds=_DELAY_SECONDS)
    links = Links.of(dict.fromkeys(permutations(_FLEET, 2), shape), seed=_SEED)
    devices = [ew.Device(name, speed=BOARD) for name in _FLEET]
    graph, tensors = without_weights(network.captured)
    with ew.Fleet.local(devices, links=links) as fleet:
        for name in _FLEET:
            costs = kinds[name]
            taken = UnitTimings(costs.forward_seconds, costs.backward_seconds, 0.0)
            size = network.microbatch_size
            message = Profile(graph, tensors, size, 1, _OPTIMIZER, taken)
            fleet.ask(name, "profile", message, timeout_seconds=fleet.timeouts.work)
        yield fleet


def _step_seconds(
    fleet: ew.Fleet, setting: _Setting, plan: Plan, compression: Compression, n_steps: int
) -> float:
    """The median of some steps after one that fills the pipeline."""
    example, captured = setting.network.example, setting.network.captured
    batch = repeated_batch(example, _MICROBATCHES)
    settings = RunSettings(
        _OPTIMIZER, setting.network.microbatch_size, seed=_SEED, codec=compression.codec
    )
    ends = []
    with PipelineRun(fleet, captured.program, captured.state, plan, settings) as pipeline:
        pipeline.link_rates = dict.fromkeys(permutations(_FLEET, 2), setting.rate * 125_000.0)
        for step in range(n_steps + 1):
            pipeline.train_step(step, batch, {"lr": 0.01})
            ends.append(time.perf_counter())
    return median(after - before for before, after in pairwise(ends))


def _json_step_seconds(setting: _Setting, plan: Plan) -> float:
    """The step of a plan if floats travelled as JSON text, made and read beside computing."""
    values = torch.randn(1 << 16, generator=torch.Generator().manual_seed(_SEED))
    started = time.thread_time()
    text = json.dumps(values.tolist())
    written = time.thread_time()
    torch.tensor(json.loads(text))
    read_back = time.thread_time()
    coding = LinkCoding(
        32,
        share=len(text) / values.nbytes,
        encode_seconds_per_byte=(written - started) / values.nbytes / BOARD,
        decode_seconds_per_byte=(read_back - written) / values.nbytes / BOARD,
    )
    costs = setting.costs["measured"]
    links = {
        source: {target: replace(link, coding=coding) for target, link in targets.items()}
        for source, targets in costs.links.items()
    }
    return simulate(plan, replace(costs, links=links)).step_seconds
