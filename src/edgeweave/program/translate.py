"""Translate an exported graph of torch into our own nodes.

Knows the structures of ``torch.export`` (version 2.8 to 2.13) and nothing of units or devices.
Symbolic sizes become affine functions of the batch, data-free allocations (``zeros_like`` and its
kin) become ``full`` with an explicit shape, assertions and device arguments are left behind.
"""

from __future__ import annotations

import math
import operator as python_operator
from typing import Any, Literal

import torch
from torch.export.graph_signature import InputKind, OutputKind

from edgeweave.core.errors import CaptureError, FormatError
from edgeweave.program.graph import Arg, Constant, Items, Node, Ref, Size, Value
from edgeweave.program.operators import dtype_name, operator

__all__ = ["Translation", "shield_no_grad"]

_ASSERTIONS = ("aten._assert", "aten.sym_constrain", "aten._local_scalar_dense")
_PROBES = (2, 3, 4, 5, 7, 8, 16, 27)
_ALLOCATIONS: dict[str, float | int | None] = {
    "aten.zeros_like.default": 0,
    "aten.ones_like.default": 1,
    "aten.new_zeros.default": 0,
    "aten.new_ones.default": 1,
    "aten.full_like.default": None,
    "aten.new_full.default": None,
}


def shield_no_grad(exported: torch.export.ExportedProgram) -> None:
    """Detach what leaves a ``torch.no_grad`` region, in place.

    ``run_decompositions`` inlines such regions and forgets that nothing inside them was recorded;
    a detached output says the same in the flat graph.
    """
    for module in list(exported.graph_module.modules()):
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            target = str(node.target)
            if node.op != "call_function" or "wrap_with_set_grad_enabled" not in target:
                continue
            if node.args[0] is False:
                _detach_outputs(getattr(module, node.args[1].target))


def _detach_outputs(region: torch.fx.GraphModule) -> None:
    output = next(node for node in region.graph.nodes if node.op == "output")

    def detach(value: Any) -> Any:
        if not isinstance(value, torch.fx.Node) or not isinstance(value.meta["val"], torch.Tensor):
            return value
        with region.graph.inserting_before(output):
            detached = region.graph.call_function(torch.ops.aten.detach.default, (value,))
        detached.meta = dict(value.meta)
        return detached

    output.args = torch.fx.map_arg(output.args, detach)
    region.recompile()


class Translation:
    """One pass over an exported graph; the results are its attributes.

    ``nodes`` have results without shapes (``edgeweave.program.check.infer_values`` fills them in).
    """

    def __init__(
        self,
        exported: torch.export.ExportedProgram,
        input_names: tuple[str, ...],
        *,
        names: dict[str, str],
    ) -> None:
        self.nodes: list[Node] = []
        self.tensors: dict[str, torch.Tensor] = {}
        self.kinds: dict[str, Literal["parameter", "buffer", "constant"]] = {}
        self.aliases = {name: first for name, first in names.items() if name != first}
        self.updates: dict[str, str] = {}
        self.user_outputs: list[str | None] = []
        self.shapes_of_inputs: dict[str, tuple[int | Size, ...]] = {}
        self._names = names
        self._args: dict[torch.fx.Node, Arg] = {}
        self._results: dict[torch.fx.Node, tuple[str, ...]] = {}
        self._taken: set[str] = set()
        self._read_inputs(exported, input_names)
        for node in exported.graph.nodes:
            if node.op == "call_function":
                self._read_call(node)
            elif node.op == "get_attr":
                raise CaptureError(
                    f"a sub-graph is left in the capture ({node.target}{_source(node)}). "
                    "Python callbacks, cond() and autocast regions cannot be captured."
                )
        self._read_outputs(exported)

    def _read_inputs(
        self, exported: torch.export.ExportedProgram, input_names: tuple[str, ...]
    ) -> None:
        placeholders = {
            node.name: node for node in exported.graph.nodes if node.op == "placeholder"
        }
        user_inputs = iter(input_names)
        for spec in exported.graph_signature.input_specs:
            node = placeholders[spec.arg.name]
            if spec.kind is InputKind.USER_INPUT:
                name = next(user_inputs)
                self.shapes_of_inputs[name] = self._shape(node)
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                name = self._read_state(exported, spec)
            else:
                raise CaptureError(
                    f"the model holds a {spec.kind.name.lower()} ({spec.target}), which cannot "
                    "travel as data. Keep tensors in parameters and buffers."
                )
            self._args[node] = Ref(name)

    def _read_state(self, exported: torch.export.ExportedProgram, spec: Any) -> str:
        full_name: str = spec.target.removeprefix("model.")
        name = self._names.get(full_name, full_name)
        persistent = spec.target in exported.state_dict
        of_loss = not spec.target.startswith("model.")  # in no state_dict of the user's model
        tensor = exported.state_dict[spec.target] if persistent else exported.constants[spec.target]
        if name not in self.tensors:
            self.tensors[name] = tensor
            if of_loss or not persistent:
                self.kinds[name] = "constant"
            else:
                self.kinds[name] = "parameter" if spec.kind is InputKind.PARAMETER else "buffer"
        return name

    def _read_call(self, node: torch.fx.Node) -> None:
        if isinstance(node.meta.get("val"), int | float | torch.SymInt | torch.SymBool):
            self._args[node] = self._number(node.meta["val"], node)
            return
        if node.target is python_operator.getitem:
            producer, index = node.args
            assert isinstance(producer, torch.fx.Node)
            assert isinstance(index, int)
            self._args[node] = Ref(self._results[producer][index])
            return
        name = str(node.target)
        if name.startswith(_ASSERTIONS):
            return
        if not isinstance(node.target, torch._ops.OpOverload) or not name.startswith("aten."):
            raise CaptureError(
                f"operator {name} is not a plain torch operator{_source(node)}. "
                "Replace it by operators of torch."
            )
        try:
            operator(name)
        except FormatError as error:
            raise CaptureError(f"{error}{_source(node)}") from error
        self._append(node, name)

    def _append(self, node: torch.fx.Node, name: str) -> None:
        value = node.meta.get("val")
        many = isinstance(value, list | tuple)
        suffixes = [f".{i}" for i in range(len(value))] if isinstance(value, list | tuple) else [""]
        results = tuple(self._fresh(node.name + suffix) for suffix in suffixes)
        if not many:
            self._args[node] = Ref(results[0])
        self._results[node] = results
        args = tuple(self._arg(arg, node) for arg in node.args)
        kwargs = {
            key: self._arg(arg, node)
            for key, arg in node.kwargs.items()
            if not isinstance(arg, torch.device) and key not in ("pin_memory", "generator")
        }
        if name == "aten.view.default":
            name = "aten.reshape.default"  # strides of fused operators differ between devices
        if name in _ALLOCATIONS:
            name, args, kwargs = self._as_full(name, args, kwargs, value)
        self.nodes.append(
            Node(
                op=name,
                args=args,
                kwargs=kwargs,
                results=tuple(Value(result, "float32", ()) for result in results),
                unit=0,
                source=_source(node),
            )
        )

    def _as_full(
        self, name: str, args: tuple[Arg, ...], kwargs: dict[str, Arg], value: Any
    ) -> tuple[str, tuple[Arg, ...], dict[str, Arg]]:
        fill = _ALLOCATIONS[name]
        if fill is None:
            given = args[-1] if len(args) > 1 else kwargs["fill_value"]
            assert isinstance(given, bool | int | float | Constant)
            content: Arg = given
        else:
            content = bool(fill) if value.dtype == torch.bool else fill
        shape = Items(tuple(self._number(size, None) for size in value.shape))
        return (
            "aten.full.default",
            (shape, content),
            {"dtype": Constant("dtype", dtype_name(value.dtype))},
        )

    def _read_outputs(self, exported: torch.export.ExportedProgram) -> None:
        output = next(node for node in exported.graph.nodes if node.op == "output")
        for spec, node in zip(exported.graph_signature.output_specs, output.args[0], strict=True):
            arg = self._args.get(node) if isinstance(node, torch.fx.Node) else None
            if spec.kind is OutputKind.BUFFER_MUTATION and isinstance(arg, Ref):
                full_name = str(spec.target).removeprefix("model.")
                self.updates[self._names.get(full_name, full_name)] = arg.name
            elif spec.kind is OutputKind.USER_OUTPUT:  # None: a number, or nothing at all
                self.user_outputs.append(arg.name if isinstance(arg, Ref) else None)
            else:
                raise CaptureError(
                    f"the model changes its input or a constant in place ({spec.kind.name.lower()} "
                    f"of {spec.target}). Clone it first."
                )

    def _fresh(self, name: str) -> str:
        """A name no input, state entry or value has: users name parameters as they like."""
        taken = self._taken | self.tensors.keys() | self.shapes_of_inputs.keys()
        while name in taken:
            name += "_"
        self._taken.add(name)
        return name

    def _shape(self, node: torch.fx.Node) -> tuple[int | Size, ...]:
        sizes = tuple(self._number(size, node) for size in node.meta["val"].shape)
        return tuple(size for size in sizes if isinstance(size, int | Size))

    def _arg(self, arg: Any, node: torch.fx.Node) -> Arg:
        if isinstance(arg, torch.fx.Node):
            if arg not in self._args:
                raise CaptureError(
                    f"a list result is used whole by {node.target}{_source(node)}. Index it first."
                )
            return self._args[arg]
        if isinstance(arg, list | tuple):
            return Items(tuple(self._arg(item, node) for item in arg))
        if isinstance(arg, torch.dtype):
            return Constant("dtype", dtype_name(arg))
        if isinstance(arg, torch.memory_format):
            return Constant("memory_format", str(arg))
        if isinstance(arg, torch.layout):
            return Constant("layout", str(arg))
        if isinstance(arg, torch.device):
            return None
        if isinstance(arg, float) and not math.isfinite(arg):
            return Constant("float", str(arg))
        if arg is None or isinstance(arg, bool | int | float | str):
            return arg
        return self._number(arg, node)

    def _number(self, value: Any, node: torch.fx.Node | None) -> bool | int | float | Size:
        """A concrete number, or one affine in the batch."""
        if isinstance(value, bool | int | float):
            return value
        expression = value.node.expr
        symbols = list(expression.free_symbols)
        if not symbols:
            return int(expression)
        if len(symbols) == 1:
            points = {n: expression.subs(symbols[0], n) for n in _PROBES}
            if all(point.is_Integer for point in points.values()):
                slope = int(points[3]) - int(points[2])
                size = Size(slope, int(points[2]) - 2 * slope)
                if all(size.at(n) == int(points[n]) for n in _PROBES):
                    return size if slope else size.constant
        raise CaptureError(
            f"a size is affine in the batch, a * batch + b (got {expression}"
            f"{_source(node) if node is not None else ''}). Reshape so that samples stay whole."
        )


def _source(node: torch.fx.Node) -> str:
    """Where in the user's code an operator stands: `` (model.py:12, in forward: x = ...)``."""
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.strip().splitlines() if line.strip()]
    files = [i for i, line in enumerate(lines) if line.startswith("File ")]
    if not files:
        return ""
    where = lines[files[-1]].removeprefix("File ")
    code = lines[files[-1] + 1] if files[-1] + 1 < len(lines) else ""
    path, _, rest = where.partition(", line ")
    short = path.strip('"').rsplit("/", 1)[-1]
    return f" ({short}:{rest.split(',')[0]}: {code})"[:200]
