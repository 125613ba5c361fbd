"""Split a recurrent operator of several layers into one per layer, so that it can be cut.

``aten.lstm``, ``aten.gru`` and ``aten.rnn_*`` take all layers in one call. Layer by layer they
compute the same numbers; dropout between layers becomes a node of its own (another random stream,
the same law).
"""

from __future__ import annotations

import msgspec

from edgeweave.program.graph import Arg, Items, Node, Program, Ref, Value

__all__ = ["split_layers"]

_RECURRENT = ("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")


def split_layers(program: Program) -> Program:
    """Replace every recurrent node of several layers by one node per layer.

    Left whole: a node whose final states are used (its ``h`` and ``c`` stack all layers).
    """
    used = {name for node in program.nodes for name in node.inputs()} | set(program.results())
    nodes: list[Node] = []
    for node in program.nodes:
        states = {value.name for value in node.results[1:]}
        if node.op in _RECURRENT and node.args[4] not in (0, 1) and used.isdisjoint(states):
            nodes.extend(_layers(node))
        else:
            nodes.append(node)
    return msgspec.structs.replace(program, nodes=tuple(nodes))


def _layers(node: Node) -> list[Node]:
    """``op(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, first)``.

    ``hx`` is a list of two tensors for an LSTM, a tensor for the others.
    """
    given, states, weights, has_biases, n_layers, dropout, *flags = node.args
    assert isinstance(weights, Items)
    assert isinstance(n_layers, int)
    per_layer = len(weights.items) // n_layers
    directions = 2 if flags[1] else 1
    nodes: list[Node] = []
    for layer in range(n_layers):
        rows = (directions * layer, directions * (layer + 1))
        initial: list[Arg] = []
        for which, state in enumerate(states.items if isinstance(states, Items) else (states,)):
            name = f"{node.results[0].name}.{layer}.state{which}"
            nodes.append(_node(node, "aten.slice.Tensor", (state, 0, *rows), (name,)))
            initial.append(Ref(name))
        last = layer == n_layers - 1
        outputs = tuple(v.name if last else f"{v.name}.{layer}" for v in node.results)
        own = Items(weights.items[layer * per_layer : (layer + 1) * per_layer])
        hx = Items(tuple(initial)) if isinstance(states, Items) else initial[0]
        args: tuple[Arg, ...] = (given, hx, own, has_biases, 1, 0.0, *flags)
        nodes.append(_node(node, node.op, args, outputs))
        given = Ref(outputs[0])
        if dropout and not last:
            dropped = (f"{outputs[0]}.kept", f"{outputs[0]}.mask")
            args = (given, dropout, True)
            nodes.append(_node(node, "aten.native_dropout.default", args, dropped))
            given = Ref(dropped[0])
    return nodes


def _node(origin: Node, op: str, args: tuple[Arg, ...], results: tuple[str, ...]) -> Node:
    return Node(
        op=op,
        args=args,
        kwargs={},
        results=tuple(Value(name, "float32", ()) for name in results),
        unit=origin.unit,
        source=origin.source,
    )
