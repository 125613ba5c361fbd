"""Codecs that follow recorded links, in virtual time: against the same codec all the time.

Three stages and the links between them, in both directions, on one of the recorded LTE links that
`adaptive` uses. Steps follow each other for ten minutes of the trace, which begins anew at its end;
each is simulated at the mean rate of its own time. Who follows is told the rate of the step before.
Nothing disturbs this, so it tells apart what real runs, which differ by more, do not.

    following_vs_best_<trace>   steps done, following / the best of exact, 16, 12, 8 and 6 bits; the
                                least of three speeds of the devices
    following_bits_<trace>      of a value on average, 32 where it is exact, at that speed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

import numpy as np

from benchmarks.adaptive import LEAST_RATE, TRACES
from benchmarks.data import DATA
from benchmarks.harness import Result
from edgeweave.plan import (
    Coding,
    Costs,
    Cut,
    DeviceCosts,
    Link,
    LinkCodec,
    Plan,
    Recoding,
    Stage,
    UnitFacts,
    choose_codecs,
)
from edgeweave.plan.coding import EXACT_BITS, with_link_rates
from edgeweave.plan.simulate import with_simulated_step

__all__ = ["WIDTHS", "Trace", "followed", "kept", "run", "world"]

WIDTHS = (16, 12, 8, 6)

_DEVICES = ("a", "b", "c")
_WAYS = [pair for ends in pairwise(_DEVICES) for pair in (ends, ends[::-1])]
_SPEEDS = (0.1, 0.3, 1.0)
_SECONDS, _QUICK_SECONDS = 600.0, 60.0
_ROUNDS = 3
"""The rate of a step depends on how long it takes."""

Codecs = tuple[LinkCodec, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """Bytes per second, each for ``piece_seconds``; it begins anew when it ends."""

    rates: tuple[float, ...]
    piece_seconds: float

    @classmethod
    def load(cls, key: str) -> Trace:
        with np.load(DATA / "net_traces" / "throughput.npz") as arrays:
            rates = np.maximum(arrays[key].astype(np.float64) * 125_000, LEAST_RATE)
        return cls(tuple(rates.tolist()), 1.0 if key.startswith("nyu/") else 0.1)

    def mean(self) -> Callable[[float, float], float]:
        """The mean rate from one moment to another."""
        rates, piece = self.rates, self.piece_seconds
        carried = np.concatenate([[0.0], np.cumsum(rates) * piece])

        def until(moment: float) -> float:
            whole, left = divmod(moment / piece, len(rates))
            below = int(left)
            part = (left - below) * rates[below] * piece
            return float(whole * carried[-1] + carried[below] + part)

        return lambda start, stop: (until(stop) - until(start)) / (stop - start)


@dataclass(frozen=True, slots=True)
class Done:
    """What was done in the given time."""

    steps: float
    """The last one by as much as lay within it."""
    bits: float


def run(*, quick: bool) -> Result:
    """``quick``: a minute of each trace."""
    seconds = _QUICK_SECONDS if quick else _SECONDS
    found = {name: _judged(Trace.load(key), seconds) for name, key in TRACES.items()}
    ratios = {name: ratio for name, (ratio, _) in found.items()}
    metrics = {
        "following_vs_best_least": min(ratios.values()),
        **{f"following_vs_best_{name}": ratio for name, ratio in ratios.items()},
        **{f"following_bits_{name}": bits for name, (_, bits) in found.items()},
    }
    return Result(
        name="following",
        quick=quick,
        metrics=metrics,
        lines=tuple(f"{key:>27} = {value:.3f}" for key, value in metrics.items()),
        samples={},
        settings={"seed": 0, "seconds": seconds, "speeds": list(_SPEEDS), "traces": TRACES},
    )


def _judged(trace: Trace, seconds: float) -> tuple[float, float]:
    """The least ratio of all speeds, and the bits that went with it."""
    found = []
    for speed in _SPEEDS:
        plan, costs = world(speed)
        best = max(kept(plan, costs, trace, bits, seconds).steps for bits in (None, *WIDTHS))
        mine = followed(plan, costs, trace, seconds)
        found.append((mine.steps / best, mine.bits))
    return min(found)


def world(speed: float = 1.0) -> tuple[Plan, Costs]:
    """Stages of 60 ms at speed 1, and cuts that take as long at 25 Mbit/s with 8 bits."""
    forward, backward = 0.02 / speed, 0.04 / speed
    devices = tuple(DeviceCosts(each, (forward,) * 3, (backward,) * 3, None) for each in _DEVICES)
    costs = Costs(
        units=tuple(UnitFacts(f"unit {number}", 10, 10, 1, 100) for number in range(3)),
        cuts=(Cut(800_000, 800_000),) * 2,
        devices=devices,
        links={},
        default_link=Link(1e6, 0.02),
        optimizer_bytes_per_trainable_byte=0.0,
        coding=Coding(WIDTHS),
    )
    stages = tuple(Stage(each, i, i + 1, 0.0, 0.0, 0) for i, each in enumerate(_DEVICES))
    return Plan(stages, "1f1b", 8, 3, 0.0, 0.0), costs


def kept(plan: Plan, costs: Costs, trace: Trace, bits: int | None, seconds: float) -> Done:
    """With the same bits all the time; None is exact."""
    codecs = () if bits is None else tuple(LinkCodec(*ends, bits) for ends in _WAYS)
    return _done(plan, costs, trace, lambda _rate: codecs, seconds)


def followed(plan: Plan, costs: Costs, trace: Trace, seconds: float) -> Done:
    """With codecs chosen for the first second, and then anew as rates are told."""
    rates = dict.fromkeys(_WAYS, trace.mean()(0.0, 1.0))
    first = choose_codecs(plan, with_link_rates(costs, rates))
    recoding = Recoding(replace(plan, codecs=first), costs)

    def adaptive(rate: float) -> Codecs:
        recoding.observe(dict.fromkeys(_WAYS, rate))
        return recoding.codecs

    return _done(plan, costs, trace, adaptive, seconds)


def _done(
    plan: Plan, costs: Costs, trace: Trace, codecs: Callable[[float], Codecs], seconds: float
) -> Done:
    now, n_steps, bits = 0.0, 0, list[float]()
    for step_seconds, mean_bits in _steps(plan, costs, trace, codecs):
        bits.append(mean_bits)
        if now + step_seconds >= seconds:
            break
        now, n_steps = now + step_seconds, n_steps + 1
    return Done(n_steps + (seconds - now) / step_seconds, fmean(bits))


def _steps(
    plan: Plan, costs: Costs, trace: Trace, codecs: Callable[[float], Codecs]
) -> Iterator[tuple[float, float]]:
    """What steps take, one after another, and their bits. ``codecs`` are told the last rate."""
    mean, now = trace.mean(), 0.0
    before = mean(0.0, 1.0)
    while True:
        coded = replace(plan, codecs=codecs(before))
        seconds = 1.0
        for _ in range(_ROUNDS):
            before = mean(now, now + seconds)
            at_rate = with_link_rates(costs, dict.fromkeys(_WAYS, before))
            seconds = with_simulated_step(coded, at_rate).step_seconds
        now += seconds
        exact = EXACT_BITS * (len(_WAYS) - len(coded.codecs))
        yield seconds, (exact + sum(each.bits for each in coded.codecs)) / len(_WAYS)
