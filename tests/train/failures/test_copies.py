"""Fetching states beside training: what is asked is waited for, also when nobody wants it now."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, cast

from edgeweave.core.timeouts import Timeouts
from edgeweave.fleet import Fleet
from edgeweave.train.failures.copies import Copies
from edgeweave.train.weights import Weights


@dataclass
class _Asked:
    """A transport whose devices answer when they are told to."""

    answered: threading.Event = field(default_factory=threading.Event)

    def request(self, key: str, payload: bytes, **how: Any) -> bytes:
        assert self.answered.wait(10)
        return b""


@dataclass
class _Fleet:
    transport: _Asked
    timeouts: Timeouts
    name: str = "home"


def _copies(transport: _Asked, stop: float) -> Copies:
    fleet = cast(Fleet, _Fleet(transport, Timeouts(stop=stop)))
    return Copies(fleet, Weights({}))


def _threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("edgeweave-copies")]


def test_close_waits_for_what_was_asked_even_if_it_is_not_wanted_any_more() -> None:
    transport = _Asked()
    copies = _copies(transport, stop=10)
    copies.begin("run", 0, 1, ["a", "b"])
    copies.forget()
    threading.Timer(0.2, transport.answered.set).start()

    copies.close()

    assert not _threads()


def test_close_gives_up_on_a_device_that_does_not_answer() -> None:
    transport = _Asked()
    copies = _copies(transport, stop=0.05)
    copies.begin("run", 0, 1, ["a"])

    copies.close()

    assert _threads()
    transport.answered.set()
    for thread in threading.enumerate():
        if thread.name in _threads():
            thread.join(10)
    assert not _threads()
