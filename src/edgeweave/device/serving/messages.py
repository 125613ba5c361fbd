"""What a coordinator and a device say of a stage that answers requests, beside frames."""

from __future__ import annotations

import msgspec

from edgeweave.codec import Codec
from edgeweave.device.place import Place

__all__ = ["Retire", "Serve", "Served", "ServingStatistics"]


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
