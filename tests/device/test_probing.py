"""A probe finds the rate and the latency of a link, whatever way its payload takes."""

from __future__ import annotations

import pytest

from edgeweave.device.probing import probe_link
from edgeweave.net.pieces import PIECE_BYTES

RATE, LATENCY = 2e6, 0.02


class SlowLink:
    """Answers as a link of one rate and latency does; payloads of many pieces are fetched."""

    def __init__(self, *, jitter: tuple[float, ...] = (0.0,)) -> None:
        self.now = 0.0
        self._jitter = jitter
        self._n_asked = 0

    def ask(self, payload: bytes) -> bytes:
        self.now += 2 * LATENCY + len(payload) / RATE
        if len(payload) > PIECE_BYTES:
            self.now += 2 * LATENCY
        self.now += self._jitter[self._n_asked % len(self._jitter)]
        self._n_asked += 1
        return b""


@pytest.mark.parametrize("size_bytes", [60_000, 1 << 20])
def test_the_rate_is_found_with_payloads_of_one_piece_and_of_many(size_bytes: int) -> None:
    link = SlowLink()
    timings = probe_link(link.ask, lambda: link.now, size_bytes)
    assert timings.bytes_per_second == pytest.approx(RATE)
    assert timings.latency_seconds == pytest.approx(LATENCY, rel=1e-4)


def test_one_late_answer_in_five_changes_the_rate_and_not_the_latency() -> None:
    link = SlowLink(jitter=(0.0, 0.0, 0.0, 0.0, 0.03))
    timings = probe_link(link.ask, lambda: link.now, 60_000)
    assert timings.bytes_per_second == pytest.approx(60_000 / (60_000 / RATE + 0.03 / 5), rel=1e-4)
    assert timings.latency_seconds == pytest.approx(LATENCY, rel=1e-4)


def test_a_link_too_fast_to_measure_has_a_rate_all_the_same() -> None:
    timings = probe_link(lambda _payload: b"", lambda: 0.0, 1 << 20)
    assert timings.bytes_per_second > 1e11
    assert timings.latency_seconds == 0.0
