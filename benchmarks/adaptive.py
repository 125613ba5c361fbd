"""Codecs that follow a link, against the same codec all the time, on recorded wireless links.

Three emulated devices train one transformer, whose every cut is as wide as any other. All links
between them replay one recorded LTE trace, from its beginning for each contestant in each of three
turns, on one fleet with one split:

    exact, 8 bits, 6 bits   the same on every link for the whole run
    adaptive                16, 12, 8 or 6 bits or none for each link, chosen anew as rates are
                            told, with gradients compared now and then

    adaptive_vs_best_<trace>   samples in the given time, median of turns, adaptive / the best other
    adaptive_bits_<trace>      of a value on average, 32 where it is exact
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from statistics import fmean, median

import numpy as np
import torch

import edgeweave as ew
from benchmarks.data import DATA
from benchmarks.emulator_runs import repeated_batch
from benchmarks.harness import Result
from benchmarks.latency.drawing import Example
from benchmarks.latency.known import KNOWN
from edgeweave.data.batches import Batch
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
from edgeweave.train.codec_watch import CodecWatch
from edgeweave.train.compression import Compression
from edgeweave.train.measuring.measurements import measure_costs
from edgeweave.train.run import PipelineRun, RunSettings

__all__ = ["LEAST_RATE", "TRACES", "run"]

TRACES = {
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
_TURNS = 3
"""Runs with the same bits differ by 4 %."""
_SEED = 0
_FAST_RATE = 1e9
"""While devices measure; then the trace begins."""
LEAST_RATE = 1e3
"""Bytes per second in an outage, which is one packet a second."""


@dataclass(frozen=True, slots=True)
class _Ran:
    """How a contestant did in the time there was."""

    samples: int
    bits: float


def run(*, quick: bool) -> Result:
    """``quick``: one trace, one turn of six seconds, against 6 bits."""
    torch.manual_seed(_SEED)
    example = next(each for each in (make() for make in KNOWN) if each.name == _NETWORK)
    captured = capture(example.model.train(), example.loss, example.inputs, example.targets)
    seconds, turns = (6.0, 1) if quick else (40.0, _TURNS)
    contestants = [*(list(_FIXED)[-1:] if quick else _FIXED), "adaptive"]
    ran = {
        name: _compared(example, captured, _trace(TRACES[name]), contestants, seconds, turns)
        for name in (list(TRACES)[:1] if quick else TRACES)
    }
    ratios = {name: _ratios(each) for name, each in ran.items()}
    bits = {name: [it.bits for it in each["adaptive"]] for name, each in ran.items()}
    samples = {
        **{f"adaptive_vs_best_{name}": each for name, each in ratios.items()},
        **{f"adaptive_bits_{name}": each for name, each in bits.items()},
    }
    medians = {
        name: {who: _samples(its) for who, its in each.items()} for name, each in ran.items()
    }
    overall = {f"adaptive_vs_best_{name}": _ratio(each) for name, each in medians.items()}
    metrics = {
        "adaptive_vs_best_least": min(overall.values()),
        **overall,
        **{f"adaptive_bits_{name}": median(each) for name, each in bits.items()},
    }
    lines = [
        f"{name:>10}: " + ", ".join(f"{who} {number:.0f}" for who, number in each.items())
        for name, each in medians.items()
    ]
    return Result(
        name="adaptive",
        quick=quick,
        metrics=metrics,
        lines=(*lines, *(f"{key:>28} = {value:.3f}" for key, value in metrics.items())),
        samples=samples,
        settings={
            "seed": _SEED,
            "seconds": seconds,
            "turns": turns,
            "traces": TRACES,
            "samples": {
                name: {who: [it.samples for it in its] for who, its in each.items()}
                for name, each in ran.items()
            },
        },
    )


def _samples(ran: Sequence[_Ran]) -> float:
    return median(it.samples for it in ran)


def _ratio(samples: Mapping[str, float]) -> float:
    return samples["adaptive"] / max(number for who, number in samples.items() if who in _FIXED)


def _ratios(ran: Mapping[str, Sequence[_Ran]]) -> list[float]:
    """Turn by turn."""
    turns = zip(*ran.values(), strict=True)
    return [_ratio({who: it.samples for who, it in zip(ran, turn, strict=True)}) for turn in turns]


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
        tuple(np.maximum(rates, LEAST_RATE).tolist()),
        piece_seconds * len(rates),
    )


def _compared(
    example: Example,
    captured: Captured,
    trace: RateTrace,
    contestants: Sequence[str],
    seconds: float,
    turns: int,
) -> dict[str, list[_Ran]]:
    """How each did in each turn, with the same stages; every turn begins with another one."""
    pairs = list(permutations(_DEVICES, 2))
    traced = Links.of({pair: LinkShape(bytes_per_second=trace) for pair in pairs}, seed=_SEED)
    fast = Links(LinkShape(_FAST_RATE))
    devices = [ew.Device(name, speed=_SPEED) for name in _DEVICES]
    batch, size = repeated_batch(example, _MICROBATCHES), len(example.inputs)
    compression = Compression.of("auto")
    assert compression is not None
    settings = RunSettings(_OPTIMIZER, size, seed=_SEED, codec=compression.codec)
    ran: dict[str, list[_Ran]] = {contestant: [] for contestant in contestants}
    with ew.Fleet.local(devices, links=fast) as fleet:
        costs = measure_costs(
            fleet,
            captured,
            microbatch_size=size,
            optimizer=_OPTIMIZER,
            compression=compression,
        )
        costs = _with_limits(with_link_rates(costs, dict.fromkeys(pairs, trace.mean)))
        plan = partition(costs, n_microbatches=_MICROBATCHES)
        for turn in range(turns):
            for contestant in (*contestants[turn:], *contestants[:turn]):
                coded = replace(plan, codecs=_codecs(plan, costs, contestant))
                recoding = Recoding(coded, costs) if contestant == "adaptive" else None
                _emulate(fleet, fast)
                with PipelineRun(
                    fleet, captured.program, captured.state, coded, settings
                ) as pipeline:
                    _emulate(fleet, traced)
                    ran[contestant].append(_train(pipeline, batch, CodecWatch(recoding), seconds))
    return ran


def _emulate(fleet: ew.Fleet, links: Links) -> None:
    for name in _DEVICES:
        fleet.ask(name, "emulate", Emulate(links=links), timeout_seconds=5.0)


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
