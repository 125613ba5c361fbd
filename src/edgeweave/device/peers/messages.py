"""What a gossip run says beside its frames: enrolling peers, beginning, asking how they are."""

from __future__ import annotations

import msgspec

from edgeweave.device.optimizer import Optimizer
from edgeweave.device.peers.rows import Data, SourceData
from edgeweave.mixing import GossipSettings

__all__ = [
    "Admit",
    "BeginGossip",
    "Enrol",
    "Enrolled",
    "ModelRequest",
    "PeerStatus",
    "StopGossip",
]


class Enrol(msgspec.Struct, frozen=True):
    """Make a device a peer: everything it needs to train without whoever sends this.

    Answered with ``Enrolled`` once data and program are ready. Harmless if the device is a peer of
    that run already.
    """

    run: str
    name: str
    settings: GossipSettings
    optimizer: Optimizer
    graph: bytes
    tensors: memoryview
    """The model to begin with, as safetensors."""
    data: Data
    others: dict[str, SourceData] = {}
    """Where other peers have their data: those can be enrolled anew by a neighbour."""
    rank: int | None = None
    """Of a device that was admitted later; None: its place among the peers of the graph."""


class Enrolled(msgspec.Struct, frozen=True):
    """A device is ready to begin."""

    n_samples: int
    model_bytes: int
    n_groups: int = 0
    grouping_seconds: float = 0.0
    grouping_bytes: int = 0
    """Memory that aggregated points take."""
    class_names: tuple[str, ...] = ()
    """By number, where the device's own files name them."""


class BeginGossip(msgspec.Struct, frozen=True):
    """Train for ``steps`` steps; ``returning`` takes a neighbour's model and step first."""

    run: str
    steps: int
    returning: bool = False


class Admit(msgspec.Struct, frozen=True):
    """Ask a peer to let a device in that nobody knew, as a neighbour of some: it gets the program
    from the one that is asked, and takes the model of one of them.
    """

    run: str
    device: str
    near: tuple[str, ...]
    data: SourceData


class ModelRequest(msgspec.Struct, frozen=True):
    """Ask a peer for its model now. Answered as safetensors by the names of the user's model."""

    run: str


class StopGossip(msgspec.Struct, frozen=True):
    """Do no more steps of a run, and keep the model as at its end."""

    run: str


class PeerStatus(msgspec.Struct, frozen=True):
    """What a device does in a gossip run; its answer to whoever asks."""

    run: str | None
    """None: in no gossip run."""
    phase: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    """The mean over the last steps."""
    neighbours: tuple[str, ...] = ()
    """Those it mixes with now."""
    n_samples: int = 0
    """Trained on so far."""
    share: float = 1.0
    """Of whole batches, what it trained on in the last steps."""
    iteration_seconds: float = 0.0
    """Mean of the last steps, without waiting."""
    waited_seconds: float = 0.0
    """For neighbours, in all."""
    scoring_seconds: float = 0.0
    bytes_sent: int = 0
    edges_lost: int = 0
    steps_here: int = 0
    """Steps done by this process: fewer than ``step`` after a return."""
    seconds: float = 0.0
    """From its begin here until it had done its steps, or until now."""
    error: str | None = None
    """Why it cannot go on, if it cannot."""
    peers: tuple[str, ...] = ()
    """All that the run began with, itself among them."""
