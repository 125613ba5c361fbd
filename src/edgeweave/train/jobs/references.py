"""A function of the user's, named in text: ``package.module:build`` or ``path/to/file.py:build``.

Resolving runs the user's own code, so only the coordinator does it: references are never sent to a
device and never taken from one.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from edgeweave.core.errors import ConfigError

__all__ = ["BUILT_IN", "absolute_reference", "check_reference", "resolve_function"]

BUILT_IN = MappingProxyType(
    {
        "accuracy": "edgeweave.train.metrics:accuracy",
        "digits-cnn": "edgeweave.train.models:digits_cnn",
        "lenet": "edgeweave.train.models:lenet",
        "mlp": "edgeweave.train.models:mlp",
    }
)
"""Short names for what ships with Edgeweave."""


def check_reference(reference: str) -> None:
    """Raise ``ConfigError`` unless the text has one of the forms a reference can have."""
    location, _, attribute = reference.rpartition(":")
    if reference in BUILT_IN or (location and attribute.isidentifier()):
        return
    close = difflib.get_close_matches(reference, BUILT_IN, n=1)
    fix = f"Did you mean {close[0]}?" if close else "Write it like my_models/net.py:build."
    raise ConfigError(
        "a function is named path/to/file.py:function, package.module:function or one of "
        f"{', '.join(BUILT_IN)} (got {reference!r}). {fix}"
    )


def absolute_reference(reference: str, *, base: Path) -> str:
    """The same reference, with the path of a file no longer relative to ``base``."""
    location, colon, attribute = reference.rpartition(":")
    if not location.endswith(".py"):
        return reference
    try:
        path = base.absolute() / Path(location).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{location} begins with a user's folder ({error}).") from error
    return f"{path}{colon}{attribute}"


def resolve_function(reference: str, *, base: Path) -> Callable[..., Any]:
    """Import what a reference names; files and modules are also looked for in ``base``.

    A file is executed once in a process, and may import its neighbours while it is. Whatever goes
    wrong in it is a ``ConfigError`` with the user's own error as its cause.

    >>> resolve_function("torch.nn.functional:cross_entropy", base=Path()).__name__
    'cross_entropy'
    """
    check_reference(reference)
    location, _, attribute = absolute_reference(
        BUILT_IN.get(reference, reference), base=base
    ).rpartition(":")
    is_file = location.endswith(".py")
    module = _execute_file(Path(location)) if is_file else _import_module(location, base)
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [name for name, value in vars(module).items() if callable(value)]
        close = difflib.get_close_matches(attribute, known, n=1)
        fix = f"Did you mean {close[0]}?" if close else f"Define it in {location}."
        raise ConfigError(f"{location} has a function {attribute} (there is none). {fix}")
    return found  # type: ignore[no-any-return]  # a callable, of whatever signature


def _execute_file(path: Path) -> ModuleType:
    name = f"edgeweave_user_{hashlib.sha256(bytes(path)).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ConfigError(f"{path} is a file of yours (there is none). Check the path.")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AssertionError(f"Python has no loader for {path}, which ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look for it there
    try:
        with _users_code(str(path), path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str, base: Path) -> ModuleType:
    with _users_code(name, base.absolute()):
        return importlib.import_module(name)


@contextmanager
def _users_code(what: str, folder: Path) -> Iterator[None]:
    """Let the code inside import from ``folder``, and tell its failures from ours."""
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"{what} can be imported ({type(error).__name__}: {error}). Correct it, or name "
            f"another; modules are looked for in {folder} and where Python looks."
        ) from error
    finally:
        sys.path.remove(str(folder))
