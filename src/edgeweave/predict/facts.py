"""What a device is, as far as it says so itself without computing anything."""

from __future__ import annotations

import hashlib

import msgspec

__all__ = ["DeviceFacts"]


class DeviceFacts(msgspec.Struct, frozen=True):
    """Facts that stay while hardware and software stay: what a probe took holds as long."""

    processor: str
    """The model, as the system names it."""
    cores: int
    threads: int
    """That torch computes with."""
    device: str
    """Where torch computes: cpu, cuda or mps."""
    accelerator: str | None
    """Its model, if torch computes on one and names it."""
    torch: str
    cpu_capability: str
    """The vector instructions that torch's own kernels use, such as AVX2 or DEFAULT."""
    onednn: bool
    """Whether torch has oneDNN for convolutions and linear layers."""
    memory_bytes: int
    clock_hertz: int | None
    """The highest clock rate of a core, where the system tells."""

    def digest(self) -> str:
        """Sixteen letters that change with any fact."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]
