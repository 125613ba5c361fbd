"""The section of a job file that says how the model is served."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgeweave.train.jobs.settings import key

__all__ = ["ExampleEntry", "ServeSection"]

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Name = Annotated[str, msgspec.Meta(min_length=1)]


class ExampleEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of a request to the model."""

    shape: tuple[Count, ...]
    """Its first size is that of the batch."""
    datatype: Literal["BOOL", "INT32", "INT64", "FP32", "FP64", "FP16", "BF16"] = "FP32"
    name: Name | None = None
    """The keyword under which the model takes it; None for positional ones."""


@dataclass(frozen=True, slots=True)
class ServeSection:
    """How to serve the model; see ``edgeweave.serving.ServeOptions``."""

    name: Name = field(default="model", metadata=key("the name of the model for clients", "digits"))
    host: Name = field(default="127.0.0.1", metadata=key("the address to listen on", "127.0.0.1"))
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = field(
        default=8000, metadata=key("a port, 0 for a free one", 8000)
    )
    weights: Path | None = field(
        default=None, metadata=key("a file of weights, as train --save writes", "w.safetensors")
    )
    example: tuple[ExampleEntry, ...] = field(
        default=(),
        metadata=key(
            "a list of tables with shape, datatype and name; else the data's first sample",
            [{"shape": [1, 3, 96, 96], "datatype": "FP32"}],
        ),
    )
    objective: Literal["throughput", "latency"] = field(
        default="throughput", metadata=key('"throughput" or "latency"', "throughput")
    )
    use: Literal["fastest", "all"] = field(
        default="fastest", metadata=key('"fastest" or "all": which devices to use', "fastest")
    )
    kernels: Literal["exact", "fast"] = field(
        default="exact", metadata=key('"exact" or "fast": the model\'s bits, or not', "fast")
    )
    codec: Name = field(
        default="none", metadata=key('"none" or a codec for slow links', "uniform(8)")
    )
    queue_size: Count = field(
        default=64, metadata=key("how many requests may be unanswered, 1 or more", 64)
    )
    timeout_seconds: Seconds = field(
        default=30.0, metadata=key("how long a request may take, above 0", 30.0)
    )
    max_samples: Count | None = field(
        default=None, metadata=key("the most samples in one request, 1 or more", 8)
    )
    join_samples: Annotated[int, msgspec.Meta(ge=0, le=2**20)] = field(
        default=0, metadata=key("the most samples computed together, 0 for no joining", 8)
    )
    join_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = field(
        default=0.0, metadata=key("how long a request waits for others, 0 or more", 0.005)
    )
    watts: Seconds = field(
        default=1.0, metadata=key("what a busy core draws above idle, above 0", 1.0)
    )
