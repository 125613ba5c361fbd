"""What a coordinator learnt of a real run, kept in a file; ``tests/train/slowed.py`` made it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeweave.plan import Costs, Plan

__all__ = ["RECORDING", "Recording", "recorded"]

RECORDING = Path(__file__).parent / "slowed_run.json"


class Recording(msgspec.Struct, frozen=True):
    """Seconds a microbatch took on each device, by step (0: not told), and what was predicted."""

    slowed: str
    slowed_at_step: int
    freed_at_step: int
    plan: Plan
    costs: Costs
    seconds: dict[str, tuple[float, ...]]


def recorded() -> Recording:
    return msgspec.json.decode(RECORDING.read_bytes(), type=Recording)
