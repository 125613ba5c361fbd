"""What is asked of a device's speed, its links and its codecs, and answered."""

from __future__ import annotations

import msgspec

from edgeweave.codec import Codec
from edgeweave.device.optimizer import Optimizer
from edgeweave.predict.facts import DeviceFacts
from edgeweave.predict.probe import Probe

__all__ = [
    "CodingProbe",
    "CodingSeconds",
    "LinkProbe",
    "LinkTimings",
    "ProbeRequest",
    "ProbeWork",
    "Profile",
    "UnitTimings",
]


class Profile(msgspec.Struct, frozen=True):
    """Time every unit of a program. ``tensors``: buffers and constants; weights are made up.

    ``full_speed`` spares an emulated device the measuring: what another device of the same host
    measured, as the host takes it. Devices of one host then differ by their speeds alone, not by
    what else the host did while each was measured.
    """

    graph: bytes
    tensors: bytes
    microbatch_size: int
    repetitions: int
    optimizer: Optimizer
    full_speed: UnitTimings | None = None


class ProbeRequest(msgspec.Struct, frozen=True):
    """Tell what the probe's networks take. Answered with a ``Probe``, old or new.

    ``full_speed`` spares an emulated device the measuring, as in ``Profile``.
    """

    full_speed: Probe | None = None


class ProbeWork(msgspec.Struct, frozen=True):
    """Probe the device that has these facts, unless what is known of it still holds.

    Answered by ``edgeweave.device.tasks`` with a ``Probe``: ``known`` itself if it holds.
    """

    facts: DeviceFacts
    known: Probe | None


class CodingProbe(msgspec.Struct, frozen=True):
    """Tell what a codec takes, at the slowest of some bits. Answered with ``CodingSeconds``."""

    codec: Codec
    widths: tuple[int, ...]


class CodingSeconds(msgspec.Struct, frozen=True):
    """Seconds for each byte of float32 before coding, or after decoding, on one thread."""

    encode_seconds_per_byte: float
    decode_seconds_per_byte: float


class UnitTimings(msgspec.Struct, frozen=True):
    """Seconds per unit and microbatch as this device takes them, and per byte of an update.

    ``message_seconds`` is what a small message takes of one end, which nothing holds back.
    """

    forward_seconds: tuple[float, ...]
    backward_seconds: tuple[float, ...]
    update_seconds_per_byte: float
    message_seconds: float = 0.0

    def stretched(self, factor: float) -> UnitTimings:
        """The timings of a device that takes ``factor`` times as long."""
        return UnitTimings(
            tuple(factor * seconds for seconds in self.forward_seconds),
            tuple(factor * seconds for seconds in self.backward_seconds),
            factor * self.update_seconds_per_byte,
            self.message_seconds,
        )


class LinkProbe(msgspec.Struct, frozen=True):
    """Measure the way to another device with requests of ``size_bytes`` and of none."""

    target: str
    size_bytes: int


class LinkTimings(msgspec.Struct, frozen=True):
    """One direction: half a small round trip, what a large request adds to it, and the share of
    packets that seem to be lost.
    """

    latency_seconds: float
    bytes_per_second: float
    loss: float
