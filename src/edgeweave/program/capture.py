"""Capture a model's training step as a ``Program``.

What is captured is not the model but ``(inputs, target) -> (loss, metrics, output)``, so that any
loss travels as data too. ``torch.export`` traces it with a symbolic batch size (non-strict mode),
``run_decompositions({})`` makes it functional, and this module translates the result into our own
graph. It does not cut anything (``edgeweave.program.units``) and runs nothing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import nn

from edgeweave.core.errors import CaptureError, FormatError
from edgeweave.program.check import infer_values
from edgeweave.program.evaluation import check_evaluation, in_mode
from edgeweave.program.graph import Program, Size, StateSpec, Value
from edgeweave.program.operators import dtype_name
from edgeweave.program.recurrent import split_layers
from edgeweave.program.translate import Translation, shield_no_grad
from edgeweave.program.units import assign_units

__all__ = [
    "Captured",
    "LossFunction",
    "call_model",
    "canonical_names",
    "capture",
    "export_step",
    "flatten_inputs",
    "in_key_order",
]

LossFunction = Callable[[Any, Any], torch.Tensor]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Captured:
    """A program together with the tensors of its state, by the names the program uses.

    The tensors are the model's own, not copies.
    """

    program: Program
    state: dict[str, torch.Tensor]


class _TrainingStep(nn.Module):
    """``(inputs, target) -> (loss, metrics, output)`` of the user's model, as one module."""

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, metrics: Mapping[str, LossFunction]
    ) -> None:
        super().__init__()
        self.model = model
        self._loss_fn = loss_fn
        self._metrics = dict(metrics)

    def forward(self, inputs: Any, target: Any) -> Any:
        output = call_model(self.model, inputs)
        loss = self._loss_fn(output, target)
        metrics = {name: fn(output, target) for name, fn in self._metrics.items()}
        return loss, metrics, pytree.tree_leaves(output)


def call_model(model: nn.Module, inputs: Any) -> Any:
    """What a model answers: positional inputs of a tuple, keywords of a dict, else one input."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def flatten_inputs(inputs: Any, target: Any) -> dict[str, torch.Tensor]:
    """Name the tensors of a batch as a program names its inputs: ``input:0``, ..., ``target:0``.

    Dictionaries are walked in the order of their sorted keys: a batch may build them in any order.
    """
    named: dict[str, torch.Tensor] = {}
    for kind, tree in (("input", inputs), ("target", target)):
        for index, leaf in enumerate(pytree.tree_leaves(in_key_order(tree))):
            if not isinstance(leaf, torch.Tensor):
                raise CaptureError(
                    f"every leaf of a batch is a tensor ({kind}:{index} is "
                    f"{type(leaf).__name__}). Convert it in the data set."
                )
            named[f"{kind}:{index}"] = leaf
    return named


def in_key_order(tree: Any) -> Any:
    """The same inputs, every dictionary in the order of its sorted keys."""
    if isinstance(tree, Mapping):
        return {key: in_key_order(tree[key]) for key in sorted(tree, key=str)}
    if type(tree) in (tuple, list):
        return type(tree)(in_key_order(item) for item in tree)
    return tree


def capture(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    target: Any,
    *,
    metrics: Mapping[str, LossFunction] | None = None,
) -> Captured:
    """Capture one training step of ``model`` on an example batch.

    ``inputs`` is what the model takes: a tensor, a tuple (positional) or a dict (keywords); the
    first dimension of every tensor in ``inputs`` and ``target`` is the batch. ``loss_fn(output,
    target)`` returns the mean loss over the batch, a scalar; each metric likewise.

    The model is traced in training mode and left in the mode it was in. Python control flow that
    depends on the data cannot be captured; what depends on sizes other than the batch is frozen to
    the example's sizes. Raises ``CaptureError``.

    >>> model = torch.nn.Linear(4, 2)
    >>> example = torch.zeros(3, 4), torch.tensor([0, 1, 1])
    >>> captured = capture(model, torch.nn.functional.cross_entropy, *example)
    >>> [node.op for node in captured.program.nodes]
    ['aten.linear.default', 'aten.cross_entropy_loss.default']
    """
    named = _example(flatten_inputs(inputs, target))
    _check_loss(model, loss_fn)
    step = _TrainingStep(model, loss_fn, metrics or {})
    inputs, target = in_key_order(inputs), in_key_order(target)
    with in_mode(model, training=True), torch.random.fork_rng(devices=[]), torch.enable_grad():
        exported = export_step(step, (inputs, target))
    try:
        translation = Translation(exported, tuple(named), names=canonical_names(model))
        program = _as_program(translation, named, metrics or {})
        program = infer_values(split_layers(program))
    except FormatError as error:  # what no program may hold, a model may not either
        raise CaptureError(f"the model cannot be captured: {error}") from error
    _check_scalars(program)
    program = assign_units(program)
    state = {spec.name: translation.tensors[spec.name] for spec in program.state}
    with torch.random.fork_rng(devices=[]):
        check_evaluation(program, state, model, lambda: call_model(model, inputs), named)
    return Captured(program, state)


def _example(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    sizes = {name: leaf.shape[0] if leaf.ndim else None for name, leaf in named.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise CaptureError(
            "the first dimension of every input and target is the batch, of one size "
            f"(got {', '.join(f'{name}: {size}' for name, size in sizes.items())}). "
            "Give each sample its own row, or make the odd tensor a buffer of the model."
        )
    if next(iter(sizes.values())) == 1:
        raise CaptureError(
            "the example batch has at least two samples (got 1), because torch.export treats a "
            "dimension of size one as fixed. Pass a larger example."
        )
    return named


def _check_loss(model: nn.Module, loss_fn: LossFunction) -> None:
    """A parameter of the loss would be in no ``state_dict`` of the model."""
    if not isinstance(loss_fn, nn.Module):
        return
    known = {id(parameter) for parameter in model.parameters()}
    for name, parameter in loss_fn.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            raise CaptureError(
                f"what is trained belongs to the model (the loss holds {name}). "
                "Move it into the model, or freeze it."
            )


def export_step(step: nn.Module, args: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """The functional graph of ``step(*args)`` with a symbolic batch; ``CaptureError`` if none."""
    batch = torch.export.Dim("batch", min=1)
    dynamic = pytree.tree_map(lambda leaf: {0: batch}, args)
    export_log = logging.getLogger("torch.export")
    level = export_log.level
    export_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            _ignore_internal_warnings()
            exported = torch.export.export(step, args, dynamic_shapes=dynamic, strict=False)
            shield_no_grad(exported)
            return cast(torch.export.ExportedProgram, exported.run_decompositions({}))
    except CaptureError:
        raise
    except Exception as error:  # whatever the user's model or torch.export raised: reported whole
        raise CaptureError(_explain(error)) from error
    finally:
        export_log.setLevel(level)


def _ignore_internal_warnings() -> None:
    """What torch.export warns of is its own business, or wrong (the weights of an LSTM)."""
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
    warnings.filterwarnings("ignore", r"The tensor attributes? .* assigned during export")


def _explain(error: Exception) -> str:
    """torch.export's own message, and the way out for the causes users meet."""
    text = str(error).strip()
    kind = type(error).__name__
    if "data-dependent" in text or "DataDependent" in kind or "GuardOnData" in kind:
        fix = (
            "Control flow may not depend on tensor values: use torch.where, or move the decision "
            "out of forward()."
        )
    elif "batch" in text and ("constraint" in text.lower() or "speciali" in text.lower()):
        fix = (
            "The model fixes the batch size: replace the literal by x.shape[0] (or -1 in view), "
            "and keep all samples of a batch independent in shape."
        )
    elif "use_cache" in text or "Cache" in text:
        fix = "Models of transformers need config.use_cache=False for training."
    else:
        fix = "See docs/how-to-your-own-model.md for what can be captured."
    return f"the model cannot be captured. {fix}\n{kind}: {text}"


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of the same tensor."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in tensors:
        names[name] = first.setdefault(id(tensor), name)
    return names


def _as_program(
    translation: Translation,
    named: dict[str, torch.Tensor],
    metrics: Mapping[str, LossFunction],
) -> Program:
    loss = _reduced(translation, 0, "loss")
    metric_names = {
        name: _reduced(translation, 1 + i, f"metric {name}") for i, name in enumerate(metrics)
    }
    outputs = [name for name in translation.user_outputs[1 + len(metrics) :] if name is not None]
    inputs = tuple(
        Value(name, dtype_name(leaf.dtype), translation.shapes_of_inputs[name])
        for name, leaf in named.items()
    )
    return Program(
        inputs=inputs,
        state=tuple(
            StateSpec(
                name=name,
                kind=translation.kinds[name],
                dtype=dtype_name(tensor.dtype),
                shape=tuple(tensor.shape),
                trainable=translation.kinds[name] == "parameter" and tensor.requires_grad,
            )
            for name, tensor in translation.tensors.items()
        ),
        nodes=tuple(translation.nodes),
        outputs=tuple(dict.fromkeys(outputs)),
        loss=loss,
        metrics=metric_names,
        updates=translation.updates,
        aliases=translation.aliases,
    )


def _reduced(translation: Translation, position: int, what: str) -> str:
    """The name of the loss or of a metric."""
    name = translation.user_outputs[position]
    if name is None:
        raise CaptureError(_not_a_scalar(what, "no tensor"))
    return name


def _check_scalars(program: Program) -> None:
    values = program.values()
    names = {"loss": program.loss, **{f"metric {k}": v for k, v in program.metrics.items()}}
    for what, name in names.items():
        shape = values[name].shape if name in values else None
        if shape != ():
            found = f"shape {_shown(shape)}" if shape else "a constant"
            raise CaptureError(_not_a_scalar(what, found))


def _not_a_scalar(what: str, found: str) -> str:
    return (
        f"the {what} is a 0-dim tensor computed from the batch (got {found}). "
        "Reduce it with .mean()."
    )


def _shown(shape: tuple[int | Size, ...]) -> str:
    """A shape as a person writes it, the batch as a letter: ``(B, 5)``."""
    return f"({', '.join('B' if isinstance(size, Size) else str(size) for size in shape)})"
