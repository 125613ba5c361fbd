"""Run the probe's networks on this device, in the time there is.

plain: warm up, pass   transformer: warm up, pass   ...   plain: pass   transformer: pass  ...
|---------------- every network once, in order ---------| |-------- until the time is up -----|
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch

from edgeweave.core.clock import Clock
from edgeweave.device.probes.profiler import made_up_state
from edgeweave.device.throttle import Throttle
from edgeweave.predict.facts import DeviceFacts
from edgeweave.predict.probe import NetworkSeconds, Probe, ProbeProgram, probe_digest
from edgeweave.program import StageProgram, cut, without_outputs
from edgeweave.program.watch import UnitWatch

__all__ = ["BUDGET_SECONDS", "probe", "still_holds"]

BUDGET_SECONDS = 2.0

_MOST_PASSES = 15
_CHECK_PASSES = 3
_ALIKE = 0.2
"""How far a device may be from what it took before, as a share of that."""


class _Network:
    """One network, ready to run on this device."""

    def __init__(self, network: ProbeProgram, throttle: Throttle, device: torch.device) -> None:
        self._network, self._throttle = network, throttle
        program = without_outputs(network.program)
        state = made_up_state(program.state)
        (whole,) = cut(program, ())
        self._stage = StageProgram(whole, state, device=device, take_over=True)
        self._passes: list[UnitWatch] = []
        self._pass()  # warms up

    def run(self) -> None:
        """One more pass."""
        self._passes.append(self._pass())

    def result(self) -> NetworkSeconds:
        """The typical seconds of every unit."""
        return NetworkSeconds(
            self._network.name,
            self._typical([each.forward_seconds for each in self._passes]),
            self._typical([each.backward_seconds for each in self._passes]),
            len(self._passes),
        )

    def _pass(self) -> UnitWatch:
        return self._stage.time_units(self._network.microbatch_size, self._throttle.stopwatch())

    def _typical(self, passes: Sequence[dict[int, float]]) -> tuple[float, ...]:
        slowed = self._throttle.slowed
        return tuple(slowed(median(each[unit] for each in passes)) for unit in passes[0])


def probe(
    facts: DeviceFacts,
    networks: Sequence[ProbeProgram],
    *,
    throttle: Throttle,
    clock: Clock,
    device: torch.device,
    budget_seconds: float = BUDGET_SECONDS,
) -> Probe:
    """Each network once, as far as the time suffices, then all again while it does.

    The first network runs in any case, and what has begun ends: a slow device exceeds the budget
    by one network at most.
    """
    deadline = clock.now() + budget_seconds
    ran: list[_Network] = []
    longest_seconds = 0.0
    for network in networks:
        if ran and clock.now() >= deadline:
            break
        ready = _Network(network, throttle, device)
        started = clock.now()
        ready.run()
        longest_seconds = max(longest_seconds, clock.now() - started)
        ran.append(ready)
    for _ in range(_MOST_PASSES - 1):
        for ready in ran:
            if clock.now() + longest_seconds > deadline:
                break
            ready.run()
    return Probe(
        facts,
        tuple(ready.result() for ready in ran),
        tuple(network.name for network in networks[len(ran) :]),
        probe_digest(),
    )


def still_holds(
    known: Probe,
    facts: DeviceFacts,
    networks: Sequence[ProbeProgram],
    *,
    throttle: Throttle,
    device: torch.device,
) -> bool:
    """Whether a device with these facts still takes as long for the first network (20 %).

    A clock that throttles, or does no more, shows here.
    """
    if known.facts != facts:
        return False
    ready = _Network(networks[0], throttle, device)
    for _ in range(_CHECK_PASSES):
        ready.run()
    before, now = known.networks[0].seconds, ready.result().seconds
    return abs(now - before) <= _ALIKE * before
