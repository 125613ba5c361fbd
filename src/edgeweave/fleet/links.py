"""Measure the links: between any two devices, and from the coordinator to each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import permutations

from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.device import LinkProbe, LinkTimings, decode_message, probe_link
from edgeweave.fleet import Fleet
from edgeweave.net import control_key
from edgeweave.plan import Link

__all__ = ["measure_links", "measure_links_of"]

_PROBE_BYTES = 1 << 20
_FIRST_PROBE_BYTES = 60_000
_PROBE_SECONDS = 1.0
"""Where the large probe takes longer, the small one was slow enough to tell the rate."""


def measure_links(fleet: Fleet, names: Sequence[str]) -> dict[str, dict[str, Link]]:
    """Every link between devices, and the coordinator's own.

    On the way back to the coordinator go only results, whose size is as good as nothing: its rate
    is that of the way there, its latency half of what a request takes.
    """
    links: dict[str, dict[str, Link]] = {name: {} for name in (COORDINATOR_NAME, *names)}
    for source, target in permutations(names, 2):
        links[source][target] = _link(functools.partial(_probed, fleet, source, target))
    for target in names:
        link = _link(functools.partial(_probed_from_here, fleet, target))
        links[COORDINATOR_NAME][target] = links[target][COORDINATOR_NAME] = link
    return links


def measure_links_of(
    fleet: Fleet, device: str, others: Sequence[str]
) -> dict[tuple[str, str], Link]:
    """The links of one device: from and to each of the others, and the coordinator's."""
    found = {}
    for other in others:
        for source, target in ((device, other), (other, device)):
            found[source, target] = _link(functools.partial(_probed, fleet, source, target))
    link = _link(functools.partial(_probed_from_here, fleet, device))
    found[COORDINATOR_NAME, device] = found[device, COORDINATOR_NAME] = link
    return found


def _link(probe: Callable[[int], LinkTimings]) -> Link:
    """A link by a small probe, and by a large one where that does not take long."""
    timings = probe(_FIRST_PROBE_BYTES)
    loss = timings.loss
    if timings.bytes_per_second * _PROBE_SECONDS > _PROBE_BYTES:
        timings = probe(_PROBE_BYTES)
        loss = (loss + timings.loss) / 2
    return Link(timings.bytes_per_second, timings.latency_seconds, loss)


def _probed(fleet: Fleet, source: str, target: str, size_bytes: int) -> LinkTimings:
    answer = fleet.ask(
        source, "measure", LinkProbe(target, size_bytes), timeout_seconds=fleet.timeouts.work
    )
    return decode_message(answer, LinkTimings)


def _probed_from_here(fleet: Fleet, target: str, size_bytes: int) -> LinkTimings:
    key, seconds = control_key(fleet.name, target, "echo"), fleet.timeouts.request

    def ask(payload: bytes) -> bytes:
        return fleet.transport.request(key, payload, device=target, timeout_seconds=seconds)

    return probe_link(ask, fleet.clock.now, size_bytes)
