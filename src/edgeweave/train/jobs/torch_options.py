"""Classes of ``torch.optim`` named in text, and which options each has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType

import torch

from edgeweave.core.errors import ConfigError
from edgeweave.core.words import suggest

__all__ = ["torch_options"]

_HOMES: MappingProxyType[str, tuple[ModuleType, type]] = MappingProxyType(
    {
        "optimizer": (torch.optim, torch.optim.Optimizer),
        "lr_schedule": (torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
    }
)
_GIVEN_BY_US = frozenset({"self", "params", "optimizer", "last_epoch"})


def torch_options(
    section: str, name: str, options: Mapping[str, object], *, origin: Callable[[str], str]
) -> dict[str, object]:
    """The options as the class spells them, as an environment variable cannot; lists as tuples.

    ``ConfigError`` if torch has no such class, or the class no such option.
    """
    home, parent = _HOMES[section]
    classes = _classes(home, parent)
    if name not in classes:
        raise ConfigError(
            f"{origin('name')}: {section}.name is the name of a class in {home.__name__} (got "
            f"{name!r}). {suggest(name, classes)}"
        )
    parameters = inspect.signature(classes[name]).parameters.keys() - _GIVEN_BY_US
    by_lower_case = {parameter.lower(): parameter for parameter in sorted(parameters)}
    checked: dict[str, object] = {}
    for key, value in options.items():
        if key.lower() not in by_lower_case:
            raise ConfigError(
                f"{origin(key)}: {section}.{key} is not an option of {name}. "
                f"{suggest(key, by_lower_case.values())}"
            )
        plain = tuple(value) if isinstance(value, list) else value
        checked[by_lower_case[key.lower()]] = plain
    return checked


def _classes(module: ModuleType, parent: type) -> dict[str, type]:
    return {
        name: found
        for name, found in vars(module).items()
        if inspect.isclass(found) and issubclass(found, parent) and found is not parent
    }
