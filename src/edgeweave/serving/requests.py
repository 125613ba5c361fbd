"""Requests on their way: accepted once, answered once, sent as often as it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import torch

from edgeweave.core.errors import EdgeweaveError, RequestError
from edgeweave.program import Program, Size, flatten_inputs

__all__ = ["EndpointClosed", "Request", "Shipment", "has_rows", "named_inputs"]


class EndpointClosed(RequestError):
    """Nothing is wrong with the request: nobody is there any more, or yet, to answer it."""


@dataclass(eq=False, slots=True)
class Request:
    """One request of a user. ``number`` is its place in the order of acceptance."""

    number: int
    tensors: Mapping[str, torch.Tensor]
    samples: int
    asked_seconds: float
    deadline_seconds: float
    future: Future[Any] = field(default_factory=Future)
    _begun: bool = False
    _given_up: bool = False

    def begin(self) -> bool:
        """It is sent now, for the first time or again; False if the user gave it up before."""
        if not self._begun and not self._given_up:
            self._begun = self.future.set_running_or_notify_cancel()
            self._given_up = not self._begun
        return not self._given_up

    def answer(self, answer: Any) -> bool:
        """Give the answer to who waits for it; False if it was answered or gave up before."""
        try:
            self.future.set_result(answer)
        except InvalidStateError:
            return False
        return True

    def fail(self, error: EdgeweaveError) -> bool:
        """Give an error instead; False if it was answered or gave up before."""
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            return False
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Shipment:
    """Requests that are computed together, usually one. They travel as one microbatch."""

    requests: tuple[Request, ...]

    @property
    def samples(self) -> int:
        return sum(request.samples for request in self.requests)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The inputs of all, one after another."""
        if len(self.requests) == 1:
            return dict(self.requests[0].tensors)
        names = self.requests[0].tensors
        return {name: torch.cat([r.tensors[name] for r in self.requests]) for name in names}

    def divided(self, outputs: Mapping[str, torch.Tensor]) -> Sequence[dict[str, torch.Tensor]]:
        """The outputs of each request."""
        if len(self.requests) == 1:
            return [dict(outputs)]
        sizes = [request.samples for request in self.requests]
        parts = {name: torch.split(tensor, sizes) for name, tensor in outputs.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(len(sizes))]


def named_inputs(
    program: Program, inputs: Any, *, most_samples: int, shown: Sequence[str]
) -> tuple[dict[str, torch.Tensor], int]:
    """Copies of a request's tensors by the program's names of them, and how many samples they hold.

    ``RequestError`` unless they are what the model takes: it says which tensor is not, and how,
    by the names that are ``shown``.
    """
    try:
        given = flatten_inputs(inputs, ())
    except EdgeweaveError as error:
        raise RequestError(f"a request holds tensors ({error})") from error
    declared = {value.name: value for value in program.inputs}
    if given.keys() != declared.keys():
        raise RequestError(
            f"the model takes {len(declared)} tensors (got {len(given)}). Send what the example "
            "it was captured with has."
        )
    samples = next((t.shape[0] if t.ndim else 0 for t in given.values()), 0)
    if not 1 <= samples <= most_samples:
        raise RequestError(
            f"a request has 1 to {most_samples} samples, its first dimension (got {samples}). "
            "Send fewer, or serve with a larger max_samples."
        )
    for (name, value), word in zip(declared.items(), shown, strict=True):
        tensor, shape = given[name], value.shape_at(samples)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (dtype, tuple(tensor.shape)) != (value.dtype, shape):
            raise RequestError(
                f"{word} of a request with {samples} samples is {value.dtype} {shape} (got {dtype} "
                f"{tuple(tensor.shape)}). Convert it."
            )
    own = {name: _copied(tensor) for name, tensor in given.items()}
    return own, samples


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """As it is now: it is sent later, perhaps again, and its owner may write into it meanwhile."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def has_rows(program: Program) -> bool:
    """Whether each sample has rows of its own in every input and output, as joining needs."""
    values = program.values()
    ends = [*program.inputs, *(values[name] for name in program.outputs)]
    return all(value.shape and value.shape[0] == Size(1) for value in ends)
