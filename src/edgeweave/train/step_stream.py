"""Training steps that overlap: the next one's inputs go out before this one's results are here.

    submit 0, submit 1 -> collect 0, submit 2 -> collect 1 ... flush

No more microbatches than a window are under way, of whatever steps. Results come in order. Devices
end a step's last backwards when they hear what follows it: another step, or a flush.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from edgeweave.core.errors import WireError
from edgeweave.data.batches import Batch
from edgeweave.net import FrameHeader

__all__ = ["Pipe", "StepStream"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Pipe:
    """What a stream needs of its run. Everything blocks as long as the network does."""

    window: int
    """Microbatches under way at most."""
    announce: Callable[[int, int, Mapping[str, float]], int]
    """Begin a round: its step, microbatches and what devices are told; its number."""
    send_inputs: Callable[[int, int, Batch], None]
    """Of a round's microbatch."""
    wait_result: Callable[[int, int], FrameHeader]
    """Of a round's microbatch; raises what ended the run."""
    now: Callable[[], float]


@dataclass(slots=True)
class _UnderWay:
    """A step that was submitted, and the results that are here."""

    number: int
    n_parts: int
    started: float
    version: int
    """Of the weights with which the last stage computes all of it."""
    results: list[FrameHeader] = field(default_factory=list)
    seconds: float = 0.0
    """From the last result of the step before, or its own start, to its last result."""

    @property
    def is_complete(self) -> bool:
        return len(self.results) == self.n_parts


class StepStream(Generic[Result]):
    """The steps of one run that were submitted and not collected.

    ``summed(results, seconds)`` makes what ``collect`` returns; steps' seconds add up to the time
    that passed, without what lay between a flush and the next step.
    """

    def __init__(
        self,
        pipe: Pipe,
        summed: Callable[[Sequence[FrameHeader], float], Result],
        *,
        weight_aggregation: int | None,
    ) -> None:
        self._pipe = pipe
        self._summed = summed
        self._aggregation = weight_aggregation
        self._rounds: deque[_UnderWay] = deque()
        self._n_under_way = 0
        self._last_step: int | None = None
        self._version = 0
        self._ended = 0.0

    def submit(self, step: int, parts: Sequence[Batch], told: Mapping[str, float]) -> None:
        """Let an optimizer step follow those under way, without a flush between them.

        Returns when its last input was sent; results of all but a window of microbatches are here
        then. Submit the next step soon, or ``flush``: devices wait to hear what follows.
        """
        started = self._pipe.now()
        number = self._pipe.announce(step, len(parts), told)
        self._rounds.append(_UnderWay(number, len(parts), started, self._version))
        self._last_step = step
        every = self._aggregation
        self._version += 2 if every is not None and (step + 1) % every == 0 else 1
        for microbatch, part in enumerate(parts):
            while self._n_under_way >= self._pipe.window:
                self._hear()
            self._pipe.send_inputs(number, microbatch, part)
            self._n_under_way += 1

    def collect(self) -> Result:
        """What came of the oldest step that was not collected, waited for."""
        while not self._rounds[0].is_complete:
            self._hear()
        return self._collected()

    def collect_nowait(self) -> tuple[Result, ...]:
        """Of the steps whose last result was heard while others were submitted."""
        found = []
        while self._rounds and self._rounds[0].is_complete:
            found.append(self._collected())
        return tuple(found)

    def collect_all(self) -> tuple[Result, ...]:
        """Of all steps, waited for."""
        self.settle()
        return self.collect_nowait()

    def settle(self) -> None:
        """Wait for all results; they can still be collected."""
        while self._n_under_way:
            self._hear()

    def flush(self) -> None:
        """Let devices end what is under way, after which all have done the same updates.

        Waits for the results, not for the devices.
        """
        self.settle()
        if self._last_step is not None:
            self._pipe.announce(self._last_step, 0, {"train": 0.0})
            self.ended()

    def ended(self) -> None:
        """Another round than a training step was announced, which is a flush."""
        self._last_step = None

    def _hear(self) -> None:
        """Take in the next result; ``WireError`` if it is of other weights than it should be."""
        awaited = next(each for each in self._rounds if not each.is_complete)
        header = self._pipe.wait_result(awaited.number, len(awaited.results))
        told = header.scalars.get("version")
        if told != awaited.version:
            raise WireError(
                f"the coordinator expects version {awaited.version} of the weights behind the "
                f"result of microbatch {len(awaited.results)} (round {awaited.number}) (got {told} "
                f"from stage {header.stage} on {header.device}). It has missed an update: resume "
                "from the last checkpoint."
            )
        awaited.results.append(header)
        self._n_under_way -= 1
        if awaited.is_complete:
            now = self._pipe.now()
            awaited.seconds = now - max(awaited.started, self._ended)
            self._ended = now

    def _collected(self) -> Result:
        taken = self._rounds.popleft()
        return self._summed(taken.results, taken.seconds)
