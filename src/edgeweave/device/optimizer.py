"""Optimizers as named values: built from ``torch.optim`` on the device, saved as safetensors.

An optimizer travels as a class name and options; no code does. The learning rate is set anew for
every step by the coordinator, which owns the schedule.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgeweave.core.errors import ConfigError, FormatError
from edgeweave.program import encode_state

__all__ = [
    "Optimizer",
    "StageOptimizer",
    "build",
    "state_bytes_per_trainable_byte",
    "step_bytes_per_trainable_byte",
]

_PROBE_ELEMENTS = 1024

Option = bool | int | float | str | tuple[float, ...] | None


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Optimizer:
    """An optimizer of ``torch.optim`` by name, with its keyword arguments.

    >>> Optimizer("SGD", lr=0.05, momentum=0.9)
    Optimizer('SGD', lr=0.05, momentum=0.9)

    Options are numbers, strings and tuples of floats. Optimizers that need a closure (LBFGS) or
    see several parameters at once in a way a cut would break are not supported.
    """

    name: str
    options: dict[str, Option]

    def __init__(self, name: str, **options: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", options)

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"Optimizer({self.name!r}{options})"


def build(optimizer: Optimizer, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    """The torch optimizer a value names; ``ConfigError`` if torch refuses it."""
    _spare_dynamo()
    kind = getattr(torch.optim, optimizer.name, None)
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)):
        known = sorted(
            name
            for name, found in vars(torch.optim).items()
            if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)
        )
        raise ConfigError(
            f"torch.optim has no optimizer {optimizer.name!r}. Choose one of {', '.join(known)}."
        )
    if kind is torch.optim.LBFGS:
        raise ConfigError("LBFGS needs a closure, which a pipeline has not. Choose SGD or AdamW.")
    options: dict[str, Any] = dict(optimizer.options)
    try:
        built: torch.optim.Optimizer = kind(list(parameters), **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{optimizer!r} is refused by torch: {error}.") from error
    return built


def state_bytes_per_trainable_byte(optimizer: Optimizer) -> float:
    """How much an optimizer keeps beside each byte of parameters, found by stepping it once."""
    parameter, stepped = _stepped_once(optimizer)
    kept = sum(
        value.nbytes
        for value in stepped.state[parameter].values()
        if torch.is_tensor(value) and value.numel() == _PROBE_ELEMENTS
    )
    return kept / parameter.nbytes


def step_bytes_per_trainable_byte(optimizer: Optimizer) -> float:
    """How much a step reads and writes for each byte of parameters, found by watching one.

    A step works element by element, so what it takes is what moving these bytes takes.
    """
    parameter, stepped = _stepped_once(optimizer)
    traffic = _Traffic()  # type: ignore[no-untyped-call]
    with traffic:
        _step(stepped)
    return float(traffic.moved_bytes / parameter.nbytes)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors as large as the probed parameter that go in and out."""

    moved_bytes = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = operator(*args, **(kwargs or {}))
        self.moved_bytes += sum(
            value.nbytes
            for value in tree_leaves((args, kwargs, result))
            if torch.is_tensor(value) and value.numel() == _PROBE_ELEMENTS
        )
        return result


def _stepped_once(optimizer: Optimizer) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A parameter and its optimizer, which has made its state."""
    parameter = nn.Parameter(torch.zeros(_PROBE_ELEMENTS))
    parameter.grad = torch.ones(_PROBE_ELEMENTS)
    probe = build(optimizer, [parameter])
    try:
        _step(probe)
    except RuntimeError as error:
        raise ConfigError(f"{optimizer!r} cannot train dense gradients: {error}") from error
    return parameter, probe


class StageOptimizer:
    """The optimizer of one stage: steps its parameters, saves and loads its state by name."""

    def __init__(self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self._optimizer = build(optimizer, self._parameters.values()) if self._parameters else None

    def step(self, hyperparameters: Mapping[str, float]) -> None:
        """Set the step's hyperparameters (``lr`` and whatever else is scheduled) and step."""
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            _set_hyperparameters(group, hyperparameters)
        _step(self._optimizer)

    def clear_gradients(self) -> None:
        """Forget the gradients of the step."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def state(self) -> bytes:
        """The optimizer's state as safetensors, keyed ``<parameter>|<entry>``."""
        return encode_state(self.tensors())

    def tensors(self) -> dict[str, torch.Tensor]:
        """The optimizer's state by ``<parameter>|<entry>``; not copies."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            entries = {} if self._optimizer is None else self._optimizer.state[parameter]
            for key, value in entries.items():
                if value is not None:
                    tensor = value if torch.is_tensor(value) else torch.tensor(value)
                    tensors[f"{name}|{key}"] = tensor
        return tensors

    def load_state(self, data: bytes | memoryview) -> None:
        """Take over what ``state`` returned, here or on another device."""
        try:
            tensors = safetensors.torch.load(bytes(data))
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise FormatError(f"the optimizer's state is not safetensors ({error}).") from error
        self.load_tensors(tensors)

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what ``tensors`` returned. They are trained in place from now on."""
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("|")
            parameter = self._parameters.get(name)
            if parameter is None or self._optimizer is None:
                raise FormatError(f"the optimizer's state names {name}, which is not trained here.")
            if not _belongs(tensor, parameter):
                raise FormatError(
                    f"the optimizer's {key} of {name} has shape {tuple(tensor.shape)}, "
                    f"the parameter {tuple(parameter.shape)}."
                )
            # Counters stay on the host, where torch keeps them.
            device = tensor.device if key == "step" else parameter.device
            self._optimizer.state[parameter][key] = tensor.to(device)


def _belongs(tensor: torch.Tensor, parameter: torch.Tensor) -> bool:
    """Whether an entry has its parameter's shape, or one summed over some of its dimensions."""
    return tensor.ndim in (0, parameter.ndim) and all(
        found in (1, size) for found, size in zip(tensor.shape, parameter.shape, strict=False)
    )


def _set_hyperparameters(group: dict[str, Any], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        key, _, index = name.partition(".")
        if not index:
            group[key] = value
        else:
            items = list(group[key])
            items[int(index)] = value
            group[key] = tuple(items)


def _step(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()`` without its wrappers, which import torch._dynamo for hooks we lack."""
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)


def _spare_dynamo() -> None:
    """Keep ``torch._dynamo`` (70 MB, 2 s) out of a process that never compiles.

    Methods of ``Optimizer`` are wrapped to import it at their first call unless the wrapped
    function already names its replacement: here, itself. Where torch has no such wrapper, nothing
    happens.
    """
    for method in vars(torch.optim.Optimizer).values():
        wrapped = getattr(method, "__wrapped__", None)
        if wrapped is not None and not hasattr(wrapped, "__dynamo_disable"):
            wrapped.__dynamo_disable = wrapped
