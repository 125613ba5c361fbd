"""A probe finds the rate and the latency of a link, whatever way its payload takes."""

from __future__ import annotations

import random
from statistics import fmean, median

import pytest

from edgeweave.core.loss import n_packets
from edgeweave.device.probes.links import probe_link
from edgeweave.net.pieces import PIECE_BYTES

RATE, LATENCY = 2e6, 0.02


class SlowLink:
    """Answers as a link of one rate and latency does; payloads of many pieces are fetched."""

    def __init__(self) -> None:
        self.now = 0.0

    def ask(self, payload: bytes) -> bytes:
        self.now += 2 * LATENCY + len(payload) / RATE
        if len(payload) > PIECE_BYTES:
            self.now += 2 * LATENCY
        return b""


class LossyLink(SlowLink):
    """Repeats what is lost on the way there a round trip later, until all of it has arrived."""

    def __init__(self, loss: float, chance: random.Random) -> None:
        super().__init__()
        self._loss = loss
        self._chance = chance

    def ask(self, payload: bytes) -> bytes:
        left = n_packets(len(payload))
        while left := sum(self._chance.random() < self._loss for _ in range(left)):
            self.now += 2 * LATENCY
        return super().ask(payload)


@pytest.mark.parametrize("size_bytes", [60_000, 1 << 20])
def test_the_rate_is_found_with_payloads_of_one_piece_and_of_many(size_bytes: int) -> None:
    link = SlowLink()
    timings = probe_link(link.ask, lambda: link.now, size_bytes)
    assert timings.bytes_per_second == pytest.approx(RATE)
    assert timings.latency_seconds == pytest.approx(LATENCY, rel=1e-4)
    assert timings.loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size_bytes", [60_000, 1 << 20])
@pytest.mark.parametrize("loss", [0.002, 0.01])
def test_waits_for_lost_packets_are_told_from_the_rate(loss: float, size_bytes: int) -> None:
    found = []
    for seed in range(40):
        link = LossyLink(loss, random.Random(seed))
        found.append(probe_link(link.ask, lambda link=link: link.now, size_bytes))  # type: ignore[misc]
    assert fmean(timings.loss for timings in found) == pytest.approx(loss, rel=0.35)
    assert median(timings.bytes_per_second for timings in found) == pytest.approx(RATE, rel=0.1)
    assert median(timings.latency_seconds for timings in found) == pytest.approx(LATENCY, rel=1e-3)


def test_a_scheduler_s_hiccups_on_a_quick_link_are_no_loss() -> None:
    now, chance = [0.0], random.Random(3)

    def ask(payload: bytes) -> bytes:
        now[0] += 3e-4 + len(payload) / 1e9 + chance.uniform(0.0, 1e-3)
        return b""

    assert probe_link(ask, lambda: now[0], 60_000).loss == pytest.approx(0, abs=1e-6)


def test_a_link_too_fast_to_measure_has_a_rate_all_the_same() -> None:
    timings = probe_link(lambda _payload: b"", lambda: 0.0, 1 << 20)
    assert timings.bytes_per_second > 1e11
    assert timings.latency_seconds == 0.0
