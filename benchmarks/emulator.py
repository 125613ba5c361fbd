"""Whether an emulated fleet is what was asked for, and whether plans foresee how it runs.

    speed_error_max       training throughput of a paced device / of the same agent unpaced
    rate_error_max        and delay, loss: links between two processes, measured from outside
    simulate_error_max    predicted step / median measured step, on 10 random fleets

8 speeds and 12 links; the largest error of each is the claim.
"""

from __future__ import annotations

from statistics import median

import torch

from benchmarks.claims import CLAIMS
from benchmarks.emulator_fleets import measure_fleets
from benchmarks.emulator_links import measure_links
from benchmarks.emulator_speed import measure_speeds
from benchmarks.emulator_table import Row, worst
from benchmarks.harness import Result

__all__ = ["run"]

_SEED = 20
_FLEET_SEEDS = tuple(range(1, 11))
_METRICS = {metric.key: metric for metric in CLAIMS["emulator"].metrics}


def run(*, quick: bool) -> Result:
    """Measure; ``quick`` takes 2 speeds, 2 links and 1 fleet."""
    torch.set_num_threads(1)
    rows, samples = measure_speeds(quick=quick)
    rows += measure_links(quick=quick, seed=_SEED)
    seeds = _FLEET_SEEDS[:1] if quick else _FLEET_SEEDS
    fleets = measure_fleets(seeds)
    errors = {
        f"{kind}_error_max": worst(rows, kind)
        for kind in ("speed", "rate", "delay", "jitter", "loss")
    }
    steps = [fleet.prediction for fleet in fleets]
    step_errors = [step.error for step in steps]
    metrics = {
        **errors,
        "within_limits": float(all(_METRICS[key].is_met(value) for key, value in errors.items())),
        "simulate_error_max": max(step_errors),
        "simulate_error_median": median(step_errors),
        "simulate_within_10_percent": float(
            sum(bool(_METRICS["simulate_error_max"].is_met(error)) for error in step_errors)
        ),
    }
    return Result(
        name="emulator",
        quick=quick,
        metrics=metrics,
        lines=(
            *(_line(row) for row in rows),
            *(
                f"{step.fleet:>64}  predicted {step.predicted_seconds:.3f} s, "
                f"measured {step.measured_seconds:.3f} s, error {step.error:.1%}"
                for step in steps
            ),
            *(f"{key:>28} = {value:.3f}" for key, value in metrics.items()),
        ),
        samples={**samples, **{each.prediction.fleet: each.steps for each in fleets}},
        settings={
            "seed": _SEED,
            "fleet_seeds": _FLEET_SEEDS[: len(fleets)],
            "truth": [row.document() for row in rows],
            "fleets": [{**each.prediction.document(), **each.settings} for each in fleets],
        },
    )


def _line(row: Row) -> str:
    error = "" if row.error is None else f"  error {row.error:.1%}"
    return (
        f"{row.combination:>52}  {row.kind:<6} asked {row.asked:8.3f}  got {row.got:8.3f} "
        f"{row.unit}{error}"
    )
