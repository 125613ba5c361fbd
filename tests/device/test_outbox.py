"""Sending to one neighbour ends when it is told to, whatever still waits."""

from __future__ import annotations

import threading

from edgeweave.device.outbox import Outbox, Outboxes


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


def test_what_was_posted_to_all_is_waited_for_together() -> None:
    outboxes = Outboxes(stop_seconds=1.0)
    assert outboxes.wait_until_sent(0.0)
    go_on, sent = threading.Event(), []
    for name in ("pi-a", "pi-b"):
        outboxes.to(name).post(lambda: go_on.wait(5.0))  # type: ignore[arg-type, return-value]
        outboxes.to(name).post(lambda name=name: sent.append(name))  # type: ignore[misc]
    assert not outboxes.wait_until_sent(0.01)
    go_on.set()
    assert outboxes.wait_until_sent(5.0)
    assert sorted(sent) == ["pi-a", "pi-b"]
    outboxes.close()
