"""Links asked and got, from outside: two processes, frames that say when they were sent.

rate    bytes on the wire (frames and 66 bytes for each packet of 1448) of a long train of
        reliable frames / time from the first arrival to the last; where packets are lost, those
        sent again count too: / (1 - loss)
delay   median of arrival - sending of small loss-tolerant frames, less the time on the wire
        and less the same on the unshaped transport, measured just before
jitter  half the distance between the quantiles of arrival - sending that lie one standard
        deviation of a normal distribution below and above its middle
loss    share of loss-tolerant frames that never came; burst is the mean length of the gaps
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median

import numpy as np

from benchmarks.children import Child
from benchmarks.emulator_frames import (
    SENDER,
    Arrival,
    Line,
    settings_of,
    wire_bytes,
)
from benchmarks.emulator_table import Row
from edgeweave.core.clock import SystemClock
from edgeweave.fleet.traces import read_trace
from edgeweave.net import (
    GilbertElliott,
    Links,
    LinkShape,
    RateTrace,
    Reliability,
    ShapedTransport,
    ZenohTransport,
)

__all__ = ["CASES", "Case", "gaps", "measure_links"]

_MEGABIT = 125_000.0
_BASE_FRAMES = 150
_GROUP, _GROUP_SECONDS = 25, 0.01
_TRACE = """seconds,bytes_per_second
0.0,2500000
0.1,1250000
0.2,5000000
0.3,625000
0.4,3125000
"""
_LOWER, _UPPER = NormalDist().cdf(-1), NormalDist().cdf(1)


@dataclass(frozen=True, slots=True)
class Case:
    """A link as it is asked for, in the units of people."""

    megabits: float | None
    """None: the recorded trace."""
    delay_ms: float
    jitter_ms: float = 0.0
    loss: float | GilbertElliott = 0.0

    @property
    def share_lost(self) -> float:
        return self.loss.share if isinstance(self.loss, GilbertElliott) else self.loss

    def shape(self, trace: RateTrace) -> LinkShape:
        return LinkShape(
            trace if self.megabits is None else self.megabits * _MEGABIT,
            self.delay_ms / 1e3,
            self.jitter_ms / 1e3,
            self.loss,
        )

    def __str__(self) -> str:
        parts = ["trace" if self.megabits is None else f"{self.megabits:g} Mbit/s"]
        parts.append(f"{self.delay_ms:g} ms")
        if self.jitter_ms:
            parts.append(f"+- {self.jitter_ms:g} ms")
        if isinstance(self.loss, GilbertElliott):
            parts.append(f"loss {self.loss.share:.1%} in bursts of {1 / self.loss.to_good:g}")
        elif self.loss:
            parts.append(f"loss {self.loss:.0%}")
        return ", ".join(parts)


CASES = (
    Case(1, 50),
    Case(2, 20, 4),
    Case(5, 10, 2),
    Case(10, 100, 10),
    Case(20, 5, loss=0.1),
    Case(20, 20, 5, GilbertElliott(0.05, 0.5)),
    Case(50, 2),
    Case(50, 10, 3, 0.2),
    Case(100, 5, loss=GilbertElliott(0.05, 0.25)),
    Case(100, 0),
    Case(200, 1, loss=0.05),
    Case(None, 5),
)
_QUICK = (3, 8)


def measure_links(*, quick: bool, seed: int) -> list[Row]:
    """The rows of every case."""
    cases = [CASES[index] for index in _QUICK] if quick else CASES
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        file = Path(folder) / "trace.csv"
        file.write_text(_TRACE, encoding="utf-8")
        trace = read_trace(file)
    with _line(seed) as line:
        return [row for case in cases for row in _measure(line, case, trace, quick=quick)]


@contextmanager
def _line(seed: int) -> Iterator[Line]:
    inner = ZenohTransport(SENDER, settings_of())
    with ShapedTransport(inner, Links(), clock=SystemClock()) as transport:
        settings = {"connect": inner.endpoints()}
        with Child("benchmarks.emulator_receiver", settings) as receiver:
            receiver.answer()
            yield Line(transport, receiver, seed=seed)


def _measure(line: Line, case: Case, trace: RateTrace, *, quick: bool) -> Iterator[Row]:
    shape = case.shape(trace)
    line.shape(LinkShape())
    base = median(_latencies(line, _BASE_FRAMES, 0.002, 0.0))
    line.shape(shape)
    settle = shape.delay_seconds + 8 * shape.jitter_seconds + 0.05
    rate = trace.mean if case.megabits is None else case.megabits * _MEGABIT
    got = _rate(line, rate, 1.5 if quick else 3.0) / (1 - case.share_lost)
    yield Row(str(case), "rate", rate / _MEGABIT, got / _MEGABIT, "Mbit/s")
    frames = _delay_frames(case, quick=quick)
    latencies = np.array(_latencies(line, frames, 0.0025, settle)) - base
    on_wire = wire_bytes(line.frame(0, 0)) * _seconds_per_byte(shape)
    delay = float(np.median(latencies)) - on_wire
    yield Row(str(case), "delay", case.delay_ms, 1e3 * delay, "ms")
    if case.jitter_ms:
        low, high = np.quantile(latencies, (_LOWER, _UPPER))
        yield Row(str(case), "jitter", case.jitter_ms, 500.0 * float(high - low), "ms")
    if case.loss:
        yield from _losses(line, case, 5_000 if quick else 12_500, settle)


def _losses(line: Line, case: Case, n_frames: int, settle: float) -> Iterator[Row]:
    arrived = line.arrivals(
        (number // _GROUP * _GROUP_SECONDS for number in range(n_frames)),
        payload_bytes=0,
        reliability=Reliability.LOSS_TOLERANT,
        settle_seconds=settle,
    )
    lost = gaps([number for number, _, _ in arrived], n_frames)
    yield Row(str(case), "loss", 100 * case.share_lost, 100 * sum(lost) / n_frames, "%")
    if isinstance(case.loss, GilbertElliott):
        mean_gap = sum(lost) / max(len(lost), 1)
        yield Row(str(case), "burst", 1 / case.loss.to_good, mean_gap, "frames")


def gaps(numbers: Sequence[int], n_sent: int) -> list[int]:
    """Lengths of the runs of numbers below ``n_sent`` that are missing.

    >>> gaps([0, 1, 4, 6], 8)
    [2, 1, 1]
    """
    edges = itertools.pairwise([-1, *numbers, n_sent])
    return [after - before - 1 for before, after in edges if after > before + 1]


def _delay_frames(case: Case, *, quick: bool) -> int:
    most = 1200 if case.jitter_ms else 200
    return most // 2 if quick else most


def _latencies(line: Line, n_frames: int, apart: float, settle: float) -> list[float]:
    arrived: list[Arrival] = line.arrivals(
        (apart * number for number in range(n_frames)),
        payload_bytes=0,
        reliability=Reliability.LOSS_TOLERANT,
        settle_seconds=settle,
    )
    return [there - sent for _, sent, there in arrived]


def _rate(line: Line, bytes_per_second: float, seconds: float) -> float:
    """Bytes on the wire for each second of a train that should take so many seconds.

    The trace's period divides the seconds, so that it does not matter where in it a train begins.
    """
    payload = int(min(max(bytes_per_second * 0.05, 8_000), 256_000))
    size = wire_bytes(line.frame(0, payload))
    count = max(2, round(seconds * bytes_per_second / size))
    arrived = line.arrivals(
        itertools.repeat(0.0, count + 1),
        payload_bytes=payload,
        reliability=Reliability.RELIABLE,
        settle_seconds=0.0,
    )
    moments = [there for _, _, there in arrived]
    return count * size / (moments[-1] - moments[0])


def _seconds_per_byte(shape: LinkShape) -> float:
    rate = shape.bytes_per_second
    if isinstance(rate, RateTrace):
        return float(np.mean([1 / each for each in rate.bytes_per_second]))
    return 1 / rate if rate else 0.0
