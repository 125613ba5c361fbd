"""What our frames cost beside a raw socket: throughput, round trips and CPU, one way on loopback.

Two processes. A frame goes through ``Transport.send`` (Zenoh), is checked, put together from its
pieces and viewed as a tensor; the socket's receiver reads into memory of its own and views it.
Plain TCP and mutual TLS; 16 KB, 256 KB, 1 MB and 8 MB. Frames and socket take turns, and each ratio
is of one turn. A burst ends when the sender knows that the receiver has everything.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Protocol

import torch

from benchmarks.certificates import make_certificates
from benchmarks.children import Child
from benchmarks.harness import Result, interleaved, ratios
from benchmarks.raw_socket import RawSender, client_context
from benchmarks.wire_frames import FrameSender, net_settings
from edgeweave.net import TlsFiles, ZenohTransport

__all__ = ["run"]

_SEED = 0
_SIZES = {"16kb": 16 << 10, "256kb": 256 << 10, "1mb": 1 << 20, "8mb": 8 << 20}
_WARM_UP_BYTES = 16 << 20


class _Way(Protocol):
    """How a tensor gets to the receiver: frames, or the raw socket."""

    def burst(self, tensor: torch.Tensor, count: int) -> None: ...

    def echo(self, tensor: torch.Tensor) -> None: ...


def run(*, quick: bool) -> Result:
    """Measure; ``quick`` takes 3 turns of less instead of 11."""
    torch.set_num_threads(1)
    turns, echoes = (3, 20) if quick else (11, 60)
    bytes_of = {
        name: min(1 << 28, max(1 << 25, 64 * size)) >> (2 if quick else 0)
        for name, size in _SIZES.items()
    }
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for suffix, files in (("", None), ("_tls", make_certificates(Path(folder)))):
            with _ways(files) as (ways, child):
                for name, size in _SIZES.items():
                    meter = _Meter(size, bytes_of[name] // size, echoes, child)
                    _compare(f"{name}{suffix}", meter, ways, turns, samples)
    metrics = {key: median(series) for key, series in samples.items() if "__" not in key}
    return Result(
        name="wire",
        quick=quick,
        metrics=metrics,
        lines=tuple(f"{key:>36} = {value:9.3f}" for key, value in metrics.items()),
        samples=samples,
        settings={
            "seed": _SEED,
            "turns": turns,
            "echoes": echoes,
            "burst_bytes": bytes_of,
        },
    )


@contextmanager
def _ways(files: TlsFiles | None) -> Iterator[tuple[Mapping[str, _Way], Child]]:
    """Frames and socket to one receiving process."""
    tls = [str(path) for path in (files.ca, files.certificate, files.key)] if files else None
    with ExitStack() as stack:
        child = stack.enter_context(Child("benchmarks.wire_receiver", {"tls": tls}))
        ready = child.answer()
        raw = RawSender(ready["port"], client_context(files))
        stack.enter_context(closing(raw))
        transport = stack.enter_context(
            ZenohTransport("sender", net_settings(files, (ready["endpoint"],)))
        )
        yield {"ours": stack.enter_context(FrameSender(transport)), "raw": raw}, child


class _Meter:
    """Bursts and echoes of one size, timed. CPU is that of both processes, all threads."""

    def __init__(self, size: int, count: int, echoes: int, child: Child) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        self._tensor = torch.randint(256, (size,), dtype=torch.uint8, generator=generator)
        self._count, self._echoes, self._child = count, echoes, child
        self._gigabytes = size * count / 1e9
        self.cpu_per_gb: list[float] = []

    def warm_up(self, way: _Way) -> None:
        way.burst(self._tensor, max(_WARM_UP_BYTES // self._tensor.nbytes, 2))

    def mb_per_second(self, way: _Way) -> float:
        cpu, started = self._cpu_seconds(), time.perf_counter()
        way.burst(self._tensor, self._count)
        seconds = time.perf_counter() - started
        self.cpu_per_gb.append((self._cpu_seconds() - cpu) / self._gigabytes)
        return self._gigabytes * 1e3 / seconds

    def round_trip_ms(self, way: _Way) -> float:
        """The median of one turn's echoes."""
        times = []
        for _ in range(self._echoes):
            started = time.perf_counter()
            way.echo(self._tensor)
            times.append((time.perf_counter() - started) * 1e3)
        return median(times)

    def _cpu_seconds(self) -> float:
        answer = self._child.ask({})
        return float(answer["cpu_seconds"]) + time.process_time()


def _compare(
    case: str,
    meter: _Meter,
    ways: Mapping[str, _Way],
    turns: int,
    samples: dict[str, list[float]],
) -> None:
    """Measure one size both ways, turn by turn; what is no metric has two underscores."""
    for way in ways.values():
        meter.warm_up(way)
    rates = interleaved(turns, _calls(ways, meter.mb_per_second))
    cpu = {"ours": meter.cpu_per_gb[0::2], "raw": meter.cpu_per_gb[1::2]}
    trips = interleaved(turns, _calls(ways, meter.round_trip_ms))
    samples[f"throughput_vs_raw_socket_{case}"] = ratios(rates["ours"], rates["raw"])
    samples[f"throughput_mb_per_second_{case}"] = rates["ours"]
    samples[f"throughput_mb_per_second_{case}__raw"] = rates["raw"]
    samples[f"round_trip_ms_{case}"] = trips["ours"]
    samples[f"round_trip_ms_{case}__raw"] = trips["raw"]
    samples[f"round_trip_vs_raw_socket_{case}"] = ratios(trips["ours"], trips["raw"])
    samples[f"cpu_seconds_per_gb_{case}"] = cpu["ours"]
    samples[f"cpu_seconds_per_gb_{case}__raw"] = cpu["raw"]
    samples[f"cpu_vs_raw_socket_{case}"] = ratios(cpu["ours"], cpu["raw"])


def _calls(
    ways: Mapping[str, _Way], measure: Callable[[_Way], float]
) -> dict[str, Callable[[], float]]:
    def call(way: _Way) -> Callable[[], float]:
        return lambda: measure(way)

    return {name: call(way) for name, way in ways.items()}
