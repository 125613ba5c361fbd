"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

import ctypes
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from edgeweave.cli import main
from edgeweave.device import memory

SIZE = 64 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own counters")


def test_the_peak_is_never_below_what_is_resident_now() -> None:
    resident = memory.resident_bytes()
    assert resident > 10 << 20
    assert memory.peak_bytes() >= resident * 0.99


@linux
def test_a_peak_that_is_over_is_remembered_until_it_is_reset() -> None:
    block = bytearray(b"x") * SIZE
    held = memory.resident_bytes()
    del block
    memory.release_freed()
    assert memory.peak_bytes() > held - SIZE // 4
    memory.reset_peak()
    assert memory.peak_bytes() < held - SIZE // 2


@linux
def test_freed_memory_goes_back_to_the_system() -> None:
    blocks = [bytes(1 << 16) for _ in range(SIZE >> 16)]
    before = memory.resident_bytes()
    del blocks
    memory.release_freed()
    assert memory.resident_bytes() < before - SIZE // 2


def test_where_the_kernel_tells_nothing_the_present_size_is_the_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise FileNotFoundError("no /proc")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    memory.reset_peak()
    assert memory.peak_bytes() == pytest.approx(memory.resident_bytes(), rel=0.05)


def test_an_allocator_without_trimming_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    memory.release_freed()


CYCLE = """
import runpy, sys
memory = runpy.run_path(sys.argv[1])
if sys.argv[2:]:
    memory["leave_at_exit"]()
class Cycle:
    def __init__(self): self.self = self
    def __del__(self): print("collected")
Cycle()
"""


@pytest.mark.parametrize("leaves", [False, True])
def test_a_process_that_leaves_collects_nothing_at_its_end(leaves: bool) -> None:
    arguments = [sys.executable, "-c", CYCLE, memory.__file__, *(["leaves"] if leaves else [])]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == ("" if leaves else "collected\n")


def test_an_agent_and_a_command_leave_so_and_a_command_in_another_process_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: after Ctrl-C a served model took seconds to end, in which nothing was left to do."""
    left: list[None] = []
    monkeypatch.setattr(memory, "leave_at_exit", lambda: left.append(None))
    assert main(["--version"]) == 0
    assert left == []
    monkeypatch.setattr(sys, "argv", ["edgeweave", "--version"])
    assert main() == 0
    assert len(left) == 1
    with pytest.raises(SystemExit):
        runpy.run_module("edgeweave.device", run_name="__main__")  # without settings
    assert len(left) == 2
