"""Served models: how much faster several devices are, what losses cost, what HTTP stands.

MobileNetV2 (96 x 96) and ResNet-18 (32 x 32) on devices of 0.2 cores each, LeNet (28 x 28) on 0.02,
one sample a request; MobileNetV2 on 0.3, 0.2 and 0.1 too. Keys without a prefix are MobileNetV2's.

    speedup_2, speedup_3        requests a second, by 2 and 3 devices / by one
    bound_2, bound_3            what the units allow: the whole / the longest stage of the best cut
    fraction_of_bound_3         the second / the fourth
    unequal_over_sum            the unequal devices together / the sum of each alone
    unequal_bound               what the units allow of that
    bit_equal, in_order         answers are the unsplit model's, in the order of requests (1 is yes)
    lost_requests, twice        a device killed and another added under load: not answered, or twice
    gap_seconds_p99             the longest time without an answer around a kill, the largest of all
    http_*                      good and bad requests in turn: see ``serving_http``

With ``--kept FOLDER`` each part is kept there when it is done and not done again. Parts may be run
by themselves before, in any order; only those of streams need an idle machine:

    python -m benchmarks.serving FOLDER mobilenetv2 lenet resnet18 unequal
    python -m benchmarks.serving FOLDER changes http
    python -m benchmarks serving --kept FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Result
from benchmarks.keeping import kept_or_made
from benchmarks.serving_changes import KILLS, Measured, changes
from benchmarks.serving_http import http
from benchmarks.serving_streams import NETWORKS, SETTINGS, equal, unequal

__all__ = ["run"]

_PARTS: dict[str, Callable[..., Measured]] = {
    **{name: partial(equal, name) for name in NETWORKS},
    "unequal": unequal,
    "changes": changes,
    "http": http,
}
_QUICK = ("mobilenetv2", "changes", "http")


def run(*, quick: bool, kept: Path | None = None) -> Result:
    """``quick``: one turn of MobileNetV2 with 60 requests, one kill, a thousand HTTP requests."""
    found = [_done(name, quick=quick, kept=kept) for name in (_QUICK if quick else _PARTS)]
    metrics = {key: value for each in found for key, value in each.metrics.items()}
    return Result(
        name="serving",
        quick=quick,
        metrics=metrics,
        lines=(
            *(line for each in found for line in each.lines),
            *(f"{key:>30} = {value:.4g}" for key, value in metrics.items()),
        ),
        samples={key: series for each in found for key, series in each.samples.items()},
        settings={**SETTINGS, "kills": 1 if quick else KILLS},
    )


def _done(name: str, *, quick: bool, kept: Path | None) -> Measured:
    """A part as it was kept, or else now."""
    folder = None if quick else kept
    torch.set_num_threads(1)
    return kept_or_made(folder, f"serving-{name}", Measured, lambda: _PARTS[name](quick=quick))


def main(arguments: Sequence[str]) -> int:
    """Do some parts, and keep them."""
    if len(arguments) < 2 or not set(arguments[1:]) <= _PARTS.keys():
        print(f"usage: python -m benchmarks.serving FOLDER {' '.join(_PARTS)}", file=sys.stderr)
        return 2
    for name in arguments[1:]:
        found = _done(name, quick=False, kept=Path(arguments[0]))
        for line in (*found.lines, *(f"{k:>30} = {v:.4g}" for k, v in found.metrics.items())):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
