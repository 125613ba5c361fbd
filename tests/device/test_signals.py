"""A signal ends an agent whenever it comes, even where the exception that it raises is lost."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress

import pytest

from edgeweave.device.signals import StopSignals

pytestmark = pytest.mark.timeout(20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_whose_exception_was_lost_ends_the_wait_all_the_same(number: int) -> None:
    """Bug: an agent missed a SIGTERM, which came where Python drops exceptions."""
    with StopSignals() as signals:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        signals.wait_until_told(None)


def test_a_signal_ends_the_wait_and_raises_nothing_from_then_on() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        signals.wait_until_told(None)
        timer.join()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)  # while it ends in order
    assert signal.getsignal(signal.SIGTERM) is before


def test_closing_standard_input_ends_the_wait() -> None:
    reads, writes = os.pipe()
    with StopSignals() as signals:
        os.write(writes, b"nobody reads this")
        os.close(writes)
        signals.wait_until_told(reads)
    os.close(reads)


def test_a_signal_before_it_waits_interrupts_what_it_does() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
