"""Counts are whole, whoever counts at the same time."""

from __future__ import annotations

import sys
import threading

from edgeweave.device.serving.tally import StageTally, TallyStatistics


def test_nothing_is_lost_when_several_threads_count() -> None:
    tally, n_threads, n_times = StageTally(), 4, 5_000
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def count() -> None:
        for _ in range(n_times):
            tally.add(requests=1, compute_seconds=0.5)
            tally.add(refused=1, wait_seconds=0.25)

    threads = [threading.Thread(target=count) for _ in range(n_threads)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    n = n_threads * n_times
    assert tally.statistics() == TallyStatistics(n, n, 0.5 * n, 0.25 * n)
