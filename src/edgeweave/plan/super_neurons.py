"""How many layers a super neuron spans, and how many devices share them: EdgePipe's formulas.

What is known of the paper is known from others' readings and code (``M``: layers of a super neuron,
``L``: layers, ``D``: devices, ``N``: batches)::

    groups of devices            G = floor(D / 2)
    layers of a super neuron     M = max(1, floor(L / G)),  M = L for one device
    slots, vertical or hybrid    2 L + 2 M (N - 1) - 1
    slots, horizontal            (2 L - 1) N

A slot is one layer forward or backward; the first layer has no backward. Devices go to groups in
proportion to their layers, at least one each. A network's *layers* here are its units with weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeweave.core.errors import PlanError

__all__ = [
    "Share",
    "horizontal",
    "horizontal_slots",
    "layers_per_super_neuron",
    "paper_hybrid",
    "pipelined_slots",
    "vertical",
]


@dataclass(frozen=True, slots=True)
class Share:
    """A group: so many layers in a row, each sliced over so many devices."""

    n_layers: int
    n_devices: int


def layers_per_super_neuron(n_layers: int, n_devices: int) -> int:
    """EdgePipe's ``M``.

    >>> layers_per_super_neuron(6, 4), layers_per_super_neuron(6, 8), layers_per_super_neuron(6, 1)
    (3, 1, 6)
    """
    _check(n_layers, n_devices)
    if n_devices < 2:
        return n_layers
    return max(1, n_layers // (n_devices // 2))


def paper_hybrid(n_layers: int, n_devices: int) -> tuple[Share, ...]:
    """Groups of ``M`` layers, what remains in one more, and devices for each in proportion.

    >>> [(share.n_layers, share.n_devices) for share in paper_hybrid(6, 4)]
    [(3, 2), (3, 2)]
    """
    each = layers_per_super_neuron(n_layers, n_devices)
    sizes = [min(each, n_layers - first) for first in range(0, n_layers, each)]
    while len(sizes) > n_devices:  # fewer devices than groups: neighbours become one
        sizes[-2:] = [sizes[-2] + sizes[-1]]
    return tuple(
        Share(size, count)
        for size, count in zip(sizes, _in_proportion(sizes, n_devices), strict=True)
    )


def vertical(n_layers: int, n_devices: int) -> tuple[Share, ...]:
    """Each device whole layers, as equal as can be; the later ones get the spare."""
    _check(n_layers, n_devices)
    n_groups = min(n_layers, n_devices)
    least, spare = divmod(n_layers, n_groups)
    return tuple(Share(least + (index >= n_groups - spare), 1) for index in range(n_groups))


def horizontal(n_layers: int, n_devices: int) -> tuple[Share, ...]:
    """Every layer divided over all devices."""
    _check(n_layers, n_devices)
    return (Share(n_layers, n_devices),)


def pipelined_slots(n_layers: int, longest: int, n_batches: int) -> int:
    """Slots for so many batches, where the longest super neuron spans ``longest`` layers."""
    _check(n_layers, n_batches)
    return 2 * n_layers + 2 * longest * (n_batches - 1) - 1


def horizontal_slots(n_layers: int, n_batches: int) -> int:
    """Slots for so many batches, one after the other."""
    _check(n_layers, n_batches)
    return (2 * n_layers - 1) * n_batches


def _in_proportion(sizes: list[int], n_devices: int) -> list[int]:
    """At least one each; the next goes to whose layers have the fewest devices, the first of them.

    >>> _in_proportion([3, 3, 1], 5)
    [2, 2, 1]
    """
    counts = [1] * len(sizes)
    for _ in range(n_devices - len(sizes)):
        neediest = max(range(len(sizes)), key=lambda index: sizes[index] / counts[index])
        counts[neediest] += 1
    return counts


def _check(n_layers: int, n_others: int) -> None:
    if n_layers < 1 or n_others < 1:
        raise PlanError(
            f"a network has a layer, a fleet a device, a run a batch (got {n_layers} and "
            f"{n_others}). Correct them."
        )
