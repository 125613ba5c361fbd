"""Which device plays which member: those that say much to each other get the links that lose least.

The fitness is EdgePipe's: the sum over pairs of members of what one sends the other per batch,
times the packet reception from the one's device to the other's. Up to eight devices every order is
looked at; above, a search by generations swaps two devices or shifts all of them, and keeps what is
better. Devices that are left over play nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from random import Random

import numpy as np
import numpy.typing as npt

from edgeweave.core.errors import PlanError
from edgeweave.program import Sliced, value_bytes

__all__ = ["MOST_EXHAUSTIVE", "fitness", "map_members", "traffic"]

MOST_EXHAUSTIVE = 8
_GENERATIONS = 1000
_Matrix = npt.NDArray[np.float64]


def traffic(sliced: Sliced, batch: int = 1) -> _Matrix:
    """Bytes from member to member for one microbatch, forward and backward, in ``members``' order.

    What stays on a device is on the diagonal and counts as zero.
    """
    order = {place: index for index, place in enumerate(sliced.members)}
    values = sliced.program.values()
    found = np.zeros((len(order), len(order)))
    for transfer in sliced.transfers:
        source, target = (
            order[sliced.segments[place.segment].group, place.member]
            for place in (transfer.source, transfer.target)
        )
        if source == target:
            continue
        value = values[transfer.value]
        whole = value_bytes(value, batch)
        share = 1.0
        if transfer.dim is not None:
            n_indices = sum(stop - start for start, stop in transfer.span)
            share = n_indices / value.shape_at(batch)[transfer.dim]
        found[source, target] += whole * share
        if value.requires_grad:
            found[target, source] += whole * share
    return found


def fitness(order: Sequence[int], sent: _Matrix, reception: _Matrix) -> float:
    """Bytes that arrive per batch if member ``m`` is device ``order[m]``."""
    chosen = np.asarray(order)
    return float((sent * reception[np.ix_(chosen, chosen)]).sum())


def map_members(
    sent: _Matrix,
    devices: Sequence[str],
    reception: Mapping[tuple[str, str], float],
    rng: Random,
    *,
    generations: int = _GENERATIONS,
) -> tuple[str, ...]:
    """The device of each member. A link that is not in ``reception`` loses nothing."""
    n_members = len(sent)
    if n_members > len(devices):
        raise PlanError(
            f"{n_members} slices need as many devices (got {len(devices)}). Make fewer."
        )
    matrix = np.array(
        [[1.0 if a == b else reception.get((a, b), 1.0) for b in devices] for a in devices]
    )
    if len(devices) <= MOST_EXHAUSTIVE:
        order = _every_order(sent, matrix)
    else:
        order = _by_generations(sent, matrix, rng, generations)
    return tuple(devices[index] for index in order[:n_members])


def _every_order(sent: _Matrix, reception: _Matrix) -> tuple[int, ...]:
    """The best of all, the first of equals."""
    orders = np.array(list(permutations(range(len(reception)), len(sent))))
    fitnesses = np.zeros(len(orders))
    for source, target in zip(*np.nonzero(sent), strict=True):
        chosen = reception[orders[:, source], orders[:, target]]
        fitnesses += sent[source, target] * chosen
    return tuple(int(index) for index in orders[int(fitnesses.argmax())])


def _by_generations(
    sent: _Matrix, reception: _Matrix, rng: Random, generations: int
) -> tuple[int, ...]:
    """Candidates of each generation: two devices swapped, and all shifted by one."""
    n_members = len(sent)
    best = list(range(len(reception)))
    reached = fitness(best[:n_members], sent, reception)
    for _ in range(generations):
        for candidate in (_swapped(best, rng), best[1:] + best[:1]):
            found = fitness(candidate[:n_members], sent, reception)
            if found > reached:
                best, reached = candidate, found
    return tuple(best)


def _swapped(order: list[int], rng: Random) -> list[int]:
    first, second = rng.sample(range(len(order)), 2)
    swapped = list(order)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return swapped
