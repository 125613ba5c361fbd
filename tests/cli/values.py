"""Costs and plans made by hand, for what only shows them."""

from __future__ import annotations

from edgeweave.device import Greeting
from edgeweave.net import Hello
from edgeweave.plan import Costs, Cut, DeviceCosts, Link, UnitFacts
from tests.predict.probes import FACTS


def costs() -> Costs:
    """Four equal units on two devices, the second half as fast."""
    return Costs(
        units=tuple(UnitFacts(f"unit {n}", 2048, 2048, 0, 1024) for n in range(4)),
        cuts=(Cut(512, 512),) * 3,
        devices=(
            DeviceCosts("pi-a", (0.001,) * 4, (0.002,) * 4, memory_limit_bytes=1 << 20),
            DeviceCosts("pi-b", (0.002,) * 4, (0.004,) * 4, memory_limit_bytes=None),
        ),
        links={},
        default_link=Link(bytes_per_second=1e8, latency_seconds=1e-4),
        optimizer_bytes_per_trainable_byte=1.0,
    )


def greeting(*, run: str | None = None, limit: int | None = None) -> Greeting:
    return Greeting(
        hello=Hello(device="pi-a", protocol=1, package="0.1.0", torch="2.9", python="3.11"),
        machine="Linux aarch64",
        cores=4,
        threads="threads=3 (4 cores, 1 kept for I/O)",
        device="cpu",
        speed=0.5,
        memory_bytes=4 << 30,
        memory_limit_bytes=limit,
        run=run,
        clock_seconds=1.0,
        facts=FACTS,
    )
