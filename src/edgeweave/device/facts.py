"""Read the facts of the device this process runs on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import psutil
import torch

from edgeweave.predict.facts import DeviceFacts

__all__ = ["read_facts"]

_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")


def read_facts(device: torch.device, n_threads: int) -> DeviceFacts:
    """What does not change while the process lives; computes nothing."""
    return DeviceFacts(
        processor=processor_model(_CPUINFO, _BOARD),
        cores=os.cpu_count() or 1,
        threads=n_threads,
        device=device.type,
        accelerator=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        torch=str(torch.__version__),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        onednn=bool(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
        memory_bytes=psutil.virtual_memory().total,
        clock_hertz=_highest_clock_hertz(),
    )


def processor_model(cpuinfo: Path, board: Path) -> str:
    """What Linux calls the processor, or the board it is on (Arm); elsewhere what Python does."""
    named = re.search(r"^model name\s*:\s*(.+)$", _text(cpuinfo), re.MULTILINE)
    found = named[1].strip() if named else _text(board).strip("\0 \n")
    return found or platform.processor() or platform.machine()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or another architecture
        return ""


def _highest_clock_hertz() -> int | None:
    try:
        clock = psutil.cpu_freq()
    except (AttributeError, NotImplementedError, OSError, RuntimeError):
        return None  # psutil raises any of these where it cannot tell
    return round(clock.max * 1e6) if clock is not None and clock.max else None
