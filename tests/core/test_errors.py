"""The tree of errors, its exit codes, and what an error of a device knows."""

from __future__ import annotations

import pytest

from edgeweave.core import errors
from edgeweave.core.errors import DeviceError, DeviceFailed, DeviceLost, EdgeweaveError

ALL = [getattr(errors, name) for name in errors.__all__]


def _tree(kind: type[BaseException], depth: int = 0) -> list[tuple[int, str]]:
    found = [(depth, kind.__name__)]
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            found += _tree(child, depth + 1)
    return found


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_an_edgeweave_error(kind: type[Exception]) -> None:
    assert issubclass(kind, EdgeweaveError)


def test_every_public_error_has_an_exit_code_of_its_own() -> None:
    codes = {kind.__name__: kind.exit_code for kind in ALL if kind is not errors.DeviceError}
    assert codes.pop("FleetError") == 9
    assert len(set(codes.values())) == len(codes)
    assert 0 not in codes.values()


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert errors.__doc__ is not None
    lines = map(_name_and_code, errors.__doc__.splitlines())
    drawn = {line for line in lines if line is not None}
    concrete = {(kind.__name__, str(kind.exit_code)) for kind in ALL if kind is not DeviceError}
    assert drawn == concrete


def _name_and_code(line: str) -> tuple[str, str] | None:
    words = line.strip("│├└─ ").split()
    if len(words) > 2 and words[1].isdigit() and words[0].isidentifier():
        return words[0], words[1]
    return None


def test_an_error_of_a_device_names_the_device_and_its_stage() -> None:
    error = DeviceLost("pi-3 vanished.", device="pi-3", stage=2)
    assert (str(error), error.device, error.stage) == ("pi-3 vanished.", "pi-3", 2)


def test_a_device_without_a_stage_has_none() -> None:
    assert DeviceLost("pi-3 vanished.", device="pi-3").stage is None


def test_a_failed_device_shows_its_own_traceback_as_such() -> None:
    error = DeviceFailed("stage 1 failed.", device="pi-3", remote_traceback="ValueError: no")
    assert str(error) == "stage 1 failed.\n\n--- traceback on pi-3 ---\nValueError: no"
    assert error.remote_traceback == "ValueError: no"


def test_a_failed_device_without_a_traceback_keeps_to_its_message() -> None:
    assert str(DeviceFailed("stage 1 failed.", device="pi-3")) == "stage 1 failed."


def test_a_checkpoint_error_is_a_format_error() -> None:
    assert issubclass(errors.CheckpointError, errors.FormatError)


def test_the_tree_is_rooted_once() -> None:
    names = [name for _, name in _tree(EdgeweaveError)]
    assert sorted(names) == sorted(set(names))
    assert set(names) >= set(errors.__all__)
