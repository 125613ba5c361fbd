"""What a served model takes and answers, as others than Python see it: names, types and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._pytree as pytree

from edgeweave.program import DTYPES, Inference, Value

__all__ = ["DATATYPES", "Port", "Signature"]

DATATYPES: Mapping[str, str] = MappingProxyType(
    {
        "bool": "BOOL",
        "uint8": "UINT8",
        "int8": "INT8",
        "int16": "INT16",
        "int32": "INT32",
        "int64": "INT64",
        "float16": "FP16",
        "bfloat16": "BF16",
        "float32": "FP32",
        "float64": "FP64",
    }
)
"""By the name of a dtype, what the Open Inference Protocol calls it."""


@dataclass(frozen=True, slots=True)
class Port:
    """One tensor that goes in or comes out; a size of -1 grows with the samples."""

    name: str
    dtype: torch.dtype
    datatype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, value: Value) -> Port:
        """A value of a program under a name for others."""
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        return cls(name, DTYPES[value.dtype], DATATYPES[value.dtype], shape)


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of a request, in the order in which the program takes them, and of an answer.

    A model that takes keywords, or answers with a dictionary, has these names; else they are
    ``input`` and ``output``, with numbers if there are several.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, inference: Inference, example: Any) -> Signature:
        """Of a captured model and the example it was captured with."""
        program, answer = inference.program, inference.answer
        values = program.values()
        takes = _names(example, "input", len(program.inputs))
        leaves = list(answer.leaves)
        tree = pytree.tree_unflatten(list(range(len(leaves))), answer.structure)
        gives = _names(tree, "output", len(leaves))
        pairs = zip(gives, leaves, strict=True)
        return cls(
            tuple(Port.of(n, v) for n, v in zip(takes, program.inputs, strict=True)),
            tuple(Port.of(n, values[leaf]) for n, leaf in pairs if leaf is not None),
        )

    def named(self, answer: Any) -> dict[str, torch.Tensor]:
        """The tensors of an answer by name."""
        tensors = (leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, torch.Tensor))
        return {port.name: tensor for port, tensor in zip(self.outputs, tensors, strict=True)}


def _names(tree: Any, word: str, n_leaves: int) -> list[str]:
    """A name for every leaf of a tree; numbered ones where its own would not differ or fit."""
    found = [".".join(path) for path in _paths(tree)]
    is_named = all(name and not name[0].isdigit() for name in found)
    if is_named and len(found) == n_leaves == len(set(found)):
        return found
    return [word] if n_leaves == 1 else [f"{word}_{index}" for index in range(n_leaves)]


def _paths(tree: Any) -> Iterator[tuple[str, ...]]:
    """Where the leaves are, dictionaries in the order of their keys as capturing walks them."""
    if isinstance(tree, Mapping):
        for key in tree if _is_answer(tree) else sorted(tree, key=str):
            yield from ((str(key), *rest) for rest in _paths(tree[key]))
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from ((str(index), *rest) for rest in _paths(item))
    else:
        yield ()


def _is_answer(tree: Mapping[Any, Any]) -> bool:
    """Whether the order of the keys is that of the leaves already: numbers stand for them."""
    return not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(tree))
