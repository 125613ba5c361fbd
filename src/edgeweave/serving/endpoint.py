"""``Endpoint``: one model, served over the devices of a fleet, as a callable.

Knows requests and answers; plans and devices are the ``Keeper``'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch.utils._pytree as pytree
from torch import nn

from edgeweave.core.errors import ConfigError, RequestError
from edgeweave.fleet import Fleet
from edgeweave.plan import Costs, ServingPlan
from edgeweave.program import Inference, Program, capture_inference, faster
from edgeweave.serving.desk import Desk, DeskStatistics
from edgeweave.serving.hands import Hands
from edgeweave.serving.keeper import Keeper
from edgeweave.serving.measuring import Measuring
from edgeweave.serving.options import ServeOptions
from edgeweave.serving.report import Change, ServingReport, report_of
from edgeweave.serving.requests import EndpointClosed, Request, has_rows, named_inputs
from edgeweave.serving.signature import Signature

__all__ = ["Endpoint", "serve"]


def serve(
    model: nn.Module,
    fleet: Fleet,
    example: Any,
    *,
    options: ServeOptions | None = None,
    costs: Costs | None = None,
) -> Endpoint:
    """Serve what ``model.eval()`` computes over the devices of ``fleet``, inside a ``with`` block.

    ``example`` is a request: what the model takes, of the usual number of samples. The model is cut
    for such requests by what each device measured; a fleet of one device serves it whole. Answers
    are those of the unsplit model, whatever device comes or goes meanwhile: bit for bit, where the
    devices' kernels are those of this machine
    and ``options`` ask for nothing faster. Raises ``CaptureError`` for a model that cannot be
    captured, on entering ``PlanError`` if it fits nowhere.

    ``costs`` of an earlier endpoint of this model and fleet spare measuring; devices that they do
    not know are measured. ``ConfigError`` on entering if they are of another model or fleet.

    >>> with serve(model, fleet, example) as endpoint:  # doctest: +SKIP
    ...     answer = endpoint(example)
    ...     answers = list(endpoint.stream(requests))
    """
    captured = capture_inference(model, example)
    return Endpoint(captured, fleet, example, options or ServeOptions(), costs=costs)


class Endpoint:
    """Accepts requests between ``with`` and its end, from any thread.

    Leaving waits for the answers of what was accepted, each at most until its deadline. A device
    that is lost costs time, no request: what it had is computed again elsewhere, and of two answers
    to a request one is dropped. While nobody can serve, requests wait.
    """

    def __init__(
        self,
        inference: Inference,
        fleet: Fleet,
        example: Any,
        options: ServeOptions,
        *,
        costs: Costs | None = None,
    ) -> None:
        samples = _samples_of(example)
        if options.kernels == "fast":
            inference = faster(inference)
        self.signature = Signature.of(inference, example)
        """What requests and answers hold, for those who name their tensors."""
        self._inference = inference
        self._fleet = fleet
        self._options = options
        self._most_samples = max(options.max_samples or samples, options.join_samples)
        if options.join_samples > 1 and not has_rows(inference.program):
            raise ConfigError(
                f"requests are joined where each sample has its own row of every input and output "
                f"(join_samples={options.join_samples}; this model's are of other shapes). Leave "
                "join_samples out."
            )
        usual = min(samples, self._most_samples)
        codec = None if options.codec.name == "none" else options.codec
        self._measuring = Measuring(fleet, inference, usual, codec)
        hands = Hands(
            fleet,
            inference.program,
            inference.state,
            most_samples=self._most_samples,
            codec=codec,
        )
        self._keeper = Keeper(fleet, hands, options, self._measuring, costs=costs)
        self._desk = Desk(
            fleet.clock,
            options,
            build=inference.answer.of,
            on_broken=self._keeper.broken,
            stop_seconds=fleet.timeouts.stop,
        )
        self._is_open = False
        self._was_entered = False
        self._stack = ExitStack()

    @property
    def program(self) -> Program:
        """The captured model: what inputs it takes and what outputs it has."""
        return self._inference.program

    @property
    def max_samples(self) -> int:
        """The most samples that one request may have."""
        return self._options.max_samples or self._most_samples

    @property
    def timeout_seconds(self) -> float:
        """How long a request may take that says nothing else."""
        return self._options.timeout_seconds

    @property
    def plan(self) -> ServingPlan | None:
        """The plan in use; None while nobody can serve."""
        return self._keeper.plan

    @property
    def costs(self) -> Costs | None:
        """What devices measured, once they did."""
        return self._keeper.costs

    @property
    def changes(self) -> tuple[Change, ...]:
        """The plans so far and why each was taken."""
        return self._keeper.changes

    @property
    def is_ready(self) -> bool:
        """Whether a request that is sent now can be computed now."""
        return self._is_open and self._keeper.plan is not None

    def __enter__(self) -> Self:
        if self._was_entered:
            raise ConfigError(
                "an endpoint is opened once (this one was opened before). Make another: "
                "edgeweave.serve(..., costs=endpoint.costs) needs no measuring."
            )
        self._was_entered = True
        with ExitStack() as stack:
            stack.enter_context(self._desk)
            stack.enter_context(self._keeper.begin(self._desk))
            self._is_open = True
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        with self._stack:
            if error is None:
                self._desk.finish()

    def __call__(self, inputs: Any, *, timeout_seconds: float | None = None) -> Any:
        """The model's answer to one request. Waits for room in the queue.

        ``RequestError`` for what the model does not take, ``RequestTimeout`` at the deadline.
        """
        seconds = self._seconds(timeout_seconds)
        return self._accepted(inputs, seconds, wait_seconds=seconds).future.result()

    def submit(self, inputs: Any, *, timeout_seconds: float | None = None) -> Future[Any]:
        """Send a request and return at once; the future has its answer, or its error.

        ``QueueFull`` if there are ``queue_size`` unanswered ones. Callbacks of the future run on
        the network's thread, and must be quick.
        """
        seconds = self._seconds(timeout_seconds)
        return self._accepted(inputs, seconds, wait_seconds=0.0).future

    def stream(
        self, requests: Iterable[Any], *, timeout_seconds: float | None = None
    ) -> Iterator[Any]:
        """The answers to ``requests``, in their order. Requests are read ahead of their answers,
        as many as the queue takes; the first error ends the stream.
        """
        seconds = self._seconds(timeout_seconds)
        under_way: deque[Future[Any]] = deque()
        most = max(self._options.queue_size // 2, 1)
        try:
            for inputs in requests:
                under_way.append(self._accepted(inputs, seconds, wait_seconds=seconds).future)
                while under_way and (len(under_way) >= most or under_way[0].done()):
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def report(self) -> ServingReport:
        """Requests, latencies, and what each device did, so far. Asks the devices."""
        return report_of(
            self._desk.statistics(),
            self._keeper.plan,
            self._keeper.statistics(),
            self._keeper.changes,
            watts=self._options.watts,
        )

    def statistics(self) -> DeskStatistics:
        """What became of requests so far. Asks nobody."""
        return self._desk.statistics()

    def _seconds(self, timeout_seconds: float | None) -> float:
        seconds = self._options.timeout_seconds if timeout_seconds is None else timeout_seconds
        if not 0 < seconds <= 86_400:
            raise RequestError(
                f"timeout_seconds of a request is above 0 and at most a day (got {seconds})."
            )
        return seconds

    def _accepted(self, inputs: Any, timeout_seconds: float, *, wait_seconds: float) -> Request:
        if not self._is_open:
            raise EndpointClosed("the endpoint is not open. Use it in a with block.")
        tensors, samples = named_inputs(
            self._inference.program,
            inputs,
            most_samples=self.max_samples,
            shown=[port.name for port in self.signature.inputs],
        )
        return self._desk.accept(
            tensors, samples, timeout_seconds=timeout_seconds, wait_seconds=wait_seconds
        )


def _samples_of(example: Any) -> int:
    """The first dimension of the example's tensors, which capturing has checked."""
    return int(pytree.tree_leaves(example)[0].shape[0])
