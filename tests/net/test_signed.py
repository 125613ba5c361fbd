"""Who asks, as the wire says it: it is believed only where it can be true."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import WireError
from edgeweave.net import Priority
from edgeweave.net._signed import Signature, sign, unsign


@given(payload=st.binary(), seconds=st.floats(min_value=1e-6, max_value=86_400.0))
def test_a_signature_comes_back_with_its_payload(payload: bytes, seconds: float) -> None:
    signature = Signature("coordinator-0a1b", seconds, Priority.CONTROL)
    assert unsign(sign(signature, payload)) == (signature, payload)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, -math.inf, 86_401.0])
def test_a_wait_that_nobody_can_have_is_refused(seconds: float) -> None:
    with pytest.raises(WireError) as refused:
        unsign(sign(Signature("pi-1", seconds, Priority.DATA), b"payload"))
    assert str(refused.value) == (
        "who asks waits more than 0 s and at most 24 h "
        f"(pi-1 waits {seconds} s). Ask with a deadline."
    )


@pytest.mark.parametrize("name", ["", "a/b", "*", "run", "bulk", "a b", "x" * 129])
def test_a_name_that_no_device_has_is_refused(name: str) -> None:
    with pytest.raises(WireError, match=r"^a request is signed with the name of a device: "):
        unsign(sign(Signature(name, 1.0, Priority.DATA), b"payload"))


@given(data=st.binary(max_size=64))
def test_bytes_that_are_no_signed_request_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match=r"^a request in a fleet with emulated links says who asks"):
        unsign(b"\xff\xff" + data)
