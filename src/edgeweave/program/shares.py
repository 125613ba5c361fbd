"""What each member of a group holds of a tensor, and what an operator asks of its operands.

A ``Share`` says which indices of one dimension are whose; a tensor without a share is whole at
every member. A ``Ruling`` is what a rule decides about one node: how its operands must lie, how its
results then lie, and how one member computes its part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from edgeweave.program.graph import Node, StateSpec, Value
from edgeweave.program.spans import Span, even

__all__ = ["Asked", "Lies", "Mode", "Partial", "Ruling", "Share", "Surroundings", "TooFine"]

Mode = Literal["exchange", "grouped"]
"""``exchange``: layers see all neurons, a dense model. ``grouped``: inside a group each member's
slice sees only its own neurons of the layer before, another model with block-diagonal weights."""


@dataclass(frozen=True, slots=True)
class Share:
    """One dimension divided over the members of a group."""

    dim: int
    spans: tuple[Span, ...]
    layers: frozenset[int] = field(default=frozenset(), compare=False)
    """Nodes whose neurons these are; a coarser slicing of them would make coarser spans."""
    grain: Fraction = field(default=Fraction(1), compare=False)
    """Indices for each neuron of those layers."""


@dataclass(frozen=True, slots=True)
class Partial:
    """Each member holds a sum over its own ``spans`` of the neurons before; together, the value."""

    spans: tuple[Span, ...]


Lies = Share | Partial | None
"""How a value lies over the members of the group that made it; None: whole at each."""

Asked = tuple[Share, ...]
"""How a node wants an operand: whole (empty), in one share, or (weights) in one for each of two
dimensions."""


class TooFine(Exception):
    """Layers must be cut in multiples of a granule, so that blocks of their neurons stay whole."""

    def __init__(self, granules: Mapping[int, int]) -> None:
        super().__init__(granules)
        self.granules = granules


def _itself(node: Node, member: int) -> tuple[Node, ...]:
    return (node,)


@dataclass(frozen=True, slots=True)
class Ruling:
    """How a group computes one node."""

    reads: Mapping[str, Asked]
    results: tuple[Lies, ...]
    adapt: Callable[[Node, int], tuple[Node, ...]] = _itself
    """The nodes that a member computes instead. Operands are named as they lie there."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a rule may know: shapes, the group, and what its members hold so far."""

    values: Mapping[str, Value]
    """Of state entries too."""
    cut_state: Mapping[str, StateSpec]
    """State that training changes: no two members hold the same part of it."""
    n_members: int
    mode: Mode
    held: Mapping[str, Lies]
    """Of values that this group made."""
    latest: Collection[str]
    """Those of them that it made since the last exchange."""
    granules: Mapping[int, int]
    summed: Collection[int]
    """Linear layers that are cut by the neurons before them, each member making a sum."""

    def shape(self, name: str, *, batch: int = 2) -> tuple[int, ...]:
        """Sizes, for a number of samples."""
        return self.values[name].shape_at(batch)

    def own(self, name: str, dim: int | None = None) -> Share | None:
        """The share in which the group holds a value, if it lies along ``dim`` (None: anywhere)."""
        share = self.held.get(name)
        return share if isinstance(share, Share) and dim in (None, share.dim) else None

    def begin(self, layer: int, dim: int, n_neurons: int, *, block: int = 1) -> Share:
        """Cut ``n_neurons`` anew, in multiples of what the layer's granule says.

        Each is a block of indices.
        """
        granule = self.granules.get(layer, 1)
        granule = granule if n_neurons % granule == 0 else 1
        spans = even(n_neurons, self.n_members, granule)
        if block > 1:
            spans = tuple(tuple((a * block, b * block) for a, b in span) for span in spans)
        return Share(dim, spans, frozenset({layer}), Fraction(block))

    def coarsen(self, share: Share, block: int) -> None:
        """Ask for slices of whole blocks, if the layers of this share can still be made so."""
        wanted = block / share.grain
        found = {
            layer: granule
            for layer in share.layers
            if (granule := math.lcm(self.granules.get(layer, 1), wanted.numerator))
            != self.granules.get(layer, 1)
        }
        if found:
            raise TooFine(found)
