"""What every benchmark records, and where its result goes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["NAMES", "Result", "write"]

NAMES = ("efficiency",)

_RESULTS = Path(__file__).parent / "results"


def _machine() -> dict[str, Any]:
    return {
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0],
    }


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass(frozen=True, slots=True)
class Result:
    """Metrics under the keys the issues name, lines for people, and the raw samples behind both."""

    name: str
    quick: bool
    metrics: dict[str, float | bool]
    lines: tuple[str, ...]
    samples: dict[str, list[float]]
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=_machine)

    def summary(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "name": self.name,
            "quick": self.quick,
            "metrics": self.metrics,
            "settings": self.settings,
            "machine": self.machine,
        }


def write(result: Result) -> Path:
    """Keep a full result."""
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{result.name}.json"
    content = {**result.summary(), "samples": result.samples}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
