"""What a coordinator and a device say of slices beside frames: deploying, asking for state."""

from __future__ import annotations

import msgspec

from edgeweave.codec import Codec
from edgeweave.device.optimizer import Optimizer
from edgeweave.device.place import Place
from edgeweave.program import Group, Mode

__all__ = ["DeploySlice", "MemberMoved", "SenderStatistics", "SliceAssignment", "SliceStatistics"]


class SliceAssignment(Place, frozen=True, kw_only=True):
    """One member's place in a run of super neurons.

    ``devices`` has the device of each of ``Sliced.members`` when this one is deployed, and
    ``stage`` is the member's number in them. A step is one microbatch.
    """

    groups: tuple[Group, ...]
    mode: Mode
    seed: int
    optimizer: Optimizer
    least_wait_seconds: float
    """Learnt deadlines are never shorter."""
    codec: Codec | None = None
    """What floats between members travel in; None: as they are."""


class DeploySlice(msgspec.Struct, frozen=True):
    """Make a device a member. Answered when it is ready to compute.

    The program is the whole model's: each device cuts it, and finds the same slices.
    """

    place: SliceAssignment
    graph: bytes
    tensors: memoryview | None
    """The member's part of the state as safetensors. None: it goes on with what it has of the
    run, which is a ``FleetError`` if that is nothing."""
    optimizer_state: memoryview | None = None


class MemberMoved(msgspec.Struct, frozen=True):
    """Tell a member that another one is on another device from now on. Answered once it is known;
    only then may a round have a part for that device."""

    run: str
    stage: int
    """The number of the one that moved."""
    device: str


class SenderStatistics(msgspec.Struct, frozen=True):
    """What a member heard from another one, both ways of the computation."""

    sender: str
    datagrams: int
    """That were to come, as far as somebody was there to send them."""
    arrived: int
    masked: int
    """Messages of which nothing came."""
    overdue: int
    """Messages that were given up at their deadline."""
    late: int
    """Datagrams that came after they were given up."""
    share: float
    """Of what is sent, what arrives, as it was learnt; older datagrams count less."""


class SliceStatistics(msgspec.Struct, frozen=True):
    """Where a member's time went since it was deployed, and what reached it."""

    compute_seconds: float
    wait_seconds: float
    """For other members."""
    idle_seconds: float
    """For the coordinator."""
    rounds: int
    bytes_in: int
    bytes_out: int
    peak_memory_bytes: int
    senders: tuple[SenderStatistics, ...]
