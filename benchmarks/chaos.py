"""Random trouble on real processes: every run ends, and with the numbers of an undisturbed one.

Three to five emulated devices, a random plan and random intervals of copies; one to four of: kill,
kill two, kill one and start it again, stop for a while, slow, link down for a while, rate. Each run
is a process of its own with a deadline. What a seed stands for is in ``benchmarks/chaos_run.py``.

    runs           that were begun
    hangs          that did not end by their deadline
    unequal        whose losses are not bit for bit those of one device to which nothing happens
    ended_early    that raised an error although a device of the plan was never killed
    unclear        without any device left, and not ended by ``DeviceLost`` or ``PlanError``
    nobody_left    without any device left: these end with an error, and are no failures
    recovered      that lost a device and went on
    orphans, sockets, files, threads       left behind by all runs together
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.harness import Result

__all__ = ["Ended", "counted", "run"]

_N_RUNS, _N_QUICK = 200, 3
_DEADLINE_SECONDS = 180.0
_STOP_SECONDS = 10.0
_MARK = "EDGEWEAVE_CHAOS_RUN"
_CLEAR = ("DeviceLost", "PlanError")


@dataclass(frozen=True, slots=True)
class Ended:
    """One run: what it said (None if it hung), how long it took, processes it left behind."""

    seed: int | None
    told: Mapping[str, Any] | None
    seconds: float
    n_orphans: int


def run(*, quick: bool) -> Result:
    """``quick``: three seeds."""
    seeds = list(range(_N_QUICK if quick else _N_RUNS))
    reference = _ended(None)
    if reference.told is None or "losses" not in reference.told:
        raise RuntimeError(f"the run to which nothing happens failed: {reference.told}")
    runs = [_ended(seed) for seed in seeds]
    metrics = counted(runs, reference.told["losses"])
    return Result(
        name="chaos",
        quick=quick,
        metrics=metrics,
        lines=(
            *(line for each in runs for line in _lines(each, reference.told["losses"])),
            *(f"{key:>12} = {value:g}" for key, value in metrics.items()),
        ),
        samples={"run_seconds": [each.seconds for each in runs]},
        settings={
            "seed": seeds,
            "steps": reference.told["n_steps"],
            "deadline_seconds": _DEADLINE_SECONDS,
            "ended_with_a_lost_device_again": _n_returned(runs),
            "whole_seconds": sum(each.seconds for each in runs),
        },
    )


def counted(runs: Sequence[Ended], losses: Sequence[str]) -> dict[str, float]:
    """The metrics."""
    told = [each.told for each in runs if each.told is not None]
    done = [each for each in told if "losses" in each]
    failed = [each for each in told if "error" in each]
    lonely = [each for each in failed if not each["left"]]
    return {
        "runs": len(runs),
        "hangs": sum(each.told is None for each in runs),
        "unequal": sum(each["losses"] != list(losses) for each in done),
        "ended_early": sum(bool(each["left"]) for each in failed),
        "unclear": sum(each["error"] not in _CLEAR for each in lonely),
        "nobody_left": len(lonely),
        "recovered": sum(bool(each["recoveries"]) for each in done),
        "orphans": sum(each.n_orphans for each in runs) + sum(each["processes"] for each in told),
        "sockets": sum(each["sockets"] for each in told),
        "files": sum(len(each["files"]) for each in told),
        "threads": sum(len(each["threads"]) for each in told),
    }


def _n_returned(runs: Sequence[Ended]) -> int:
    """Runs at whose end a device that was lost held a stage again."""
    return sum(bool(each.told and each.told.get("returned")) for each in runs)


def _lines(ended: Ended, losses: Sequence[str]) -> list[str]:
    """Nothing of a run in which all is well."""
    told, name = ended.told, f"seed {ended.seed}"
    if told is None:
        return [f"{name}: did not end within {_DEADLINE_SECONDS:.0f} s"]
    if "error" in told:
        return [f"{name}: {told['error']}: {told['message']} (left: {told['left']})"]
    left_behind = {what: told[what] for what in ("sockets", "files", "threads") if told[what]}
    lines = [f"{name}: left behind: {left_behind}"] if left_behind else []
    if told["losses"] != list(losses):
        lines.append(f"{name}: other losses; {told['recoveries']}")
    return lines


def _ended(seed: int | None) -> Ended:
    """Run it in a process and a folder of its own; end whatever is left of it."""
    mark, started = secrets.token_hex(8), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos_run", json.dumps({"seed": seed})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": folder, _MARK: mark, "OMP_NUM_THREADS": "1"},
        )
        try:
            said, complaint = child.communicate(timeout=_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            _end(_marked(mark))  # its agents end by themselves; those that stand still do not
            return Ended(seed, None, time.perf_counter() - started, 0)
        orphans = _marked(mark)
        _end(orphans)
    if child.returncode != 0:
        raise RuntimeError(f"the run of seed {seed} broke:\n{complaint}")
    told = json.loads(said.splitlines()[-1])
    return Ended(seed, told, time.perf_counter() - started, len(orphans))


def _marked(mark: str) -> list[psutil.Process]:
    """The processes that one run started, whoever's children they are by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark:
                found.append(process)
        except psutil.Error:  # it has ended, or is another user's and so none of ours
            continue
    return found


def _end(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=_STOP_SECONDS)
