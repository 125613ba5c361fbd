"""What every benchmark records, how two things are compared, and where a result goes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

import edgeweave
from benchmarks.claims import CLAIMS

__all__ = ["NAMES", "Result", "Spread", "interleaved", "ratios", "read", "spread", "write"]

NAMES = tuple(CLAIMS)

_ROOT = Path(__file__).resolve().parent.parent
RESULTS = _ROOT / "benchmarks" / "results"


@dataclass(frozen=True, slots=True)
class Spread:
    """A series in four numbers. With one sample the quartiles are that sample."""

    median: float
    low_quartile: float
    high_quartile: float
    n: int


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    Spread(median=3.0, low_quartile=2.0, high_quartile=4.0, n=5)
    """
    if len(samples) < 2:
        (only,) = samples
        return Spread(only, only, only, 1)
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return Spread(median(samples), low, high, len(samples))


def interleaved(
    n_turns: int, contestants: Mapping[str, Callable[[], float]]
) -> dict[str, list[float]]:
    """Measure each contestant once a turn: A B A B ... What disturbs the machine hits both.

    >>> interleaved(2, {"a": lambda: 1.0, "b": lambda: 2.0})
    {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(n_turns):
        for name, measure in contestants.items():
            samples[name].append(measure())
    return samples


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """One ratio for each turn; neighbours in time are compared with each other only.

    >>> ratios([2.0, 3.0], [1.0, 2.0])
    [2.0, 1.5]
    """
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def _machine() -> dict[str, Any]:
    return {
        "commit": _commit_before,
        "edgeweave": _package(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": _load_before,
        "load_after": os.getloadavg()[0],
    }


def _package() -> str:
    """Which edgeweave was measured: ``src`` of this checkout, or the folder it came from."""
    found = Path(edgeweave.__file__).resolve().parent
    return "src" if found == _ROOT / "src" / "edgeweave" else str(found)


def _commit() -> str:
    """Marked as dirty if files other than results were changed since."""
    commit = _git("describe", "--always").stdout.strip()
    changed = _git("diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)benchmarks/results")
    return f"{commit}-dirty" if commit and changed.returncode else commit or "unknown"


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# As they are when a benchmark begins: the checkout may move while it runs.
_load_before = os.getloadavg()[0]
_commit_before = _commit()


@dataclass(frozen=True, slots=True)
class Result:
    """Metrics under the keys of ``CLAIMS``, lines for people, and the raw samples behind both.

    The samples under a metric's own key are what the metric is the median of. ``settings`` has the
    seed, or the seeds, and everything else that was chosen.
    """

    name: str
    quick: bool
    metrics: dict[str, float]
    lines: tuple[str, ...]
    samples: dict[str, list[float]]
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=_machine)

    def __post_init__(self) -> None:
        unknown = self.metrics.keys() - {metric.key for metric in CLAIMS[self.name].metrics}
        if unknown or "seed" not in self.settings:
            raise ValueError(
                f"a result of {self.name} has the metrics of CLAIMS and a seed in its settings "
                f"(unknown: {', '.join(sorted(unknown)) or 'none'}; settings: "
                f"{', '.join(self.settings)}). Add what is missing."
            )

    def summary(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "name": self.name,
            "quick": self.quick,
            "metrics": self.metrics,
            "settings": self.settings,
            "machine": self.machine,
        }

    def document(self) -> dict[str, Any]:
        """What is kept: the summary, and every series with its median and quartiles."""
        series = {}
        for name, samples in self.samples.items():
            whole = spread(samples)
            series[name] = {
                "median": whole.median,
                "quartiles": [whole.low_quartile, whole.high_quartile],
                "samples": samples,
            }
        return {**self.summary(), "series": series}


def write(result: Result) -> Path:
    """Keep a full result."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result.name}.json"
    path.write_text(json.dumps(result.document(), indent=1) + "\n", encoding="utf-8")
    return path


def read(name: str) -> dict[str, Any] | None:
    """The kept result of a benchmark, or None if it has none yet."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
