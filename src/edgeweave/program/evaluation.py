"""The evaluation pass: what ``model.eval()`` computes, derived from the training graph.

Dropout hands its input on, BatchNorm uses its running statistics and stops updating them. The
pass works on a whole program and on a stage; ``check_evaluation`` compares it with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
import torch.utils._pytree as pytree
from torch import nn

from edgeweave.core.errors import CaptureError
from edgeweave.program.graph import Arg, Items, Node, Program, Ref, references
from edgeweave.program.interpret import Interpreter

_BATCH_NORM = "aten._native_batch_norm_legit_functional.default"

__all__ = ["check_evaluation", "evaluation", "has_batch_norm", "in_mode", "is_close"]


def evaluation(program: Program) -> Program:
    """The same program in evaluation mode. Units, names and state keep their places."""
    nodes: list[Node] = []
    unchanged: dict[str, Arg] = {}
    for node in program.nodes:
        args = tuple(_substituted(arg, unchanged) for arg in node.args)
        node = msgspec.structs.replace(node, args=args)
        if node.op == _BATCH_NORM:  # a layer used twice reads the statistics it left behind
            unchanged.update(
                (value.name, arg)
                for value, arg in zip(node.results[3:], node.args[3:5], strict=True)
            )
        rule = _RULES.get(node.op)
        nodes.append(node if rule is None else rule(node))
    return msgspec.structs.replace(program, nodes=tuple(nodes), updates={})


def has_batch_norm(program: Program) -> bool:
    """Whether what a sample gives depends on the others of its microbatch, by their statistics."""
    return any(node.op == _BATCH_NORM and node.args[5] is not False for node in program.nodes)


def _substituted(arg: Arg, replacements: Mapping[str, Arg]) -> Arg:
    if isinstance(arg, Ref):
        return replacements.get(arg.name, arg)
    if isinstance(arg, Items):
        return Items(tuple(_substituted(item, replacements) for item in arg.items))
    return arg


def _pass_through(node: Node) -> Node:
    """Dropout in evaluation is its input. ``alias`` computes nothing."""
    return _rewritten(node, "aten.alias.default", node.args[:1])


def _batch_norm(node: Node) -> Node:
    given, weight, bias, mean, variance, _training, momentum, epsilon = node.args
    args = (given, weight, bias, mean, variance, False, momentum, epsilon, False)
    return _rewritten(node, "aten.batch_norm.default", args)


def _attention(node: Node) -> Node:
    """``scaled_dot_product_attention(query, key, value, mask, dropout_p, ...)`` without dropout."""
    args = (*node.args[:4], 0.0, *node.args[5:]) if len(node.args) > 4 else node.args
    kwargs = {key: arg for key, arg in node.kwargs.items() if key != "dropout_p"}
    return msgspec.structs.replace(node, args=args, kwargs=kwargs)


def _expectation(node: Node) -> Node:
    """A dropout mask written as ``bernoulli(p)`` becomes its mean, so that ``mask / p`` is one."""
    return _rewritten(node, "aten.full_like.default", node.args[:2])


def _recurrent(node: Node) -> Node:
    """``lstm(input, hx, params, has_biases, num_layers, dropout, train, ...)``; gru likewise."""
    args: tuple[Arg, ...] = (*node.args[:5], 0.0, False, *node.args[7:])
    return msgspec.structs.replace(node, args=args)


def _rewritten(node: Node, op: str, args: tuple[Arg, ...]) -> Node:
    return msgspec.structs.replace(node, op=op, args=args, kwargs={}, results=node.results[:1])


_RULES: dict[str, Callable[[Node], Node]] = {
    "aten.native_dropout.default": _pass_through,
    "aten.dropout.default": _pass_through,
    "aten.feature_dropout.default": _pass_through,
    "aten.alpha_dropout.default": _pass_through,
    _BATCH_NORM: _batch_norm,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.bernoulli.p": _expectation,
    "aten.lstm.input": _recurrent,
    "aten.gru.input": _recurrent,
    "aten.rnn_tanh.input": _recurrent,
    "aten.rnn_relu.input": _recurrent,
}


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the whole model in a mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_evaluation(
    program: Program,
    state: Mapping[str, torch.Tensor],
    model: nn.Module,
    call: Callable[[], Any],
    inputs: Mapping[str, torch.Tensor],
) -> None:
    """Compare the pass with ``model.eval()`` on the example; raise ``CaptureError`` if they differ.

    Catches models whose ``forward`` asks for ``self.training`` in ways no rule here knows.
    """
    evaluated = evaluation(program)
    known = {value.name for value in evaluated.inputs} | set(state)
    for node in evaluated.nodes:
        lost = [name for arg in node.args for name in references(arg) if name not in known]
        if lost:
            raise CaptureError(
                f"evaluation drops {lost[0]}, but {node.op}{node.source} reads it. "
                "Do not use dropout masks or batch statistics outside their layer."
            )
        known.update(value.name for value in node.results)
    device = next(iter(inputs.values())).device
    batch = next(iter(inputs.values())).shape[0]
    with in_mode(model, training=False), torch.no_grad():
        expected = [leaf for leaf in pytree.tree_leaves(call()) if torch.is_tensor(leaf)]
        interpreter = Interpreter(evaluated, state, device=device)
        found = interpreter.run(inputs, batch, wanted=evaluated.outputs)
    pairs = zip(evaluated.outputs, _distinct(expected, evaluated.outputs), strict=False)
    for name, tensor in pairs:
        if not is_close(found[name], tensor):
            raise CaptureError(
                f"the captured model does not evaluate as model.eval() does (output {name}). "
                "forward() asks for self.training in a way that is not dropout or BatchNorm; "
                "express the difference through those layers."
            )


def is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two ways of computing a value differ by rounding at most."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return False
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def _distinct(leaves: list[torch.Tensor], names: tuple[str, ...]) -> list[torch.Tensor]:
    """The model's output leaves in the order of ``names`` (equal leaves were named once)."""
    distinct: dict[int, torch.Tensor] = {}
    for leaf in leaves:
        distinct.setdefault(id(leaf), leaf)
    return list(distinct.values())[: len(names)]
