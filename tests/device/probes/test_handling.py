"""What a message takes of one end, by a clock that the test reads for it."""

from __future__ import annotations

import itertools
import threading

from edgeweave.device.probes.handling import handling_seconds


def test_it_is_the_median_of_what_messages_took_and_leaves_no_thread() -> None:
    ticks = itertools.count()
    threads = threading.active_count()
    # Read before and after each message: each takes half a second, and one a hundred.
    moments = itertools.accumulate(100.0 if n == 7 else 0.5 for n in ticks)
    assert handling_seconds(lambda: next(moments)) == 0.5
    assert threading.active_count() == threads
