"""The facts of a device, as its system tells them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from edgeweave.device.facts import processor_model, read_facts

CPU = torch.device("cpu")
X86 = "processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC 9B14\nflags\t: fpu\n"
ARM = "processor\t: 0\nCPU implementer\t: 0x41\n\nHardware\t: BCM2835\n"


def test_the_facts_are_those_of_this_process() -> None:
    facts = read_facts(CPU, 3)
    assert (facts.threads, facts.device, facts.accelerator) == (3, "cpu", None)
    assert facts.cores == os.cpu_count()
    assert facts.torch == torch.__version__
    assert facts.memory_bytes == psutil.virtual_memory().total
    assert facts.cpu_capability == torch.backends.cpu.get_cpu_capability()
    assert facts.processor


def test_facts_do_not_change_while_the_process_lives() -> None:
    assert read_facts(CPU, 1) == read_facts(CPU, 1)


@pytest.mark.parametrize(
    ("cpuinfo", "board", "expected"),
    [
        (X86, None, "AMD EPYC 9B14"),
        (ARM, "Raspberry Pi 4 Model B Rev 1.4\0", "Raspberry Pi 4 Model B Rev 1.4"),
    ],
)
def test_a_processor_is_known_by_its_model_or_its_board(
    cpuinfo: str, board: str | None, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    if board is not None:
        (tmp_path / "model").write_text(board)
    assert processor_model(tmp_path / "cpuinfo", tmp_path / "model") == expected


def test_elsewhere_the_processor_is_what_python_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert processor_model(tmp_path / "cpuinfo", tmp_path / "model") == "arm64"


@pytest.mark.parametrize(
    ("clock", "expected"),
    [(SimpleNamespace(max=1800.0), 1_800_000_000), (SimpleNamespace(max=0.0), None), (None, None)],
)
def test_the_clock_rate_is_the_highest_if_there_is_one(
    clock: object, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda: clock)
    assert read_facts(CPU, 1).clock_hertz == expected


def test_a_system_that_refuses_to_tell_its_clock_rate_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise FileNotFoundError("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")

    monkeypatch.setattr(psutil, "cpu_freq", refuse)
    assert read_facts(CPU, 1).clock_hertz is None
