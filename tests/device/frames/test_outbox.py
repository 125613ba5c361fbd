"""Sending to one neighbour ends when it is told to, whatever still waits."""

from __future__ import annotations

import threading

from edgeweave.device.frames.outbox import Outbox


def test_a_full_outbox_ends_once_its_work_returns() -> None:
    """Bug: the word to end found no room, and closing waited for ever."""
    begun, go_on = threading.Event(), threading.Event()
    late: list[int] = []

    def work() -> None:
        begun.set()
        go_on.wait(5.0)

    outbox = Outbox("pi-a", stop_seconds=0.05)
    outbox.__enter__()
    outbox.post(work)
    assert begun.wait(5.0)
    for number in range(32):
        outbox.post(lambda number=number: late.append(number))  # type: ignore[misc]
    closing = threading.Thread(target=outbox.__exit__, args=(None, None, None), daemon=True)
    closing.start()
    closing.join(0.2)
    go_on.set()
    closing.join(5.0)
    assert not closing.is_alive()
    assert late == []
