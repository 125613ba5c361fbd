"""What a coordinator and a device say to each other beside frames: msgpack of typed structs."""

from __future__ import annotations

import threading
from typing import Any, Literal, TypeVar

import msgspec

from edgeweave.core.errors import ConfigError, WireError
from edgeweave.device.optimizer import Optimizer
from edgeweave.device.place import COORDINATOR, Place
from edgeweave.net import Hello, Links
from edgeweave.predict.facts import DeviceFacts
from edgeweave.program import Program

__all__ = [
    "COORDINATOR",
    "Emulate",
    "Fault",
    "Greeting",
    "Place",
    "Pulse",
    "Relay",
    "Release",
    "RunStatus",
    "ServiceLevel",
    "StateRequest",
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


class Weigh(msgspec.Struct, frozen=True):
    """How many bytes does a stage need? Answered by ``edgeweave.device.tasks``."""

    program: Program
    microbatch_size: int
    in_flight: int
    optimizer: Optimizer
    older_versions: int = 0
    """Copies of trainable parameters beside the newest."""


class Emulate(msgspec.Struct, frozen=True):
    """Be another device, or behind other links, from now on; None leaves it as it is.

    For agents of emulated fleets: a real device refuses.
    """

    speed: float | None = None
    links: Links | None = None


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
