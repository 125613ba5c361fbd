"""Splits over many devices: a beam search from the last unit to the first.

A state says which units behind a position are placed and on whom. Where the exact program keeps
the best state of every set of devices, the beam keeps the best few of every position:

    for each unit i, from the last to the first:
        of all states that begin at some j behind i, and all devices d that they do not use:
            value(state) + span[d, i, j] + transfer[d, front of the state, j]
        keep the least, of those with the same devices in the same first place only the best

Work: ``N * S * D`` for N units, D devices, and S states within the reach of one span.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeweave.plan.splits import ANYWHERE, Floats, Ints, Pins, Split

__all__ = ["beam"]

_DUPLICATES = 4
"""So many times the width are looked at for states that differ."""


class _States:
    """All states kept, in descending order of their first unit; the first one holds nothing."""

    def __init__(self, n_devices: int, n_units: int, width: int) -> None:
        capacity = 1 + n_units * width
        self.value = np.zeros(capacity)
        self.used = np.zeros((capacity, n_devices), dtype=bool)
        self.front = np.zeros(capacity, dtype=np.int64)
        self.first = np.full(capacity, n_units, dtype=np.int64)
        self.n_stages = np.zeros(capacity, dtype=np.int64)
        self.behind = np.zeros(capacity, dtype=np.int64)
        self.set_key = np.zeros(capacity, dtype=np.int64)
        self.begins = np.zeros(n_units + 1, dtype=np.int64)
        self.count = 1

    def add(self, first: int, device: Ints, behind: Ints, value: Floats, set_key: Ints) -> None:
        new = slice(self.count, self.count + len(device))
        self.value[new], self.front[new], self.first[new] = value, device, first
        self.behind[new], self.set_key[new] = behind, set_key
        self.used[new] = self.used[behind]
        self.used[np.arange(new.start, new.stop), device] = True
        self.n_stages[new] = self.n_stages[behind] + 1
        self.count = new.stop

    def split(self, state: int, names: Sequence[str]) -> Split:
        devices, bounds = [], []
        while state:
            devices.append(names[self.front[state]])
            bounds.append(int(self.first[state]))
            state = int(self.behind[state])
        return Split(tuple(devices), (*bounds, int(self.first[0])))


def beam(
    names: Sequence[str],
    span: Floats,
    transfer: Floats,
    earliest: Ints,
    *,
    width: int,
    pins: Pins = ANYWHERE,
) -> list[tuple[float, Split]]:
    """For each number of devices the split with the least sum that the beam finds, if any.

    ``span[d, i, j]`` and ``transfer[d, f, j]`` are infinite where they are not allowed,
    ``earliest`` is ``Grid.earliest_units``. Equal costs give equal splits: nothing is random.
    """
    n_devices, n_units, _ = span.shape
    span = _pinned(span, names, pins)
    hand_on = np.concatenate([transfer, np.zeros((n_devices, n_devices, 1))], axis=2)
    farthest = (np.isfinite(span).any(axis=0) * np.arange(n_units + 1)).max(axis=1)
    keys = np.random.default_rng(0).integers(1, 2**62, size=(n_devices,))
    states = _States(n_devices, n_units, width)
    for first in range(n_units - 1, -1, -1):
        states.begins[first] = states.count
        if not farthest[first]:
            continue
        near = np.arange(states.begins[farthest[first]], states.count)
        stop, front = states.first[near], states.front[near]
        value = states.value[near] + span[:, first, stop] + hand_on[:, front, stop]
        n_behind = np.minimum(states.n_stages[near], len(earliest) - 1)
        too_early = first < earliest[n_behind, :, stop].T
        value[states.used[near].T | too_early] = np.inf
        device, chosen = _least(value, _DUPLICATES * width)
        behind, values = near[chosen], value[device, chosen]
        set_key = states.set_key[behind] ^ keys[device]
        _, distinct = np.unique(set_key ^ (keys[device] >> 1), return_index=True)
        kept = np.sort(distinct)[:width]
        states.add(first, device[kept], behind[kept], values[kept], set_key[kept])
    best: dict[int, int] = {}
    for state in range(states.begins[0], states.count):
        best.setdefault(int(states.n_stages[state]), state)
    return [(float(states.value[state]), states.split(state, names)) for state in best.values()]


def _least(value: Floats, count: int) -> tuple[Ints, Ints]:
    """Row and column of the ``count`` least finite entries, ascending."""
    flat = value.ravel()
    found = np.argpartition(flat, count)[:count] if count < flat.size else np.arange(flat.size)
    found = found[np.isfinite(flat[found])]
    found = found[np.lexsort((found, flat[found]))]
    return found // value.shape[1], found % value.shape[1]


def _pinned(span: Floats, names: Sequence[str], pins: Pins) -> Floats:
    """A pinned device holds its end of the units or nothing, and nobody else holds that end."""
    span = span.copy()
    for pin, end in ((pins.first, np.s_[0, :]), (pins.last, np.s_[:, -1])):
        if pin is not None:
            own = span[names.index(pin)].copy()
            span[(slice(None), *end)] = np.inf
            span[names.index(pin)] = np.inf
            span[(names.index(pin), *end)] = own[end]
    return span
