"""Compute one stage of a model that answers requests: one thread, request after request.

    number n:  input n, activation n  ->  forward  ->  activation n to the next stage
                                                       (from the last: result n, to the coordinator)

Requests have the numbers 0, 1, 2, ... in a term, and every stage takes them in this order, so that
answers leave in the order of requests. Receiving and sending go on beside computing. A request that
cannot be computed (an index out of range) is refused alone: the coordinator is told why, and
whether this device is to blame, and the stages behind pass it on unread. What each stage took rides
on the frames of a request, as in training (``timings``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch

from edgeweave.core.clock import Clock
from edgeweave.core.errors import DeviceTimeout, EdgeweaveError
from edgeweave.device.activity import Activity
from edgeweave.device.faults import located, out_of_memory
from edgeweave.device.frames.codec import FrameCoding
from edgeweave.device.messages import Pulse
from edgeweave.device.place import COORDINATOR, Place
from edgeweave.device.serving.tally import StageTally
from edgeweave.device.stages.exchange import StageExchange, as_mapping
from edgeweave.device.threads import adopt_torch_threads
from edgeweave.device.throttle import Throttle
from edgeweave.device.timings import forward_scalars
from edgeweave.net import Frame
from edgeweave.net.remote import encode_error
from edgeweave.program import StageProgram, is_external, made_up

__all__ = ["ServingStage"]

_REHEARSALS = 8
_ALL = 0
"""The round of all requests of a term: their numbers are those of microbatches."""


class _Ended(EdgeweaveError):
    """The stage is to stop while it waits; not a fault."""


class ServingStage:
    """Answers requests until it is closed. Owned by ``with``: leaving joins the thread.

    ``computing`` is held while it computes: two stages on one device, while one takes over from the
    other, take turns. Of requests of ``usual_samples`` it tells, along with them, what they took.
    """

    def __init__(
        self,
        place: Place,
        stage: StageProgram,
        exchange: StageExchange,
        *,
        throttle: Throttle,
        clock: Clock,
        computing: threading.Lock,
        tally: StageTally,
        usual_samples: int,
        coding: FrameCoding | None,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._place = place
        self._stage = stage
        self._exchange = exchange
        self._throttle = throttle
        self._clock = clock
        self._computing = computing
        self._tally = tally
        self._usual_samples = usual_samples
        self._coding = coding
        self._on_fault = on_fault
        self._activity = Activity(place, clock, lambda: exchange.awaited)
        self._senders: list[tuple[str, int]] = []
        if any(is_external(value.name) for value in stage.program.inputs):
            self._senders.append(("input", COORDINATOR))
        self._senders += [("activation", sender) for sender in place.senders]
        self._answered = 0
        self._took = 0.0
        """Seconds of the last forward."""
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=f"edgeweave-serving-{place.stage}")

    def rehearse(self, size: int, known_seconds: float | None) -> None:
        """Warm up, and learn how to pace an emulated device: as it profiled, else as it is now."""
        stopwatch = self._throttle.stopwatch()
        inputs = {value.name: made_up(value, size) for value in self._stage.program.inputs}
        samples = []
        for _ in range(1 if known_seconds is not None else _REHEARSALS + 1):
            started = stopwatch()
            self._forward(inputs)
            samples.append(stopwatch() - started)
        if known_seconds is None:
            self._throttle.rehearse(("forward", size), samples[1:])
        else:
            self._throttle.hold(("forward", size), known_seconds)

    def pulse(self) -> Pulse:
        """What the thread does now; it is not asked."""
        return self._activity.pulse(self._answered)

    def __enter__(self) -> Self:
        self._exchange.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending = True
        self._exchange.inbox.fail(_Ended("the stage was told to stop"))
        self._thread.join()
        self._exchange.__exit__(_Ended, _Ended("the stage was told to stop"), None)

    def _run(self) -> None:
        adopt_torch_threads()
        try:
            while True:
                self._answer(self._answered)
                self._answered += 1
        except _Ended:
            return
        except BaseException as error:  # noqa: BLE001 - a thread's boundary: reported, never lost
            if not self._ending:
                self._exchange.inbox.fail(_Ended("the stage failed"))
                self._on_fault(error)

    def _answer(self, number: int) -> None:
        inputs: dict[str, torch.Tensor] = {}
        heard: dict[str, float] = {}
        is_refused = False
        for kind, sender in self._senders:
            frame = self._wait(kind, sender, number)
            inputs.update(as_mapping(frame))
            heard |= frame.header.scalars
            is_refused = is_refused or bool(frame.header.scalars.get("refused"))
        samples = int(heard["samples"])
        outputs = None if is_refused else self._computed(number, inputs, samples)
        is_usual = outputs is not None and samples == self._usual_samples
        told = forward_scalars(self._place.stage, self._took if is_usual else None, heard)
        self._hand_on(number, samples, outputs, told)
        self._tally.add(requests=1)

    def _wait(self, kind: str, sender: int, number: int) -> Frame:
        """The frame of a request, however long nobody asks: who asks watches for deadlines."""
        with self._timed("idle"):
            while True:
                try:
                    return self._exchange.wait(kind, sender, _ALL, number)
                except DeviceTimeout:
                    if self._exchange.inbox.error is not None:
                        raise

    def _computed(
        self, number: int, inputs: Mapping[str, torch.Tensor], samples: int
    ) -> dict[str, torch.Tensor] | None:
        """The outputs; None for a request that cannot be computed, of which the reason is told."""
        try:
            with (
                self._computing,
                self._timed("compute"),
                self._throttle.pace(("forward", samples)),
            ):
                return self._forward(inputs)
        except Exception as error:  # noqa: BLE001 - whatever an operator raises on odd values
            self._tally.add(refused=1)
            shortage = out_of_memory(error, self._place, samples)
            described = encode_error(shortage or located(error, self._place))
            reason = torch.frombuffer(bytearray(described), dtype=torch.uint8)
            scalars = {"device": float(shortage is not None)}
            self._exchange.send("refused", COORDINATOR, _ALL, number, {"reason": reason}, scalars)
            return None

    def _forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return self._stage.evaluate(inputs).outputs

    def _hand_on(
        self,
        number: int,
        samples: int,
        outputs: Mapping[str, torch.Tensor] | None,
        told: Mapping[str, float],
    ) -> None:
        """To the stages behind; from the last one to the coordinator."""
        place, program = self._place, self._stage.program
        scalars = {"samples": float(samples), "refused": float(outputs is None), **told}
        if outputs is None:
            values = program.values()
            outputs = {name: made_up(values[name], samples) for name in program.outputs}
        if not place.receivers:
            sent = {} if scalars["refused"] else outputs
            self._exchange.send("result", COORDINATOR, _ALL, number, sent, scalars)
        for stage in place.receivers:
            sent = {name: x for name, x in outputs.items() if place.target(name) == stage}
            self._exchange.send("activation", stage, _ALL, number, sent, scalars, self._coding)

    @contextmanager
    def _timed(self, account: str) -> Iterator[None]:
        started = self._clock.now()
        with self._activity.of(account, "forward", self._answered):
            yield
        seconds = self._clock.now() - started
        if account == "compute":
            self._took = seconds
            self._tally.add(compute_seconds=seconds)
        else:
            self._tally.add(wait_seconds=seconds)
