"""Probing: every network once, in order, as far as the time suffices; then again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec
import pytest
import torch

from edgeweave.core.clock import Clock, VirtualClock
from edgeweave.device.probes.prober import probe, still_holds
from edgeweave.device.throttle import Throttle
from edgeweave.predict.probe import Probe, ProbeProgram, probe_programs
from edgeweave.program import without_outputs
from tests.predict.probes import FACTS

CPU = torch.device("cpu")
SMALL = [each for each in probe_programs() if each.name in ("linear", "recurrent")]


class TickingClock:
    """A clock that moves on by ``tick_seconds`` whenever it is read."""

    def __init__(self, tick_seconds: float) -> None:
        self._now, self._tick_seconds = 0.0, tick_seconds

    def now(self) -> float:
        self._now += self._tick_seconds
        return self._now

    def sleep(self, seconds: float) -> None:
        raise AssertionError(f"probing slept {seconds} s")


def ticking(tick_seconds: float = 1.0) -> Callable[[], float]:
    """The CPU counter of an emulated device, which moves on whenever it is read."""
    return itertools.count(step=tick_seconds).__next__


def probed(
    clock: Clock, networks: Sequence[ProbeProgram] = SMALL, throttle: Throttle | None = None
) -> Probe:
    return probe(
        FACTS, networks, throttle=throttle or Throttle(None, clock), clock=clock, device=CPU
    )


def test_a_fast_device_runs_all_networks_many_times() -> None:
    found = probed(TickingClock(1e-6))
    assert [each.name for each in found.networks] == ["linear", "recurrent"]
    assert [each.n_passes for each in found.networks] == [15, 15]
    assert found.left_out == ()
    assert found.facts == FACTS


def test_passes_end_when_the_time_is_up() -> None:
    clock = TickingClock(0.01)
    found = probed(clock)
    assert all(1 < each.n_passes < 15 for each in found.networks)
    assert clock.now() < 2.1


def test_a_slow_device_leaves_out_the_last_networks_and_says_so() -> None:
    found = probed(TickingClock(0.03), probe_programs())
    names = [each.name for each in probe_programs()]
    ran = [each.name for each in found.networks]
    assert 1 < len(ran) < len(names)
    assert (*ran, *found.left_out) == tuple(names)
    assert {each.n_passes for each in found.networks} == {1}
    assert len(found.measurements()) == sum(len(each.forward_seconds) for each in found.networks)


def test_the_slowest_device_runs_the_first_network() -> None:
    found = probed(TickingClock(1.0))
    assert [each.name for each in found.networks] == ["linear"]
    assert found.left_out == ("recurrent",)


def test_every_unit_has_its_time() -> None:
    found = probed(TickingClock(1e-4))
    for ran, network in zip(found.networks, SMALL, strict=True):
        n_units = len(without_outputs(network.program).unit_numbers)
        assert len(ran.forward_seconds) == len(ran.backward_seconds) == n_units
        assert min(ran.forward_seconds) > 0
        assert ran.seconds == pytest.approx(sum(ran.forward_seconds) + sum(ran.backward_seconds))


def test_an_emulated_device_takes_longer_in_proportion() -> None:
    full, quarter = (
        probed(VirtualClock(), SMALL[:1], Throttle(speed, VirtualClock(), cpu_seconds=ticking()))
        for speed in (1.0, 0.25)
    )
    assert quarter == full.stretched(4.0)


def test_probing_draws_no_random_number_of_others() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    probed(TickingClock(1.0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("slower", "holds"), [(1.0, True), (1.15, True), (0.85, True), (1.25, False), (0.75, False)]
)
def test_what_is_known_holds_while_the_first_network_takes_as_long(
    slower: float, holds: bool
) -> None:
    known = probed(TickingClock(0.01))
    throttle = Throttle(None, TickingClock(0.01 * slower))
    assert still_holds(known, FACTS, SMALL, throttle=throttle, device=CPU) == holds


def test_other_facts_are_another_device_whatever_it_takes() -> None:
    known = probed(TickingClock(1.0))
    others = msgspec.structs.replace(FACTS, torch="2.9.0")
    throttle = Throttle(1.0, VirtualClock(), cpu_seconds=_never)
    assert not still_holds(known, others, SMALL, throttle=throttle, device=CPU)


def _never() -> float:
    raise AssertionError("nothing is to be timed")
