"""Which samples of a batch matter: groups by descending score, until there are enough samples.

Scores of aggregated points, higher matters more:

    last-layer    || p - onehot(y) || * || (h, 1) ||: the norm of the gradient of the last linear
                  layer, in closed form: one forward, no backward (the default)
    first-layer   L1 norm of the gradient of the first layer's weights, one backward a point (the
                  papers' own)

This module has the closed form and the choice; who has the model computes logits and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from edgeweave.mixing.aggregation import Groups, Indices

__all__ = ["IMPORTANCES", "Importance", "chosen", "last_layer_scores"]

Importance = Literal["none", "last-layer", "first-layer"]
IMPORTANCES: tuple[Importance, ...] = ("none", "last-layer", "first-layer")
"""``none`` chooses at random."""


def last_layer_scores(
    logits: torch.Tensor, hidden: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    """The norm of each point's gradient of cross entropy in the last layer's weights and bias.

    ``hidden`` is what the layer reads; without it (the model ends in something else) the first
    factor alone.
    """
    difference = logits.softmax(dim=1)
    difference[torch.arange(len(labels)), labels] -= 1.0
    scores: torch.Tensor = difference.norm(dim=1)
    if hidden is None:
        return scores
    size: torch.Tensor = (hidden.flatten(1).square().sum(dim=1) + 1.0).sqrt()
    return scores * size


def chosen(groups: Groups, candidates: Sequence[int], scores: torch.Tensor, n: int) -> Indices:
    """``n`` samples of the candidate groups, those of high scores first; of the last group as many
    as are still missing. Fewer, if the candidates have no more.
    """
    ranking = torch.argsort(scores, descending=True, stable=True).tolist()
    members = np.concatenate([groups.members(candidates[place]) for place in ranking])
    return members[:n]
