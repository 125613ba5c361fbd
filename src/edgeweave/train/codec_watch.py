"""Codecs of a run: chosen anew when links change, and held to an exact gradient now and then."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeweave.data.batches import Batch
from edgeweave.device import Agreement
from edgeweave.plan import DeviceCosts, LinkCodec, Recoding
from edgeweave.plan.coding import EXACT_BITS
from edgeweave.train.run import PipelineRun, RoundResult

__all__ = ["CodecChange", "CodecWatch"]

_log = logging.getLogger(__name__)

_LEAST_COSINE = 0.9
_NORM_RATIOS = (0.9, 1.1)
"""How far a gradient may be bent: docs/reference-benchmarks.md, ``convergence``."""
_FIRST_PAUSE_STEPS, _LONGEST_PAUSE_STEPS = 128, 512
"""The first steps' gradients are bent most, by codecs that do no harm; they are not judged."""
_SAMPLES = 32
"""Of the microbatch that is compared."""


@dataclass(frozen=True, slots=True)
class CodecChange:
    """From step ``step`` on links have these codecs. ``line()`` says it."""

    step: int
    codecs: tuple[LinkCodec, ...]
    reason: str

    def line(self) -> str:
        """One sentence for a person."""
        shown = (f"{each.source} -> {each.target} {each.bits} bits" for each in self.codecs)
        return f"step {self.step}: {self.reason}; codecs now: {', '.join(shown) or 'none'}."


class CodecWatch:
    """Sets the codecs of one run. Without ``recoding`` they stay as they are, if there are any."""

    def __init__(self, recoding: Recoding | None) -> None:
        self._recoding = recoding
        self._changes: list[CodecChange] = []
        self._compare_at = _FIRST_PAUSE_STEPS
        self._pause_steps = _FIRST_PAUSE_STEPS
        self._found_good: list[Mapping[tuple[str, str], int]] = []

    @property
    def changes(self) -> tuple[CodecChange, ...]:
        """All so far."""
        return tuple(self._changes)

    def before(self, run: PipelineRun, step: int, batch: Batch) -> None:
        """A step is about to begin: compare gradients where that is due, and act on it."""
        if self._recoding is None or not run.codecs or step < self._compare_at:
            return
        size = min(_SAMPLES, batch.n_samples)
        agreement = run.compare(step, batch.microbatches(size)[0])
        if not math.isfinite(agreement.cosine * agreement.norm_ratio):
            self._compare_at = step + self._pause_steps
            _log.warning("step %d: gradients are not finite, with or without codecs", step)
            return
        if _is_good(agreement):
            if not self._are_found_good(run.codecs):
                self._found_good.append({codec.ends: codec.bits for codec in run.codecs})
            self._compare_at = step + self._pause_steps
            self._pause_steps = min(2 * self._pause_steps, _LONGEST_PAUSE_STEPS)
            _log.info("step %d: coded gradients are good (%s)", step, _shown(agreement))
            return
        self._found_good.clear()
        self._pause_steps = _FIRST_PAUSE_STEPS
        if self._recoding.keep_more_bits():
            self._use(run, step, f"coded gradients differ too much ({_shown(agreement)})")
            self._compare_at = step + 1
            return
        self._compare_at = step + _LONGEST_PAUSE_STEPS
        _log.warning(
            "step %d: coded gradients differ too much (%s), and links have no codec of more bits. "
            "Give one, or take codec='none'.",
            step,
            _shown(agreement),
        )

    def after(
        self,
        run: PipelineRun,
        step: int,
        result: RoundResult,
        devices: Callable[[], Sequence[DeviceCosts]],
    ) -> None:
        """A step is done: follow what links carried, and devices that have other costs now."""
        if self._recoding is None:
            return
        is_other = self._recoding.observe(result.link_bytes_per_second, devices())
        run.link_rates = self._recoding.link_rates
        if is_other:
            self._use(run, step + 1, "links or devices have changed")
            if self._found_good and not self._are_found_good(run.codecs):
                self._compare_at = step + 1

    def _are_found_good(self, codecs: Sequence[LinkCodec]) -> bool:
        """Whether others were that left no link more bits than these."""
        return any(
            all(codec.bits >= good.get(codec.ends, EXACT_BITS) for codec in codecs)
            for good in self._found_good
        )

    def _use(self, run: PipelineRun, step: int, reason: str) -> None:
        assert self._recoding is not None, "who found other codecs"
        run.codecs = self._recoding.codecs
        change = CodecChange(step, self._recoding.codecs, reason)
        self._changes.append(change)
        _log.info("%s", change.line())


def _is_good(agreement: Agreement) -> bool:
    low, high = _NORM_RATIOS
    return agreement.cosine >= _LEAST_COSINE and low <= agreement.norm_ratio <= high


def _shown(agreement: Agreement) -> str:
    return f"cosine {agreement.cosine:.3f}, norm ratio {agreement.norm_ratio:.3f}"
