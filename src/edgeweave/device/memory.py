"""Resident memory of this process, its peak, and giving freed memory back."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import psutil

__all__ = ["peak_bytes", "release_freed", "reset_peak", "resident_bytes"]


def resident_bytes() -> int:
    """The resident size now."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """The largest resident size since the start or ``reset_peak``; now's size where unknown."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # not Linux
        return resident_bytes()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else resident_bytes()


def reset_peak() -> None:
    """Start measuring the peak anew, where the kernel offers it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not permitted: the peak then counts from the start
        return


def release_freed() -> None:
    """Give the allocator's free pages back to the system (glibc; elsewhere nothing happens)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
