"""``docs/reference-benchmarks.md``: the texts in ``benchmarks/pages`` with the kept results put in.

{{metrics}}    the table of metrics, targets and whether they were met
{{measured}}   commit, date, machine, torch
{{picture}}    the picture, where there is one
{{truth}}      the emulator's: what was asked and what was got
{{fleets}}     the emulator's: steps predicted and measured
{{codecs}}     the codecs': ours and others on real tensors
{{trainings}}  the trainings' with coded cuts: what was tested, and their gradients
{{recorded}}   recorded devices: every way's errors
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import codec_peers, convergence_table, emulator_table, recorded_table
from benchmarks.claim import Claim, Metric
from benchmarks.claims import CLAIMS
from benchmarks.harness import read
from benchmarks.pictures import draw

__all__ = ["PAGE", "page", "write"]

_ROOT = Path(__file__).parent.parent
_TEXTS = Path(__file__).parent / "pages"
_IMAGES = _ROOT / "docs" / "images"
PAGE = _ROOT / "docs" / "reference-benchmarks.md"
_DRAWN_APART: Mapping[str, Callable[[Mapping[str, Any]], bytes]] = {
    "convergence": convergence_table.draw,
    "emulator": emulator_table.draw,
}


def page() -> str:
    """The whole page, from the results that are kept now."""
    parts = [_text("introduction")]
    for claim in CLAIMS.values():
        document = read(claim.name)
        parts.append(f"## `{claim.name}`: {claim.title}\n\n{_section(claim, document)}")
    return "\n\n".join(parts) + "\n"


def write() -> None:
    """Write the page and the pictures."""
    for claim in CLAIMS.values():
        document = read(claim.name)
        if document is not None and claim.name in _DRAWN_APART:
            _picture(claim).write_bytes(_DRAWN_APART[claim.name](document))
        elif document is not None and claim.drawn:
            _picture(claim).write_bytes(draw(claim, document))
    PAGE.write_text(page(), encoding="utf-8")


def _text(name: str) -> str:
    return (_TEXTS / f"{name}.md").read_text(encoding="utf-8").strip()


def _section(claim: Claim, document: Mapping[str, Any] | None) -> str:
    if document is None:
        return f"Not measured yet: `python -m benchmarks {claim.name}`."
    put_in: dict[str, Callable[[], str]] = {
        "metrics": lambda: (_matrix if claim.rows else _table)(claim, document),
        "measured": lambda: _measured(document),
        "truth": lambda: emulator_table.truth_table(document),
        "fleets": lambda: emulator_table.fleet_table(document),
        "codecs": lambda: codec_peers.table(document["settings"]["compared"]),
        "trainings": lambda: convergence_table.table(document),
        "recorded": lambda: recorded_table.table(document),
        "picture": lambda: f"![{claim.title}: {claim.drawn_unit}](images/{_picture(claim).name})",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: put_in[found[1]](), _text(claim.name))


def _picture(claim: Claim) -> Path:
    return _IMAGES / f"benchmark-{claim.name}.png"


def _table(claim: Claim, document: Mapping[str, Any]) -> str:
    rows = ["| metric | meaning | target | median | quartiles | met |", "|---|---|---|---|---|---|"]
    rows += [_row(metric, document) for metric in claim.metrics]
    return "\n".join(rows)


def _row(metric: Metric, document: Mapping[str, Any]) -> str:
    value = document["metrics"].get(metric.key)
    if value is None:
        return f"| `{metric.key}` | {metric.meaning} | {metric.target} | not measured | | |"
    met = {None: "-", True: "yes", False: "**no**"}[metric.is_met(value)]
    return (
        f"| `{metric.key}` | {metric.meaning} | {metric.target} | {_number(value)} | "
        f"{_quartiles(metric.key, document)} | {met} |"
    )


def _matrix(claim: Claim, document: Mapping[str, Any]) -> str:
    rows = [
        "| " + " | ".join(["", *(f"`{key}`" for key in claim.columns)]) + " |",
        "|---" * (len(claim.columns) + 1) + "|",
        "| " + " | ".join(["", *claim.columns.values()]) + " |",
    ]
    for case, words in claim.rows.items():
        cells = [f"{words} (`_{case}`)"]
        for column in claim.columns:
            key = f"{column}_{case}"
            value = document["metrics"][key]
            cells.append(f"{_number(value)} ({_quartiles(key, document)})")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _quartiles(key: str, document: Mapping[str, Any]) -> str:
    series = document["series"].get(key)
    if series is None:
        return "-"
    low, high = series["quartiles"]
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """Three significant digits, without an exponent.

    >>> _number(0.98765), _number(1239.4), _number(0.0)
    ('0.988', '1239', '0')
    """
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def _measured(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    package = machine.get("edgeweave", "src")
    elsewhere = "" if package == "src" else f" The package was not this checkout's: {package}."
    return (
        f"Measured at commit `{machine['commit']}` on {machine.get('date', 'an unknown day')}: "
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, "
        f"torch {machine['torch']}, load average before {machine['load_before']:.2f}. "
        f"Raw samples: `benchmarks/results/{document['name']}.json`.{elsewhere}"
    )
