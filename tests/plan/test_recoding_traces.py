"""Codecs that follow recorded links, in virtual time: nothing is lost against any fixed choice."""

from __future__ import annotations

import pytest

from benchmarks.adaptive import TRACES
from benchmarks.data import DATA
from benchmarks.following import WIDTHS, Trace, followed, kept, world
from edgeweave.plan.coding import EXACT_BITS

FILE = DATA / "net_traces" / "throughput.npz"
SECONDS = 100.0


@pytest.mark.skipif(not FILE.exists(), reason="the recorded traces are not there")
@pytest.mark.parametrize("key", TRACES.values())
def test_following_a_recorded_link_is_no_slower_than_any_codec_all_the_time(key: str) -> None:
    plan, costs = world()
    trace = Trace.load(key)
    found = followed(plan, costs, trace, SECONDS)
    exact = kept(plan, costs, trace, None, SECONDS)
    others = [kept(plan, costs, trace, bits, SECONDS) for bits in WIDTHS]
    assert found.steps >= 0.97 * max(each.steps for each in (*others, exact))
    assert found.steps > exact.steps, "the link is slow enough for codecs to matter"
    assert found.bits < EXACT_BITS, "and they are used"


def test_a_step_is_simulated_at_the_mean_rate_of_its_own_time() -> None:
    trace = Trace((4e6, 1e6), 10.0)
    assert trace.mean()(5.0, 15.0) == pytest.approx(2.5e6)
    assert trace.mean()(15.0, 25.0) == pytest.approx(2.5e6)  # begun anew
    plan, costs = world()
    quick, slow = (kept(plan, costs, Trace((each,), 1.0), 8, SECONDS) for each in (1e9, 1e6))
    both = kept(plan, costs, Trace((1e9, 1e6), SECONDS / 2), 8, SECONDS)
    assert both.steps == pytest.approx((quick.steps + slow.steps) / 2, rel=0.05)
