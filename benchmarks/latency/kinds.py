"""Kinds of devices that one host can be, different by operator and not by a factor; timed.

    python -m benchmarks.latency.kinds KIND DIRECTORY RESULT

runs as one of them, because some of it is settled when torch is imported: it times every unit of
every program in a directory (``write_programs``) and leaves an npz of ``[unit, direction]`` seconds
by program.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch

from edgeweave.device import memory
from edgeweave.predict.features import Floats
from edgeweave.program import (
    DTYPES,
    Captured,
    Program,
    StageProgram,
    cut,
    decode,
    encode,
    without_outputs,
)

__all__ = ["KINDS", "Kind", "time_as", "undisturbed", "wants_more", "write_programs"]

_ATEN, _ONEDNN, _MKL = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"
_LEAST_PASSES, _MOST_PASSES = 6, 25
_PROGRAM_SECONDS, _MOST_SECONDS = 0.15, 0.75
_MOST_WAITED = 0.01
"""Of a pass's time, for a core that others use: a pass that waited longer is not counted while
others can be had.
"""
_TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Kind:
    """How operators are computed. ``environment`` names instruction sets of older processors."""

    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    onednn: bool = True
    channels_last: bool = False
    bfloat16: bool = False
    contended: bool = False
    """Another process streams through the memory that both share."""


KINDS: Mapping[str, Kind] = {
    "reference": Kind(),
    "two-threads": Kind(threads=2),
    "no-onednn": Kind(onednn=False),
    "no-onednn-two-threads": Kind(onednn=False, threads=2),
    "avx2": Kind({_ATEN: "avx2", _ONEDNN: "AVX2", _MKL: "AVX2"}),
    "sse": Kind({_ATEN: "default", _ONEDNN: "SSE41", _MKL: "SSE4_2"}),
    "sse-no-onednn": Kind({_ATEN: "default", _MKL: "SSE4_2"}, onednn=False),
    "channels-last": Kind(channels_last=True),
    "bfloat16": Kind(bfloat16=True),
    "contended": Kind(contended=True),
}


class _Entry(msgspec.Struct, frozen=True):
    name: str
    microbatch_size: int


def write_programs(directory: Path, programs: Mapping[str, tuple[Captured, int]]) -> None:
    """Put programs, with the size of a microbatch, where the kinds find them."""
    for number, (captured, _) in enumerate(programs.values()):
        graph, tensors = encode(captured.program, captured.state)
        (directory / f"{number}.json").write_bytes(graph)
        (directory / f"{number}.safetensors").write_bytes(tensors)
    entries = [_Entry(name, size) for name, (_, size) in programs.items()]
    (directory / "index.json").write_bytes(msgspec.json.encode(entries))


def time_as(kind: str, directory: Path) -> dict[str, Floats]:
    """Seconds ``[unit, direction]`` of every program, measured by a process of that kind."""
    result = directory / f"{kind}.npz"
    environment = {**os.environ, **KINDS[kind].environment}
    command = [sys.executable, "-m", "benchmarks.latency.kinds", kind, str(directory), str(result)]
    subprocess.run(command, env=environment, check=True, timeout=_TIMEOUT_SECONDS)
    with np.load(result) as found:
        return {name: found[name] for name in found.files}


def _measure(kind: Kind, directory: Path) -> dict[str, Floats]:
    torch.set_num_threads(kind.threads)
    torch.backends.mkldnn.set_flags(kind.onednn)  # type: ignore[no-untyped-call]
    memory.keep_freed()
    entries = msgspec.json.decode((directory / "index.json").read_bytes(), type=list[_Entry])
    found = {}
    with _contention() if kind.contended else nullcontext():
        for number, entry in enumerate(entries):
            graph = (directory / f"{number}.json").read_bytes()
            tensors = (directory / f"{number}.safetensors").read_bytes()
            captured = decode(graph, tensors, examine=_our_own)
            found[entry.name] = _time(kind, captured, entry.microbatch_size)
    return found


def _our_own(_program: Program) -> None:
    """What this process's parent captured needs no check."""


def _time(kind: Kind, captured: Captured, microbatch_size: int) -> Floats:
    program = without_outputs(captured.program)
    stage = StageProgram(cut(program, ())[0], _laid_out(kind, captured, program), take_over=True)
    passes: list[Sequence[list[float]]] = []
    shares: list[float] = []
    began = time.perf_counter()
    while wants_more(shares[1:], time.perf_counter() - began):
        start, waited = time.perf_counter(), _waited_seconds()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind.bfloat16):
            watch = stage.time_units(microbatch_size, time.perf_counter)
        shares.append((_waited_seconds() - waited) / (time.perf_counter() - start))
        passes.append([list(watch.forward_seconds.values()), list(watch.backward_seconds.values())])
    return np.asarray(np.median(np.array(passes[1:])[undisturbed(shares[1:])], axis=0).T)


def wants_more(shares: Sequence[float], seconds: float) -> bool:
    """Whether more passes are needed, after those that waited such shares of their time."""
    n_quiet = sum(share <= _MOST_WAITED for share in shares)
    if n_quiet >= _MOST_PASSES - 1 or (n_quiet >= _LEAST_PASSES - 1 and seconds > _PROGRAM_SECONDS):
        return False
    return len(shares) < _LEAST_PASSES - 1 or seconds < _MOST_SECONDS


def undisturbed(shares: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The passes that did not wait for a core; if those are few, the ones that waited least."""
    order = np.argsort(shares, kind="stable")
    n_quiet = int(np.sum(np.array(shares) <= _MOST_WAITED))
    return np.asarray(order[: max(n_quiet, _LEAST_PASSES - 1)])


def _waited_seconds() -> float:
    """How long this process's threads were ready to run and did not, as Linux tells it."""
    files = Path("/proc/self/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[1]) for file in files) * 1e-9


def _laid_out(kind: Kind, captured: Captured, program: Program) -> dict[str, torch.Tensor]:
    state = {spec.name: captured.state[spec.name].detach().clone() for spec in program.state}
    if kind.channels_last:
        state = {
            name: tensor.contiguous(memory_format=torch.channels_last)
            if tensor.dim() == 4 and tensor.dtype == DTYPES["float32"]
            else tensor
            for name, tensor in state.items()
        }
    return state


@contextmanager
def _contention() -> Iterator[None]:
    """Another process, on the last core, that adds large arrays for ever."""
    here, there = 0, (os.cpu_count() or 1) - 1
    code = (
        f"import os, numpy\nos.sched_setaffinity(0, {{{there}}})\n"
        "a, b = numpy.zeros(1 << 25), numpy.ones(1 << 25)\nwhile True: numpy.add(a, b, out=a)"
    )
    allowed = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        try:
            os.sched_setaffinity(0, {here})
            time.sleep(1.0)
            yield
        finally:
            os.sched_setaffinity(0, allowed)
            other.kill()


if __name__ == "__main__":
    name, source, target = sys.argv[1:]
    np.savez(target, **_measure(KINDS[name], Path(source)))  # type: ignore[arg-type]
