"""Which samples a device trains on in a step, as a function of the step: whole batches of a random
order, or the groups among which the important ones are chosen.
"""

from __future__ import annotations

import torch

__all__ = ["Sampler"]


class Sampler:
    """Pieces of ``size`` of ``n`` things, in an order drawn anew every epoch from the seed.

    The last piece of an epoch is what is left, or is left out with ``whole_only``.
    """

    def __init__(self, n: int, size: int, *, seed: int, whole_only: bool = False) -> None:
        self._n = n
        self._size = min(size, n)
        self._seed = seed
        self._whole_only = whole_only
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Pieces of an epoch."""
        return self._n // self._size if self._whole_only else -(-self._n // self._size)

    def at(self, step: int) -> torch.Tensor:
        """The numbers of one step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self._seed * 1_000_003 + epoch) % 2**63)
            self._order = torch.randperm(self._n, generator=generator)
            self._epoch = epoch
        return self._order[place * self._size : (place + 1) * self._size]
