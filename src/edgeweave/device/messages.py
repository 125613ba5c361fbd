"""What a coordinator and a device say to each other beside frames: msgpack of typed structs."""

from __future__ import annotations

import threading
from typing import Any, Literal, TypeVar

import msgspec

from edgeweave.codec import Codec
from edgeweave.core.errors import ConfigError, WireError
from edgeweave.device.optimizer import Optimizer
from edgeweave.device.place import COORDINATOR, Place
from edgeweave.net import Hello, Links
from edgeweave.predict.facts import DeviceFacts
from edgeweave.predict.probe import Probe
from edgeweave.program import Program

__all__ = [
    "COORDINATOR",
    "Assignment",
    "CodingProbe",
    "CodingSeconds",
    "Deploy",
    "Emulate",
    "Fault",
    "Fetch",
    "Greeting",
    "Halt",
    "Holdings",
    "LinkProbe",
    "LinkTimings",
    "Place",
    "ProbeRequest",
    "ProbeWork",
    "Profile",
    "Pulse",
    "Relay",
    "Release",
    "Replicate",
    "Retire",
    "RunStatus",
    "ServiceLevel",
    "Serve",
    "Served",
    "ServingStatistics",
    "StageStatistics",
    "StateRequest",
    "TraceEvent",
    "UnitTimings",
    "Weigh",
    "decode_message",
    "encode_message",
]

_Message = TypeVar("_Message")

_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}
"""Made once for each kind. Where two threads decode the first messages of one, msgspec 0.22 may
crash: what it has to know of a kind is made by one of them, before."""
_one_at_a_time = threading.Lock()


class Greeting(msgspec.Struct, frozen=True):
    """Who a device is, and the facts that planning and ``status`` show."""

    hello: Hello
    machine: str
    cores: int
    threads: str
    """Threads torch computes with, and why."""
    device: str
    """Where torch computes: cpu, cuda or mps."""
    speed: float | None
    """Emulated fraction of one host core; None on a real device."""
    memory_bytes: int
    memory_limit_bytes: int | None
    run: str | None
    """The run it works for, if any."""
    clock_seconds: float
    """Its clock at the moment of answering, to align timelines."""
    facts: DeviceFacts
    """What measurements of it hold for; those of the host on an emulated device."""


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


class Serve(msgspec.Struct, frozen=True):
    """Put a stage that answers requests on a device, beside those of earlier terms of its run.

    Answered by ``Served`` when it is ready to compute. The program is the whole model's: a device
    checks it once and cuts its stages itself, so that it has another stage at once when somebody is
    lost.
    """

    place: Place
    first_units: tuple[int, ...]
    """Where the program is cut: the first units of all stages but the first."""
    graph: bytes | None
    """The whole program; None where the device has it."""
    tensors: memoryview
    """Safetensors; a view of the message, which may be as large as the stage."""
    usual_samples: int
    """In one request, as far as it is known: what pacing and warming up are done for."""
    own: tuple[str, ...] = ()
    """What the device has of the term before, and does not come along."""
    codec: Codec | None = None
    """What the stage sends to the next one travels in; None: as it is."""
    makes_room: bool = False
    """Whether stages of earlier terms may end for it, where memory does not hold it beside them."""
    direct: bool = False
    """Whether the program is cut so that values go past stages that do not use them."""


class Served(msgspec.Struct, frozen=True):
    """The answer to ``Serve``."""

    is_ready: bool
    """False: it fits alone, and not beside the stages of earlier terms, which go on. Ask again with
    ``makes_room``, once nobody needs them."""
    has_ended_stages: bool = False
    """Whether stages of earlier terms ended for it."""


class Retire(msgspec.Struct, frozen=True):
    """End the stages of a serving run that belong to terms before ``before``.

    With ``after``, those of later terms too: they were deployed, and others were not.
    """

    run: str
    before: int
    after: int | None = None


class ServingStatistics(msgspec.Struct, frozen=True):
    """What a device did for a serving run since its first stage."""

    requests: int
    """Shipments of one request or of several that were computed together."""
    refused: int
    compute_seconds: float
    wait_seconds: float
    """Without a request to compute."""
    cpu_seconds: float
    """Of its process; of an emulated device, what it computes at its own speed."""
    bytes_in: int
    bytes_out: int
    peak_memory_bytes: int


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


class Weigh(msgspec.Struct, frozen=True):
    """How many bytes does a stage need? Answered by ``edgeweave.device.tasks``."""

    program: Program
    microbatch_size: int
    in_flight: int
    optimizer: Optimizer
    older_versions: int = 0
    """Copies of trainable parameters beside the newest."""


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


class Emulate(msgspec.Struct, frozen=True):
    """Be another device, or behind other links, from now on; None leaves it as it is.

    For agents of emulated fleets: a real device refuses.
    """

    speed: float | None = None
    links: Links | None = None


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


class StateRequest(msgspec.Struct, frozen=True):
    """Ask a stage for its state after it finished ``rounds`` rounds. Answered as safetensors.

    ``part``: weights and buffers, or the optimizer's state. One at a time, because each is copied
    on its way out and devices are small.
    """

    run: str
    rounds: int
    part: Literal["weights", "optimizer"]


class Release(msgspec.Struct, frozen=True):
    """End a run on a device. Harmless if it is not there.

    What is deployed afterwards is refused, because the request to deploy may have been overtaken;
    with ``before``, terms from that one on are welcome.
    """

    run: str
    before: int | None = None


class ServiceLevel(msgspec.Struct, frozen=True):
    """How a run stood failures so far, and what another would cost. ``line()`` says it."""

    n_lost: int = 0
    """Devices that were lost, each as often as it was."""
    detect_seconds: float = 0.0
    """The longest from the last result before a loss to its being noticed."""
    recover_seconds: float = 0.0
    """The longest from there until the next step could begin."""
    recomputed_steps: int = 0
    """Whole steps that had to be done again, all together."""
    replica_age_steps: int | None = None
    """What the loss of any one device would cost now: steps since the newest after which the state
    of every stage had reached another device, or the coordinator. None if no state is copied."""
    oldest_replica_steps: int | None = None
    """The most that it was after a step so far."""

    def line(self) -> str:
        """Two sentences for a person."""
        lost, copies = "No device was lost.", "No states are copied."
        if self.n_lost:
            times = "once" if self.n_lost == 1 else f"{self.n_lost} times"
            lost = (
                f"A device was lost {times}, noticed after {self.detect_seconds:.2f} s and made "
                f"good {self.recover_seconds:.2f} s later at most; {self.recomputed_steps} steps "
                "were computed again."
            )
        if self.replica_age_steps is not None:
            copies = (
                f"Copies of all states are {self.replica_age_steps} steps old, "
                f"{self.oldest_replica_steps} at most so far."
            )
        return f"{lost} {copies}"


class RunStatus(msgspec.Struct, frozen=True):
    """Where a run is; its coordinator answers with it to whoever asks."""

    run: str
    term: int
    step: int
    """Steps done."""
    devices: tuple[str, ...]
    """Those that hold a stage, in the order of the pipeline."""
    devices_age_steps: int
    """Steps since devices last kept their states."""
    here_age_steps: int
    """Steps since the coordinator's own copy of all of them."""
    recoveries: tuple[str, ...]
    """What was lost so far and how the run went on, a sentence each."""
    service: ServiceLevel = ServiceLevel()
    """The same in figures."""


class Pulse(msgspec.Struct, frozen=True):
    """What a device does at this moment. Answered beside the compute thread, whatever that does."""

    run: str | None
    """The run it works for, if any; all else is about the stage in it."""
    rounds: int = 0
    """Rounds finished so far."""
    doing: Literal["nothing", "idles", "waits", "works", "computes"] = "nothing"
    """idles: until the coordinator begins a round; works: between two of the others."""
    what: str = ""
    """The frame it waits for, or the action it computes, in words."""
    seconds: float = 0.0
    """Since when it does that, on its clock."""
    action: int = 0
    """Of all that it computed, the how manieth that is."""
    usual_seconds: float | None = None
    """What such an action took before, if there was one."""


class Relay(msgspec.Struct, frozen=True):
    """Ask another device for its pulse, for somebody whom it does not answer. Answered with it."""

    device: str
    timeout_seconds: float


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


class Fault(msgspec.Struct, frozen=True):
    """A stage tells the coordinator that it cannot go on. ``error`` as ``net`` encodes errors."""

    run: str
    term: int
    device: str
    stage: int
    error: bytes


def encode_message(message: msgspec.Struct) -> bytes:
    """A message as bytes."""
    return msgspec.msgpack.encode(message)


def decode_message(data: bytes | memoryview, kind: type[_Message]) -> _Message:
    """Read a message; ``WireError`` if the bytes are not one of that kind."""
    try:
        with _one_at_a_time:
            if kind not in _decoders:
                _decoders[kind] = msgspec.msgpack.Decoder(kind)
        message: _Message = _decoders[kind].decode(data)
        return message
    except (msgspec.MsgspecError, ConfigError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a {kind.__name__} message ({error}).") from error
