"""Codecs that follow a link, against the same codec all the time, on recorded wireless links.

Three emulated devices train one transformer, whose every cut is as wide as any other. All links
between them replay one recorded LTE trace, from its beginning for each contestant:

    exact, 8 bits, 6 bits   the same on every link for the whole run
    adaptive                16, 12, 8 or 6 bits or none for each link, chosen anew as rates are
                            told, with gradients compared now and then

    adaptive_vs_best_<trace>   samples in the given time, adaptive / the best of the others
    adaptive_bits_<trace>      of a value on average, 32 where it is exact
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from statistics import fmean

import numpy as np
import torch

import edgeweave as ew
from benchmarks.data import DATA
from benchmarks.emulator_runs import repeated_batch
from benchmarks.harness import Result
from benchmarks.latency.drawing import Example
from benchmarks.latency.known import KNOWN
from edgeweave.device.messages import Emulate
from edgeweave.net import Links, LinkShape
from edgeweave.net.link import RateTrace
from edgeweave.plan import (
    Costs,
    LinkCodec,
    Plan,
    Recoding,
    choose_codecs,
    partition,
    stage_memory_bytes,
)
from edgeweave.plan.coding import EXACT_BITS, with_link_rates
from edgeweave.program import Captured, capture
from edgeweave.train.batches import Batch
from edgeweave.train.codec_watch import CodecWatch
from edgeweave.train.compression import Compression
from edgeweave.train.measurements import measure_costs
from edgeweave.train.run import PipelineRun, RunSettings

__all__ = ["run"]

_TRACES = {
    "train": "nyu/7Train2",
    "home": "nyc19/trace-3093662-home3",
    "taxi": "nyc19/trace-2768760-taxi3",
    "walking": "nyc19/trace-3208852-timessquare",
    "short": "mahimahi/TMobile-LTE-short.down",
}
"""Of ``data/net_traces``, which says where each comes from."""
_FIXED: Mapping[str, int | None] = {"exact": None, "8 bits": 8, "6 bits": 6}
_DEVICES = ("a", "b", "c")
_SPEED = 0.3
_MICROBATCHES = 8
_MEMORY_SHARE, _IN_FLIGHT = 0.4, 2
_NETWORK = "vit-32"
_OPTIMIZER = ew.Optimizer("SGD", lr=0.01)
_SEED = 0
_FAST_RATE = 1e9
"""While devices measure; then the trace begins."""
_LEAST_RATE = 1e3
"""Bytes per second in an outage, which is one packet a second."""


@dataclass(frozen=True, slots=True)
class _Ran:
    """How a contestant did in the time there was."""

    samples: int
    bits: float


def run(*, quick: bool) -> Result:
    """``quick``: one trace, for six seconds each, against 6 bits."""
    torch.manual_seed(_SEED)
    example = next(each for each in (make() for make in KNOWN) if each.name == _NETWORK)
    captured = capture(example.model.train(), example.loss, example.inputs, example.targets)
    seconds = 6.0 if quick else 40.0
    ran: dict[str, dict[str, _Ran]] = {}
    for name in list(_TRACES)[:1] if quick else _TRACES:
        trace = _trace(_TRACES[name])
        contestants = [*(list(_FIXED)[-1:] if quick else _FIXED), "adaptive"]
        ran[name] = {each: _run(example, captured, trace, each, seconds) for each in contestants}
    ratios = {name: _ratio(each) for name, each in ran.items()}
    metrics = {
        "adaptive_vs_best_least": min(ratios.values()),
        **{f"adaptive_vs_best_{name}": ratio for name, ratio in ratios.items()},
        **{f"adaptive_bits_{name}": each["adaptive"].bits for name, each in ran.items()},
    }
    lines = [
        f"{name:>10}: " + ", ".join(f"{who} {it.samples}" for who, it in each.items())
        for name, each in ran.items()
    ]
    return Result(
        name="adaptive",
        quick=quick,
        metrics=metrics,
        lines=(*lines, *(f"{key:>28} = {value:.3f}" for key, value in metrics.items())),
        samples={key: [value] for key, value in metrics.items()},
        settings={
            "seed": _SEED,
            "seconds": seconds,
            "traces": _TRACES,
            "samples": {
                name: {who: it.samples for who, it in each.items()} for name, each in ran.items()
            },
        },
    )


def _ratio(ran: Mapping[str, _Ran]) -> float:
    return ran["adaptive"].samples / max(it.samples for who, it in ran.items() if who in _FIXED)


def _trace(key: str) -> RateTrace:
    """A recorded downlink, in its own pieces."""
    with np.load(DATA / "net_traces" / "throughput.npz") as arrays:
        rates = arrays[key].astype(np.float64) * 125_000
    index = (DATA / "net_traces" / "index.csv").read_text().splitlines()
    columns = index[0].split(",")
    row = next(line.split(",") for line in index if line.startswith(f"{key},"))
    piece_seconds = float(row[columns.index("dt_s")])
    return RateTrace(
        tuple(piece_seconds * number for number in range(len(rates))),
        tuple(np.maximum(rates, _LEAST_RATE).tolist()),
        piece_seconds * len(rates),
    )


def _run(
    example: Example, captured: Captured, trace: RateTrace, contestant: str, seconds: float
) -> _Ran:
    pairs = list(permutations(_DEVICES, 2))
    links = Links.of({pair: LinkShape(bytes_per_second=trace) for pair in pairs}, seed=_SEED)
    devices = [ew.Device(name, speed=_SPEED) for name in _DEVICES]
    size = len(example.inputs)
    compression = Compression.of("auto")
    assert compression is not None
    with ew.Fleet.local(devices, links=Links(LinkShape(_FAST_RATE))) as fleet:
        costs = measure_costs(
            fleet,
            captured,
            microbatch_size=size,
            optimizer=_OPTIMIZER,
            compression=compression,
        )
        costs = _with_limits(with_link_rates(costs, dict.fromkeys(pairs, trace.mean)))
        plan = partition(costs, n_microbatches=_MICROBATCHES)
        plan = replace(plan, codecs=_codecs(plan, costs, contestant))
        recoding = Recoding(plan, costs) if contestant == "adaptive" else None
        settings = RunSettings(_OPTIMIZER, size, seed=_SEED, codec=compression.codec)
        with PipelineRun(fleet, captured.program, captured.state, plan, settings) as pipeline:
            for name in _DEVICES:
                fleet.ask(name, "emulate", Emulate(links=links), timeout_seconds=5.0)
            return _train(
                pipeline, repeated_batch(example, _MICROBATCHES), CodecWatch(recoding), seconds
            )


def _train(pipeline: PipelineRun, batch: Batch, watch: CodecWatch, seconds: float) -> _Ran:
    """Whole steps, until the time is up; the last counts by as much as lay within it."""
    n_links = 2 * (len(pipeline.plan.devices) - 1)
    started, done = time.perf_counter(), 0.0
    bits: list[float] = []
    while True:
        step, before = len(bits), time.perf_counter() - started
        watch.before(pipeline, step, batch)
        bits.append(_mean_bits(pipeline.codecs, n_links))
        result = pipeline.train_step(step, batch, {"lr": 0.01})
        watch.after(pipeline, step, result, tuple)
        after = time.perf_counter() - started
        if after >= seconds:
            share = (seconds - before) / (after - before)
            return _Ran(round((done + share) * batch.n_samples), fmean(bits))
        done += 1


def _mean_bits(codecs: Sequence[LinkCodec], n_links: int) -> float:
    exact = n_links - len(codecs)
    return (sum(codec.bits for codec in codecs) + EXACT_BITS * exact) / n_links


def _codecs(plan: Plan, costs: Costs, contestant: str) -> tuple[LinkCodec, ...]:
    if contestant == "adaptive":
        return choose_codecs(plan, costs)
    bits = _FIXED[contestant]
    ways = [pair for ends in pairwise(plan.devices) for pair in (ends, ends[::-1])]
    return () if bits is None else tuple(LinkCodec(*ends, bits) for ends in ways)


def _with_limits(costs: Costs) -> Costs:
    """No two devices can hold the model: else a fast one would do without the links."""
    limit = int(_MEMORY_SHARE * stage_memory_bytes(costs, 0, len(costs.units), _IN_FLIGHT))
    devices = tuple(replace(each, memory_limit_bytes=limit) for each in costs.devices)
    return replace(costs, devices=devices)
