"""Codecs that follow recorded links, in virtual time: nothing is lost against any fixed choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, pairwise, takewhile

import numpy as np
import pytest

from benchmarks.data import DATA
from edgeweave.plan import Coding, Costs, Cut, Link, LinkCodec, Plan, Recoding, choose_codecs
from edgeweave.plan.coding import with_link_rates
from edgeweave.plan.simulate import with_simulated_step
from tests.plan.worlds import equal_costs, plan_of

TRACES = (
    "nyu/7Train2",
    "nyc19/trace-3093662-home3",
    "nyc19/trace-2768760-taxi3",
    "nyc19/trace-3208852-timessquare",
    "mahimahi/TMobile-LTE-short.down",
)
FILE = DATA / "net_traces" / "throughput.npz"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="the recorded traces are not there")

DEVICES = ("d0", "d1", "d2")
WAYS = [pair for ends in pairwise(DEVICES) for pair in (ends, ends[::-1])]
WIDTHS = (16, 12, 8, 6)
LEAST_RATE = 1e3
Codecs = tuple[LinkCodec, ...]


def world() -> tuple[Plan, Costs]:
    """Stages of 60 ms, and cuts that take as long at 25 Mbit/s with 8 bits."""
    costs = equal_costs(
        3,
        3,
        forward_seconds=0.02,
        backward_seconds=0.04,
        link=Link(1e6, 0.02),
        cut=Cut(800_000, 800_000),
    )
    costs = replace(costs, coding=Coding(WIDTHS))
    return plan_of(costs, DEVICES, (0, 1, 2, 3), n_microbatches=8, extra_in_flight=3), costs


def rates_of(key: str) -> tuple[list[float], float]:
    """Bytes per second, and the seconds that each holds."""
    with np.load(FILE) as arrays:
        rates = np.maximum(arrays[key].astype(np.float64) * 125_000, LEAST_RATE)
    return rates.tolist(), 1.0 if key.startswith("nyu/") else 0.1


def mean_rate(key: str) -> Callable[[float, float], float]:
    """The mean rate from one moment to another; the trace begins anew when it ends."""
    rates, piece = rates_of(key)
    carried = np.concatenate([[0.0], np.cumsum(rates) * piece])

    def until(moment: float) -> float:
        whole, left = divmod(moment / piece, len(rates))
        below = int(left)
        return float(whole * carried[-1] + carried[below] + (left - below) * rates[below] * piece)

    return lambda start, stop: (until(stop) - until(start)) / (stop - start)


def steps(plan: Plan, costs: Costs, key: str, codecs: Callable[[float], Codecs]) -> Iterator[float]:
    """What steps take one after another, each at the mean rate of its own time.

    ``codecs`` are told the rate of the step before.
    """
    rate, now = mean_rate(key), 0.0
    before = rate(0.0, 1.0)
    while True:
        coded = replace(plan, codecs=codecs(before))
        seconds = 1.0
        for _ in range(3):  # the rate of a step depends on how long it takes
            before = rate(now, now + seconds)
            at_rate = with_link_rates(costs, dict.fromkeys(WAYS, before))
            seconds = with_simulated_step(coded, at_rate).step_seconds
        now += seconds
        yield seconds


def n_steps(plan: Plan, costs: Costs, key: str, codecs: Callable[[float], Codecs]) -> int:
    """How many are done in 100 seconds."""
    ends = accumulate(steps(plan, costs, key, codecs))
    return sum(1 for _ in takewhile(lambda end: end < 100.0, ends))


@pytest.mark.parametrize("key", TRACES)
def test_following_a_recorded_link_is_no_slower_than_any_codec_all_the_time(key: str) -> None:
    plan, costs = world()
    first = choose_codecs(plan, with_link_rates(costs, dict.fromkeys(WAYS, mean_rate(key)(0, 1))))
    recoding = Recoding(replace(plan, codecs=first), costs)
    used: set[int] = set()

    def adaptive(rate: float) -> Codecs:
        recoding.observe(dict.fromkeys(WAYS, rate))
        used.update(codec.bits for codec in recoding.codecs)
        return recoding.codecs

    def fixed(bits: int) -> Callable[[float], Codecs]:
        return lambda _rate: tuple(LinkCodec(*ends, bits) for ends in WAYS)

    found = n_steps(plan, costs, key, adaptive)
    others = [n_steps(plan, costs, key, fixed(bits)) for bits in WIDTHS]
    exact = n_steps(plan, costs, key, lambda _rate: ())
    assert found >= 0.97 * max(*others, exact)
    assert found > exact, "the link is slow enough for codecs to matter"
    assert used, "and they are used"
