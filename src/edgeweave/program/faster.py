"""Rewrite a captured model so that CPUs compute it faster and round it otherwise.

    conv -> BatchNorm        becomes   conv'          with the statistics in its weight and bias
    conv(x, weight)          becomes   conv(x, permute(kept))   ``kept`` channels-last in memory

Convolutions then compute in the order of memory that their kernels like best, and everything behind
them follows. Nothing but the program and its state changes: devices run it as any other, without a
compiler. CPUs keep such weights laid out for their kernels (``packing``). Answers differ from the
model's in the last bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
import torch

from edgeweave.program.check import infer_values
from edgeweave.program.graph import SHARED_UNIT, Arg, Items, Node, Program, Ref, StateSpec, Value
from edgeweave.program.inference import Answer, Inference

__all__ = ["faster"]

_BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"
_CONVOLUTION = "aten.conv2d.default"
_CHANNELS_LAST, _BACK = (0, 2, 3, 1), (0, 3, 1, 2)


def faster(inference: Inference) -> Inference:
    """The same model with BatchNorm folded into convolutions, which compute channels-last.

    Parameters that convolutions alone read are replaced, the others stay the model's own.

    >>> from edgeweave.program import capture_inference
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    >>> found = faster(capture_inference(model, torch.zeros(1, 1, 4, 4)))
    >>> [node.op for node in found.program.nodes]
    ['aten.permute.default', 'aten.conv2d.default']
    """
    rewriting = _Rewriting(inference.program, inference.state)
    program = rewriting.program()
    state = {spec.name: rewriting.state[spec.name] for spec in program.state}
    return Inference(program, state, rewriting.answer(inference.answer))


class _Rewriting:
    """One pass over the nodes; results that disappear go on under the name of another."""

    def __init__(self, program: Program, state: Mapping[str, torch.Tensor]) -> None:
        self._whole = program
        self.state = dict(state)
        self._uses = Counter(name for node in program.nodes for name in node.inputs())
        self._uses.update(program.results())
        self._kinds = {spec.name: spec for spec in program.state}
        self._shared: list[Node] = []
        self._nodes: list[Node] = []
        self._renamed: dict[str, str] = {}
        followers = {_name(n.args[0]): n for n in program.nodes if n.op == _BATCH_NORM}
        for node in program.nodes:
            behind = followers.get(node.results[0].name)
            if node.op == _CONVOLUTION and self._can_change(node):
                self._convolution(node, behind if self._can_fold(node, behind) else None)
            elif node.results[0].name not in self._renamed:
                self._nodes.append(self._read_anew(node))

    def program(self) -> Program:
        """The program of the nodes that are left, their units counted anew."""
        nodes = [*self._shared, *self._nodes]
        numbers = sorted({node.unit for node in nodes} - {SHARED_UNIT})
        place = {number: index for index, number in enumerate(numbers)} | {SHARED_UNIT: SHARED_UNIT}
        nodes = [msgspec.structs.replace(node, unit=place[node.unit]) for node in nodes]
        used = {name for node in nodes for name in node.inputs()}
        specs = tuple(spec for spec in self._kinds.values() if spec.name in used)
        whole = self._whole
        return infer_values(
            msgspec.structs.replace(
                whole,
                nodes=tuple(nodes),
                state=specs,
                outputs=tuple(self._renamed.get(name, name) for name in whole.outputs),
                aliases={a: n for a, n in whole.aliases.items() if n in used},
            )
        )

    def answer(self, answer: Answer) -> Answer:
        """How the outputs make up the model's answer, by the names they have now."""
        leaves = (None if n is None else self._renamed.get(n, n) for n in answer.leaves)
        return Answer(tuple(leaves), answer.constants, answer.structure)

    def _can_change(self, node: Node) -> bool:
        """Whether nobody else reads the weight, and it is no result of another node."""
        weight = node.args[1]
        return (
            isinstance(weight, Ref) and weight.name in self._kinds and self._uses[weight.name] == 1
        )

    def _can_fold(self, node: Node, behind: Node | None) -> bool:
        """Whether a BatchNorm takes what the convolution makes, and nobody else does."""
        if behind is None or behind.op != _BATCH_NORM or behind.unit != node.unit:
            return False
        read = [arg.name for arg in behind.args[1:5] if isinstance(arg, Ref)]
        bias = node.args[2] if len(node.args) > 2 else None
        constant = bias is None or (isinstance(bias, Ref) and bias.name in self._kinds)
        return (
            constant
            and all(name in self._kinds for name in read)
            and self._uses[node.results[0].name] == 1
            and all(self._uses[value.name] == 0 for value in behind.results[1:])
        )

    def _convolution(self, node: Node, norm: Node | None) -> None:
        name = _name(node.args[1])
        weight, bias = self.state[name], self._tensor(node.args[2] if len(node.args) > 2 else None)
        if norm is not None:
            weight, bias = self._folded(weight, bias, norm)
            self._renamed[norm.results[0].name] = node.results[0].name
        ours = weight.permute(_CHANNELS_LAST).clone(memory_format=torch.contiguous_format)
        kept = self._keep(f"{name}.channels_last", ours)
        seen = f"{name}.channels_first"
        view = (Ref(kept), Items(_BACK))
        self._shared.append(_node("aten.permute.default", view, seen, node, SHARED_UNIT))
        told: Arg = None if bias is None else Ref(self._keep(f"{name}.bias", bias))
        args = (node.args[0], Ref(seen), told, *node.args[3:])
        self._nodes.append(self._read_anew(msgspec.structs.replace(node, args=args)))

    def _folded(
        self, weight: torch.Tensor, bias: torch.Tensor | None, norm: Node
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``gamma * (conv(x) - mean) / sqrt(var + eps) + beta`` as a convolution's own."""
        gamma, beta, mean, variance = (self._tensor(arg) for arg in norm.args[1:5])
        assert mean is not None
        assert variance is not None
        epsilon = norm.args[6]
        assert isinstance(epsilon, float)
        scale = torch.rsqrt(variance.detach().double() + epsilon)
        if gamma is not None:
            scale = scale * gamma.detach().double()
        shift = -mean.detach().double() * scale
        if bias is not None:
            shift = shift + bias.detach().double() * scale
        if beta is not None:
            shift = shift + beta.detach().double()
        scaled = weight.detach().double() * scale.reshape(-1, 1, 1, 1)
        return scaled.to(weight.dtype), shift.to(weight.dtype)

    def _tensor(self, arg: Arg) -> torch.Tensor | None:
        return None if arg is None else self.state[_name(arg)]

    def _keep(self, name: str, tensor: torch.Tensor) -> str:
        """A tensor of ours among the state, under a name that nothing has."""
        taken = {*self._kinds, *self._whole.values()}
        while name in taken:
            name += "_"
        self.state[name] = tensor.detach()
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._kinds[name] = StateSpec(name, "constant", dtype, tuple(tensor.shape))
        return name

    def _read_anew(self, node: Node) -> Node:
        """The node with the names that its arguments have now."""
        args = tuple(self._renamed_in(arg) for arg in node.args)
        kwargs = {key: self._renamed_in(arg) for key, arg in node.kwargs.items()}
        return msgspec.structs.replace(node, args=args, kwargs=kwargs)

    def _renamed_in(self, arg: Arg) -> Arg:
        if isinstance(arg, Ref):
            return Ref(self._renamed.get(arg.name, arg.name))
        if isinstance(arg, Items):
            return Items(tuple(self._renamed_in(item) for item in arg.items))
        return arg


def _name(arg: Arg) -> str:
    assert isinstance(arg, Ref), "a state entry was asked for"
    return arg.name


def _node(op: str, args: tuple[Arg, ...], result: str, origin: Node, unit: int) -> Node:
    value = Value(result, "float32", ())
    return Node(op=op, args=args, kwargs={}, results=(value,), unit=unit, source=origin.source)
