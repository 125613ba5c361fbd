"""Run one stage: forward, backward, evaluation, one microbatch at a time.

    forward(m)    inputs detached -> graph -> outputs; what autograd needs stays, under ``m``
    backward(m)   gradients of the outputs -> parameters' ``.grad`` grow, gradients of the inputs

Gradients are bit-equal to the uncut model's because autograd sums in the same order: it runs
backward nodes in the reverse order of their forward, a gradient that arrives for an output (or for
a relayed input) is delivered before any of this stage's own, and microbatches come in ascending
order. The stage sends nothing and knows no schedule.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import nn

from edgeweave.core.errors import WireError
from edgeweave.program.evaluation import evaluation
from edgeweave.program.graph import SHARED_UNIT, Program, Value
from edgeweave.program.interpret import Interpreter
from edgeweave.program.operators import DTYPES, is_random
from edgeweave.program.packing import PackedConvolutions
from edgeweave.program.watch import UnitWatch

_EnterUnit = Callable[[int], None]

__all__ = ["Moment", "StageProgram", "StageResult", "made_up", "unit_seed"]


@dataclass(frozen=True, slots=True)
class Moment:
    """Which microbatch of which step: together with the run's seed, all that randomness uses."""

    step: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a forward pass produced. Loss and metrics (0-dim means) only where they are computed."""

    outputs: dict[str, torch.Tensor]
    loss: torch.Tensor | None
    metrics: dict[str, torch.Tensor]


def unit_seed(run_seed: int, moment: Moment, unit: int) -> int:
    """The seed of a unit's forward: equal wherever and whenever it is computed."""
    text = f"{run_seed}/{moment.step}/{moment.microbatch}/{unit}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _both(first: _EnterUnit, second: _EnterUnit | None) -> _EnterUnit:
    """Call one, then the other if there is one."""
    if second is None:
        return first

    def enter(unit: int) -> None:
        first(unit)
        second(unit)

    return enter


class _Seed(torch.autograd.Function):
    """A scalar whose backward hands given gradients to given tensors, before any other node.

    ``torch.autograd.backward(tensors, gradients)`` does the same, but imports sympy for it: 35 MB
    and a second on a small device.
    """

    @staticmethod
    def forward(ctx: Any, seeds: list[torch.Tensor], *roots: torch.Tensor) -> torch.Tensor:
        ctx.seeds = seeds
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_ones: torch.Tensor) -> Any:
        return None, *ctx.seeds


def made_up(value: Value, batch: int) -> torch.Tensor:
    """Contents that no operator refuses: small floats, and zeros for indices and masks."""
    shape, dtype = value.shape_at(batch), DTYPES[value.dtype]
    if dtype.is_floating_point:
        return torch.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape).to(dtype)
    return torch.zeros(shape, dtype=dtype)


def _in_order(tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The tensor, which the wire made row-major, as it lay in memory where it was computed."""
    if not order:
        return tensor
    back = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(back)


class StageProgram:
    """One stage with its weights on one device.

    ``state`` is copied to ``device``; parameters become leaves (``parameters``), trained in place.
    With ``take_over`` the tensors given are used themselves where they lie on ``device`` already.
    Not thread-safe: one thread computes.

    >>> from edgeweave.program import capture, cut
    >>> model = torch.nn.Linear(4, 2)
    >>> example = torch.ones(3, 4), torch.zeros(3, 2)
    >>> captured = capture(model, torch.nn.functional.mse_loss, *example)
    >>> stage = StageProgram(cut(captured.program, ())[0], captured.state)
    >>> inputs = {"input:0": example[0], "target:0": example[1]}
    >>> result = stage.forward(inputs, Moment(step=0, microbatch=0))
    >>> stage.backward(0, {})
    {}
    >>> sorted(stage.parameters)
    ['bias', 'weight']
    """

    def __init__(
        self,
        program: Program,
        state: Mapping[str, torch.Tensor],
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        take_over: bool = False,
    ) -> None:
        self.program = program
        self.device = torch.device(device)
        self._seed = seed
        self._state = self._own(state, take_over=take_over)
        self.parameters = {
            name: tensor for name, tensor in self._state.items() if isinstance(tensor, nn.Parameter)
        }
        find = PackedConvolutions().find
        self._training = Interpreter(program, self._state, device=self.device, find=find)
        evaluated = evaluation(program)
        self._evaluation = Interpreter(evaluated, self._state, device=self.device, find=find)
        self._random_units = frozenset(
            node.unit for node in program.nodes if node.unit != SHARED_UNIT and is_random(node.op)
        )
        self._order = {name: value.order for name, value in program.values().items()}
        self._in_flight: dict[int, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = {}

    def _own(
        self, state: Mapping[str, torch.Tensor], *, take_over: bool
    ) -> dict[str, torch.Tensor]:
        own: dict[str, torch.Tensor] = {}
        for spec in self.program.state:
            tensor = state.get(spec.name)
            if tensor is None:
                raise WireError(f"the stage needs {spec.name}, which did not come with it.")
            if tuple(tensor.shape) != spec.shape or tensor.dtype != DTYPES[spec.dtype]:
                raise WireError(
                    f"{spec.name} is {tensor.dtype} {tuple(tensor.shape)}, "
                    f"not {spec.dtype} {spec.shape} as the program says."
                )
            copy = tensor.detach().to(self.device, copy=not take_over)
            own[spec.name] = (
                nn.Parameter(copy, spec.trainable) if spec.kind == "parameter" else copy
            )
        return own

    @property
    def n_in_flight(self) -> int:
        """Microbatches whose backward has not run."""
        return len(self._in_flight)

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor],
        moment: Moment,
        *,
        key: int | None = None,
        watch: UnitWatch | None = None,
    ) -> StageResult:
        """Compute the outputs of one microbatch and keep what its backward needs.

        That is kept under ``key``, else under the microbatch's number. Buffers (running
        statistics) take their new values. Raises ``WireError`` if an input is missing or has
        another shape or dtype than the program declares.
        """
        leaves = self._leaves(inputs)
        program = self.program
        wanted = program.results()
        with torch.enable_grad(), self._seeded(moment) as enter_unit:
            values = self._training.run(
                leaves,
                self._batch(inputs),
                wanted=wanted,
                enter_unit=enter_unit if watch is None else _both(watch.enter, enter_unit),
                observe=None if watch is None else watch.produced,
            )
        for buffer, name in program.updates.items():
            self._replace_buffer(buffer, values[name].detach())
        result = self._result(program, values)
        roots = dict(result.outputs)
        if result.loss is not None:
            roots[program.loss or ""] = result.loss
        graph = {name: tensor for name, tensor in roots.items() if tensor.requires_grad}
        self._in_flight[moment.microbatch if key is None else key] = (leaves, graph)
        return StageResult(
            outputs={name: tensor.detach() for name, tensor in result.outputs.items()},
            loss=None if result.loss is None else result.loss.detach(),
            metrics={name: tensor.detach() for name, tensor in result.metrics.items()},
        )

    def backward(
        self,
        microbatch: int,
        gradients: Mapping[str, torch.Tensor],
        *,
        loss_weight: float = 1.0,
    ) -> dict[str, torch.Tensor]:
        """Add this microbatch's gradients to the parameters; return those of the inputs.

        ``gradients`` belong to the outputs, and may lack outputs that no later stage
        differentiates through. ``loss_weight`` scales the loss: the share of this microbatch in
        its step's samples, so that the sum over microbatches is the mean over samples.
        """
        if microbatch not in self._in_flight:
            raise WireError(
                f"a backward follows its forward (microbatch {microbatch}; in flight: "
                f"{sorted(self._in_flight) or 'none'})."
            )
        self._check_gradients(microbatch, gradients)
        leaves, graph = self._in_flight.pop(microbatch)
        roots: list[torch.Tensor] = []
        seeds: list[torch.Tensor] = []
        for name, tensor in graph.items():
            if name == self.program.loss:
                seed = torch.full_like(tensor, loss_weight)
            elif name in gradients:
                seed = _in_order(gradients[name].to(self.device), self._order[name])
            else:
                continue
            roots.append(tensor)
            seeds.append(seed)
        if roots:
            _Seed.apply(seeds, *roots).backward()  # type: ignore[no-untyped-call]
        return {n: leaf.grad for n, leaf in leaves.items() if leaf.grad is not None}

    def weigh_rows(self, microbatch: int, output: str, weights: torch.Tensor) -> None:
        """Let rows of a microbatch in flight count unequally.

        The gradient that reaches ``output`` is multiplied by the weights, row by row: where the
        loss is a mean over rows, the parameters get that of the weighted mean.
        """
        _leaves, graph = self._in_flight[microbatch]
        tensor, own = graph[output], weights.to(self.device)
        own = own.reshape(-1, *[1] * (tensor.ndim - 1))
        tensor.register_hook(lambda gradient: gradient * own)  # type: ignore[no-untyped-call]

    def forget(self, microbatch: int) -> None:
        """Give up a microbatch in flight, which will have no backward."""
        self._in_flight.pop(microbatch, None)

    def evaluate(self, inputs: Mapping[str, torch.Tensor]) -> StageResult:
        """Compute the outputs as ``model.eval()`` does. Keeps nothing, changes nothing."""
        wanted = msgspec.structs.replace(self.program, updates={}).results()
        with torch.no_grad():
            given = self._checked(inputs)
            values = self._evaluation.run(given, self._batch(inputs), wanted=wanted)
        return self._result(self.program, values)

    def time_units(self, batch: int, stopwatch: Callable[[], float]) -> UnitWatch:
        """One forward and one backward on made-up data, timed unit by unit."""
        watch = UnitWatch(self.program, stopwatch)
        begins = iter((watch.begin_forward, watch.begin_backward))
        for call in self.rehearse(batch, watch=watch):
            next(begins)()
            call()
            watch.end()
        return watch

    def rehearse(
        self, batch: int, *, watch: UnitWatch | None = None
    ) -> Iterator[Callable[[], object]]:
        """One forward and one backward on made-up data, to be timed by the caller.

        Yields the two calls in turn. Once both were asked for, the stage is as before.
        """
        with self.undisturbed():
            yield from self._rehearsed(batch, watch)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Afterwards weights, buffers and gradients are as before, whatever was computed."""
        if self._in_flight:
            raise RuntimeError("a stage is undisturbed only while no microbatch is in flight")
        buffers = {name: self._state[name] for name in self.program.updates}
        gradients = {name: parameter.grad for name, parameter in self.parameters.items()}
        self.take_gradients()
        try:
            yield
        finally:
            for name, tensor in buffers.items():
                self._replace_buffer(name, tensor)
            for name, parameter in self.parameters.items():
                parameter.grad = gradients[name]

    def take_gradients(self) -> dict[str, torch.Tensor]:
        """The gradients there are, which the stage then has no more."""
        found = {}
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                found[name] = parameter.grad
                parameter.grad = None
        return found

    def _rehearsed(self, batch: int, watch: UnitWatch | None) -> Iterator[Callable[[], object]]:
        inputs = {value.name: made_up(value, batch) for value in self.program.inputs}
        results: list[StageResult] = []
        moment = Moment(step=-1, microbatch=-1)
        yield lambda: results.append(self.forward(inputs, moment, watch=watch))
        values = self.program.values()
        gradients = {
            name: torch.full_like(tensor, 1e-3)
            for name, tensor in results[0].outputs.items()
            if values[name].requires_grad
        }
        for parameter in self.parameters.values():
            if parameter.requires_grad:
                # Of all microbatches of a step but the first, gradients are added to others.
                parameter.grad = torch.zeros_like(parameter)
        yield lambda: self.backward(-1, gradients)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by the user's names (constants left out); not copies."""
        kept = (spec.name for spec in self.program.state if spec.kind != "constant")
        return {name: self._state[name].detach() for name in kept}

    def trained_state(self) -> dict[str, torch.Tensor]:
        """What training changes, by the user's names; not copies."""
        return {name: self._state[name].detach() for name in self.program.trained}

    def replace_buffers(self, buffers: Mapping[str, torch.Tensor]) -> None:
        """Let later passes read these tensors for buffers that training updates."""
        for name, tensor in buffers.items():
            self._replace_buffer(name, tensor)

    def fixed_state(self) -> dict[str, torch.Tensor]:
        """What training never changes, constants included; not copies."""
        trained = set(self.program.trained)
        return {name: t.detach() for name, t in self._state.items() if name not in trained}

    def _replace_buffer(self, name: str, tensor: torch.Tensor) -> None:
        self._state[name] = tensor
        self._training.replace_state(name, tensor)
        self._evaluation.replace_state(name, tensor)

    def _check_gradients(self, microbatch: int, gradients: Mapping[str, torch.Tensor]) -> None:
        _, graph = self._in_flight[microbatch]
        for name, gradient in gradients.items():
            output = graph.get(name)
            if output is None:
                raise WireError(f"a gradient came for {name}, which has none in this stage.")
            if (gradient.shape, gradient.dtype) != (output.shape, output.dtype):
                raise WireError(
                    f"the gradient of {name} is {gradient.dtype} {tuple(gradient.shape)}, "
                    f"not {output.dtype} {tuple(output.shape)}."
                )

    def _leaves(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given = self._checked(inputs)
        return {
            value.name: given[value.name].requires_grad_(value.requires_grad)
            for value in self.program.inputs
        }

    def _checked(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The stage's inputs on its device, as the program declares them."""
        batch = self._batch(inputs)
        checked = {}
        for value in self.program.inputs:
            tensor = inputs.get(value.name)
            if tensor is None:
                raise WireError(f"the stage's input {value.name} did not arrive.")
            expected = value.shape_at(batch)
            if tuple(tensor.shape) != expected or tensor.dtype != DTYPES[value.dtype]:
                raise WireError(
                    f"input {value.name} is {tensor.dtype} {tuple(tensor.shape)}, "
                    f"not {value.dtype} {expected} as the program says."
                )
            checked[value.name] = _in_order(tensor.detach().to(self.device), value.order)
        return checked

    def _batch(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """The number of samples, read off the first input whose size tells it."""
        for value in self.program.inputs:
            tensor = inputs.get(value.name)
            for size, declared in zip(
                () if tensor is None else tensor.shape, value.shape, strict=False
            ):
                if not isinstance(declared, int) and declared.per_sample:
                    return (size - declared.constant) // declared.per_sample
        return 1

    @contextmanager
    def _seeded(self, moment: Moment) -> Iterator[_EnterUnit | None]:
        """Seed each random unit as it starts; afterwards the caller's generator is as before."""
        if not self._random_units:
            yield None
            return
        with torch.random.fork_rng(
            devices=[self.device] if self.device.type == "cuda" else [], enabled=True
        ):
            yield lambda unit: self._seed_unit(unit, moment)

    def _seed_unit(self, unit: int, moment: Moment) -> None:
        if unit in self._random_units:
            seed = unit_seed(self._seed, moment, unit)
            if self.device.type == "cpu":
                torch.default_generator.manual_seed(seed)  # the rest of manual_seed takes 0.2 ms
            else:
                torch.manual_seed(seed)

    @staticmethod
    def _result(program: Program, values: Mapping[str, torch.Tensor]) -> StageResult:
        return StageResult(
            outputs={name: values[name] for name in program.outputs},
            loss=None if program.loss is None else values[program.loss],
            metrics={key: values[name] for key, name in program.metrics.items()},
        )
