"""What this device measured of units, to be held to it when stages are made of them.

An emulated device has no speed of its own: its host's other work would make it faster and slower
from one minute to the next. So what profiling found a unit to take is what the unit takes on this
device from then on, alone or in any stage. Units are recognised by their contents.
"""

from __future__ import annotations

import hashlib

import msgspec

from edgeweave.core.errors import WireError
from edgeweave.device.probes.messages import UnitTimings
from edgeweave.plan import StageSeconds
from edgeweave.program import Program, cut, state_bytes, without_outputs

__all__ = ["UnitMemory"]


class UnitMemory:
    """Seconds by unit and microbatch size, and by optimizer, learnt from profiles."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, int], tuple[float, float]] = {}
        self._update_seconds_per_byte: dict[str, float] = {}

    def learn(
        self, program: Program, microbatch_size: int, optimizer: str, timings: UnitTimings
    ) -> None:
        """Remember the profile of a whole program with an optimizer; a later one replaces it.

        ``WireError`` if it is not of as many units as the program has.
        """
        (whole,) = cut(without_outputs(program), ())
        keys = _fingerprints(whole)
        counts = {len(timings.forward_seconds), len(timings.backward_seconds)}
        if counts != {len(keys)}:
            raise WireError(
                f"a profile has one time for each of {len(keys)} units (got {sorted(counts)})."
            )
        measured = zip(timings.forward_seconds, timings.backward_seconds, strict=True)
        for key, seconds in zip(keys.values(), measured, strict=True):
            self._seconds[key, microbatch_size] = seconds
        self._update_seconds_per_byte[optimizer] = timings.update_seconds_per_byte

    def recall(self, stage: Program, microbatch_size: int, optimizer: str) -> StageSeconds | None:
        """What a stage takes, or None if a unit of it, or its optimizer, was never profiled."""
        parts = [self._seconds.get((k, microbatch_size)) for k in _fingerprints(stage).values()]
        known = [part for part in parts if part is not None]
        per_byte = self._update_seconds_per_byte.get(optimizer)
        if len(known) < len(parts) or per_byte is None:
            return None
        return StageSeconds(
            sum(forward for forward, _ in known),
            sum(backward for _, backward in known),
            per_byte * sum(state_bytes(spec) for spec in stage.trainable),
        )


def _fingerprints(program: Program) -> dict[int, str]:
    """A digest of every unit's nodes, by unit."""
    return {
        unit: hashlib.sha256(
            msgspec.msgpack.encode([node for node in program.nodes if node.unit == unit])
        ).hexdigest()
        for unit in program.unit_numbers
    }
