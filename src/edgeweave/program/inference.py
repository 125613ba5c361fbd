"""Capture a model for inference: what ``model.eval()`` answers, and nothing that trains.

The model is traced in evaluation mode on its own, without loss or target, so its batch may be of
any size, one included. The units are cut as those of training; nothing is trainable, and so no
value has a gradient. Running and cutting are those of any program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from edgeweave.core.errors import CaptureError, FormatError
from edgeweave.program.capture import (
    call_model,
    canonical_names,
    export_step,
    flatten_inputs,
    in_key_order,
)
from edgeweave.program.check import infer_values
from edgeweave.program.evaluation import in_mode, is_close
from edgeweave.program.graph import Program, StateSpec, Value
from edgeweave.program.interpret import Interpreter
from edgeweave.program.operators import dtype_name
from edgeweave.program.recurrent import split_layers
from edgeweave.program.translate import Translation
from edgeweave.program.units import assign_units

__all__ = ["Answer", "Inference", "capture_inference"]


@dataclass(frozen=True, slots=True)
class Answer:
    """How a program's outputs make up what the model returns: a tensor, a tuple, a dictionary."""

    leaves: tuple[str | None, ...]
    """For each leaf of the model's answer the name of an output; None where it is a constant."""
    constants: tuple[object, ...]
    """The leaves that are no tensors, in their order."""
    structure: pytree.TreeSpec

    def of(self, outputs: Mapping[str, torch.Tensor]) -> Any:
        """The model's answer, from the outputs of its program by name."""
        constants = iter(self.constants)
        leaves = [next(constants) if name is None else outputs[name] for name in self.leaves]
        return pytree.tree_unflatten(leaves, self.structure)


@dataclass(frozen=True, slots=True)
class Inference:
    """A captured model: the program, its state by name (the model's own tensors), its answer."""

    program: Program
    state: dict[str, torch.Tensor]
    answer: Answer


class _Model(nn.Module):
    """``inputs -> leaves of the answer`` of the user's model, as one module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return pytree.tree_leaves(call_model(self.model, inputs))


def capture_inference(model: nn.Module, example: Any) -> Inference:
    """Capture what ``model.eval()`` computes, on an example of its inputs.

    ``example`` is what the model takes: a tensor, a tuple (positional) or a dict (keywords); the
    first dimension of every tensor is the batch, of any size from one on. Its captured form answers
    requests of every batch size. The model is left in the mode it was in. Raises ``CaptureError``,
    also if the captured model does not compute what the model does.

    >>> captured = capture_inference(torch.nn.Linear(4, 2).train(), torch.zeros(1, 4))
    >>> [node.op for node in captured.program.nodes]
    ['aten.linear.default']
    """
    inputs = in_key_order(_at_least_two(example))
    named = flatten_inputs(inputs, ())
    with in_mode(model, training=False), torch.random.fork_rng(devices=[]):
        with torch.enable_grad():
            exported = export_step(_Model(model), (inputs,))
        torch.manual_seed(0)  # and another below: chance must not matter
        with torch.no_grad():
            expected, structure = pytree.tree_flatten(call_model(model, inputs))
    try:
        translation = Translation(exported, tuple(named), names=canonical_names(model))
        program = infer_values(split_layers(_as_program(translation, named)))
    except FormatError as error:  # what no program may hold, a model may not either
        raise CaptureError(f"the model cannot be captured: {error}") from error
    program = assign_units(program)
    state = {spec.name: translation.tensors[spec.name] for spec in program.state}
    answer = _answer(translation, expected, structure)
    _check_equal(program, state, named, answer, expected)
    return Inference(program, state, answer)


def _at_least_two(example: Any) -> Any:
    """The example with a sample more if it has one: torch.export takes a size of one for fixed."""
    leaves = [x for x in pytree.tree_leaves(example) if isinstance(x, torch.Tensor)]
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(sizes) != 1 or sizes & {None, 0}:
        raise CaptureError(
            "the first dimension of every input is the batch, of one size and not empty "
            f"(got shapes {', '.join(str(tuple(leaf.shape)) for leaf in leaves) or 'none'}). "
            "Give each sample its own row, or make the odd tensor a buffer of the model."
        )
    if sizes != {1}:
        return example
    return pytree.tree_map(lambda x: torch.cat([x, x]) if torch.is_tensor(x) else x, example)


def _as_program(translation: Translation, named: dict[str, torch.Tensor]) -> Program:
    if translation.updates:
        raise CaptureError(
            f"the model changes a buffer in evaluation mode ({next(iter(translation.updates))}), "
            "so that an answer would depend on the requests before it. Pass such state in and out."
        )
    outputs = tuple(dict.fromkeys(name for name in translation.user_outputs if name is not None))
    if not outputs:
        raise CaptureError("the model answers with no tensor. Return one.")
    return Program(
        inputs=tuple(
            Value(name, dtype_name(leaf.dtype), translation.shapes_of_inputs[name])
            for name, leaf in named.items()
        ),
        state=tuple(
            StateSpec(name, translation.kinds[name], dtype_name(t.dtype), tuple(t.shape))
            for name, t in translation.tensors.items()
        ),
        nodes=tuple(translation.nodes),
        outputs=outputs,
        aliases=translation.aliases,
    )


def _answer(translation: Translation, expected: list[Any], structure: pytree.TreeSpec) -> Answer:
    names = tuple(translation.user_outputs)
    if len(names) != len(expected) or any(
        name is None and torch.is_tensor(leaf) for name, leaf in zip(names, expected, strict=True)
    ):
        raise CaptureError(
            "the model's answer has a tensor that is computed from no input. Leave it out of "
            "what forward() returns."
        )
    constants = (leaf for name, leaf in zip(names, expected, strict=True) if name is None)
    return Answer(names, tuple(constants), structure)


def _check_equal(
    program: Program,
    state: Mapping[str, torch.Tensor],
    named: Mapping[str, torch.Tensor],
    answer: Answer,
    expected: list[Any],
) -> None:
    """``CaptureError`` unless the program computes what the model does, to rounding."""
    first = next(iter(named.values()))
    interpreter = Interpreter(program, state, device=first.device)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        found = interpreter.run(named, first.shape[0], wanted=program.outputs)
    for name, tensor in zip(answer.leaves, expected, strict=True):
        if name is not None and not is_close(found[name], tensor):
            raise CaptureError(
                f"the captured model does not answer as model.eval() does (output {name}). Its "
                "forward() draws random numbers or keeps state: pass both in as inputs."
            )
