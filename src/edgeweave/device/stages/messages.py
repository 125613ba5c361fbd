"""What a coordinator and a device say of a stage that trains, beside frames."""

from __future__ import annotations

import msgspec

from edgeweave.codec import Codec
from edgeweave.device.optimizer import Optimizer
from edgeweave.device.place import Place

__all__ = [
    "Assignment",
    "Deploy",
    "Fetch",
    "Halt",
    "Holdings",
    "Replicate",
    "StageStatistics",
    "TraceEvent",
]


class Assignment(Place, frozen=True, kw_only=True):
    """One stage's place in training: everything but the program and its weights."""

    schedule: str
    seed: int
    optimizer: Optimizer
    clip_grad_norm: float | None
    parameter_order: tuple[str, ...]
    """Trainable parameters of the whole model, in its order, in which norms are summed."""
    codec: Codec | None = None
    """Its bits are said for every round, link by link; None: nothing is ever coded."""
    weight_aggregation: int | None = None
    """After every so many updates weights become the mean of their last versions; None: never."""


class Deploy(msgspec.Struct, frozen=True):
    """Put a stage on a device. Answered when it is ready to compute.

    In a later term of a run most of the state is on devices already, as it was after ``step``
    steps: in ``own`` snapshots, or to be fetched from those of others.
    """

    assignment: Assignment
    graph: bytes
    tensors: memoryview
    """Safetensors; a view of the message, which may be as large as the stage."""
    optimizer_state: memoryview | None
    step: int = 0
    own: tuple[str, ...] = ()
    """Parameters, buffers and constants that the device has and that do not come along."""
    elsewhere: dict[str, tuple[str, ...]] = {}
    """Others' devices -> the parameters and buffers to be fetched there."""


class Halt(msgspec.Struct, frozen=True):
    """Stop computing for a run, and keep what there is of it. Answered with ``Holdings``.

    With ``rounds`` the stage finishes them first, and keeps its state as that after ``step`` steps.
    """

    run: str
    coordinator: str
    rounds: int | None = None
    step: int = 0


class Holdings(msgspec.Struct, frozen=True):
    """What a device keeps of a run: parameters and buffers by step, and what never changes."""

    steps: dict[int, tuple[str, ...]]
    fixed: tuple[str, ...]
    term: int = 0
    """The newest one of the run that it had a part in."""


class Fetch(msgspec.Struct, frozen=True):
    """Ask for the state of parameters and buffers after ``step`` steps, with what the optimizer
    keeps of them. Answered as safetensors, at once.
    """

    run: str
    step: int
    names: tuple[str, ...]


class Replicate(msgspec.Struct, frozen=True):
    """Ask for the state of a whole stage after ``step`` steps of a term. Answered as safetensors,
    once the stage has come so far.
    """

    run: str
    term: int
    step: int


class TraceEvent(msgspec.Struct, frozen=True, array_like=True):
    """One piece of work or waiting of a stage, on the device's clock."""

    kind: str
    step: int
    microbatch: int
    start_seconds: float
    stop_seconds: float


class StageStatistics(msgspec.Struct, frozen=True):
    """Where a stage's time went since it was deployed, what it moved and what it used."""

    compute_seconds: float
    wait_seconds: float
    """Waiting for frames of the round in progress."""
    idle_seconds: float
    """Waiting for the coordinator to begin a round."""
    send_seconds: float
    """Handing frames to the network, beside computing."""
    coding_seconds: float
    """Coding and decoding frames, beside computing."""
    snapshot_seconds: float
    """Of computing: copying the stage's state, so that it survives."""
    bytes_in: int
    bytes_out: int
    rounds: int
    peak_memory_bytes: int
    """The largest resident size of the process since deployment."""
    clock_seconds: float
    events: tuple[TraceEvent, ...]
    copy_bytes_out: int = 0
    """States sent to those that keep copies of them: another device, the coordinator."""
