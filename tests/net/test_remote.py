"""Errors cross the network as themselves, and nothing else does."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core import errors
from edgeweave.net.remote import decode_error, encode_error

PLAIN = [
    getattr(errors, name)
    for name in errors.__all__
    if not issubclass(getattr(errors, name), errors.DeviceError)
]


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)
def test_every_plain_error_comes_back_as_its_class(kind: type[errors.EdgeweaveError]) -> None:
    back = decode_error(encode_error(kind("rule (facts). Fix.")), "pi-1")
    assert type(back) is kind
    assert str(back) == "rule (facts). Fix."


@pytest.mark.parametrize(
    "kind", [errors.DeviceBusy, errors.DeviceLost, errors.DeviceTimeout], ids=lambda k: k.__name__
)
def test_a_device_error_keeps_the_device_it_is_about(kind: type[errors.DeviceError]) -> None:
    back = decode_error(encode_error(kind("busy", device="pi-2", stage=3)), "pi-1")
    assert type(back) is kind
    assert (str(back), back.device, back.stage) == ("busy", "pi-2", 3)


def foreign_error() -> BaseException:
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        return error


def test_a_foreign_error_becomes_device_failed_with_the_remote_traceback() -> None:
    back = decode_error(encode_error(foreign_error()), "pi-1")
    assert isinstance(back, errors.DeviceFailed)
    assert back.device == "pi-1"
    assert str(back).startswith(
        "device 'pi-1' failed: ZeroDivisionError: division by zero\n\n--- traceback on pi-1 ---\n"
    )
    assert "in foreign_error" in back.remote_traceback


def test_a_failure_that_is_passed_on_shows_its_first_traceback_once() -> None:
    first = decode_error(encode_error(foreign_error()), "pi-1")
    second = decode_error(encode_error(first), "pi-2")
    assert isinstance(second, errors.DeviceFailed)
    assert second.device == "pi-1"
    assert str(second).count("--- traceback on") == 1
    assert "in foreign_error" in second.remote_traceback


def test_the_name_of_a_class_is_never_looked_up() -> None:
    data = msgspec.msgpack.encode(["SystemExit", "bye", ""])
    assert type(decode_error(data, "pi-1")) is errors.DeviceFailed


def test_long_texts_are_cut() -> None:
    data = encode_error(ValueError("x" * 1_000_000))
    assert len(data) < 50_000


@given(st.binary(max_size=100))
def test_an_unreadable_report_is_a_wire_error(data: bytes) -> None:
    assert isinstance(decode_error(data, "pi-1"), errors.EdgeweaveError)
    assert isinstance(decode_error(b"\xc1" + data, "pi-1"), errors.WireError)
