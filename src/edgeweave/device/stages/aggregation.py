"""FTPipeHD's weight aggregation (arXiv:2110.02781): now and then the mean of the last versions.

    every k updates, stage s of n:   weights = mean of its last n - s versions      a new version
    the last stage                   weights stay                                   a new version

Older versions are those since the stream began; while there are fewer than n, nothing changes but
the number. The mean counts as a version, and the weights it was made of do. What the optimizer
keeps (momentum) stays as it is. k counts steps of training, so that a resumed run goes on alike.
"""

from __future__ import annotations

from collections import deque

import torch

from edgeweave.program import VersionedStage, Weights

__all__ = ["Aggregation"]


class Aggregation:
    """One stage's part in it; with ``every=None`` none."""

    def __init__(self, every: int | None, stage: int, n_stages: int) -> None:
        self._every = every
        self._n_stages = n_stages
        self._last: deque[Weights] = deque(maxlen=n_stages - stage)
        self._n_versions = 0

    @property
    def keeps(self) -> bool:
        """Whether a version must stay as it is although no microbatch in flight needs it."""
        return self._every is not None and self._last.maxlen != 1

    def begin(self, stage: VersionedStage) -> None:
        """A stream begins: what came before is forgotten."""
        self._last.clear()
        self._n_versions = 0
        self._note(stage)

    def after_update(self, step: int, stage: VersionedStage) -> int:
        """The update of a step was done; how many versions that made."""
        self._note(stage)
        if self._every is None or (step + 1) % self._every:
            return 1
        if self.keeps and self._n_versions >= self._n_stages:
            stage.set_version(_mean(list(self._last)))
        self._note(stage)
        return 2

    def _note(self, stage: VersionedStage) -> None:
        self._n_versions += 1
        if self.keeps:
            self._last.append(stage.version)


def _mean(versions: list[Weights]) -> dict[str, torch.Tensor]:
    """Summed from the oldest on, then divided."""
    found = {}
    with torch.no_grad():
        for name, tensor in versions[0].items():
            total = tensor.clone()
            for version in versions[1:]:
                total += version[name]
            found[name] = total.div_(len(versions))
    return found
