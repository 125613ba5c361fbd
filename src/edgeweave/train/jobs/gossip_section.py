"""The section ``[gossip]`` of a job: how devices train without a server. See ``train.job``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgeweave.train.jobs.settings import key

__all__ = ["GossipSection"]

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Name = Annotated[str, msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class GossipSection:
    """What ``GossipTrainer`` takes beside the rest of the job, and where the data are."""

    topology: Name = field(
        default="ring",
        metadata=key('"ring", "torus", "exponential", "regular(4)" or "full"', "ring"),
    )
    edges: Path | None = field(
        default=None, metadata=key("a file with two names of neighbours a line", "edges.txt")
    )
    algorithm: Literal["d-psgd", "gossip-sgd", "ad-psgd", "push-sum"] = field(
        default="d-psgd",
        metadata=key('"d-psgd", "gossip-sgd", "ad-psgd" or "push-sum"', "d-psgd"),
    )
    local_steps: Count = field(
        default=1, metadata=key("the steps between two exchanges, 1 or more", 4)
    )
    balance: bool = field(
        default=True, metadata=key("whether slow devices train on fewer samples", False)
    )
    share: Share | None = field(
        default=None,
        metadata=key("the share of each batch that all devices train on, instead of balance", 0.5),
    )
    importance: Literal["none", "last-layer", "first-layer"] = field(
        default="last-layer",
        metadata=key('"none" (a random choice), "last-layer" or "first-layer"', "none"),
    )
    choosing: Literal["weighted", "groups"] = field(
        default="weighted",
        metadata=key('"weighted" or "groups" (the papers\' own)', "groups"),
    )
    group_size: Count = field(
        default=8, metadata=key("the samples that are scored as one, 1 or more", 8)
    )
    warm_up_epochs: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = field(
        default=1, metadata=key("the epochs before samples are chosen by score", 5)
    )
    codec: Name = field(default="none", metadata=key('"none" or a codec', "uniform(8)"))
    consensus_rate: Share = field(
        default=1.0, metadata=key("how far an exchange goes to the average", 0.7)
    )
    data: Literal["shared", "own", "sent"] = field(
        default="shared",
        metadata=key(
            '"shared" (a share of files that all devices have), "own" (all that a device has) or '
            '"sent" (a share of what is here, sent once)',
            "own",
        ),
    )
    device_path: Name | None = field(
        default=None,
        metadata=key("where the data are on the devices, if not at data.path", "/data"),
    )
    split: Name = field(
        default="iid",
        metadata=key('"iid", "dirichlet(0.5)", "labels(2)" or "sizes(0.5)"', "dirichlet(0.5)"),
    )
