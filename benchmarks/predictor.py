"""Seconds per unit predicted for kinds of devices and for networks that nothing was taught about.

For each kind a model is fitted to the random networks on all other kinds. The kind's probe is what
it is then known by, and each way of predicting gets the same probe. Judged are all units of the
known networks, forward and backward each for itself: mean of |predicted / measured - 1|.

    zero-shot        the probe alone
    n samples        and n units of the known networks, drawn at random; judged are units of the
                     half that samples are not drawn from
    scalar           FTPipeHD's capacity: a full profile of one kind (``reference``), which no other
                     way here has, times the probe's median ratio to it
    FLOPs, roofline  fitted to the probe: overhead and seconds per multiply-add; overhead and the
                     larger of computing and moving bytes
    trees            gradient-boosted, on a unit's sums, taught as ours, scaled by the probe

Two limits stand beside: how far a recording of the known networks is from others of the same device
(``repeatability_mape``), and what is left where the kind is among those that taught, so that every
random network was measured on it (``taught_kind_mape``): no probe can tell more.

What learning from work keeps and costs is in ``benchmarks.predictor_learning``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from benchmarks.harness import Result
from benchmarks.latency.fit import Scales, Teaching
from benchmarks.latency.held_out import HeldOut, measurements
from benchmarks.latency.samples import Samples, Units
from benchmarks.predictor_learning import learning, mape
from benchmarks.recordings.alternatives import sums
from edgeweave.predict import DeviceLatency, LatencyModel
from edgeweave.predict.features import FAMILIES, Floats

__all__ = ["fitted", "flops", "run"]

_SEED = 0
_REFERENCE = "reference"
_N_SAMPLES = (10, 20, 50, 100, 200)
_QUICK_KINDS = ("no-onednn", "bfloat16")


def run(*, quick: bool) -> Result:
    """Hold out each kind in turn; ``quick`` two of them, with 10 and 50 samples."""
    samples = Samples.load()
    kinds = _QUICK_KINDS if quick else tuple(k for k in samples.seconds if k != _REFERENCE)
    counts = (10, 50) if quick else _N_SAMPLES
    found: dict[str, dict[str, float]] = {}
    scales: Scales | None = None
    everything: LatencyModel | None = None
    for kind in kinds:
        held_out = HeldOut(samples, [kind], scales=scales)
        scales = held_out.scales
        everything = everything or HeldOut(samples, [], scales=scales).model
        found[kind] = {
            **_ours(samples, kind, held_out.model, counts),
            **_limits(samples, kind, everything),
            **_others(samples, kind, held_out.taught),
            **learning(samples, kind, held_out.model, quick=quick),
        }
    keys = next(iter(found.values()))
    by_kind = {key: [errors[key] for errors in found.values()] for key in keys}
    return Result(
        name="predictor",
        quick=quick,
        metrics={key: fmean(errors) for key, errors in by_kind.items()},
        lines=tuple(_line(kind, errors) for kind, errors in found.items()),
        settings={"seed": _SEED, "kinds": list(kinds), "n_units": len(samples.networks)},
        samples={f"{key}, by kind": errors for key, errors in by_kind.items()},
    )


def _line(kind: str, errors: dict[str, float]) -> str:
    shown = ("unseen_zero_shot_mape", "unseen_50_samples_mape", "scalar_capacity_mape")
    return f"{kind:>22}  " + "  ".join(f"{key} {errors[key]:.3f}" for key in shown)


def _ours(
    samples: Samples, kind: str, model: LatencyModel, counts: Sequence[int]
) -> dict[str, float]:
    known = samples.units("known")
    device = DeviceLatency(model, measurements(samples, kind, samples.units("probe")))
    predicted = device.predict(samples.pieces(known))
    measured = samples.seconds[kind][known]
    inside = (predicted.low < measured) & (measured < predicted.high)
    errors = {
        "unseen_zero_shot_mape": mape(predicted.seconds, measured),
        "unseen_zero_shot_median_error": _median_error(predicted.seconds, measured),
        "unseen_within_interval": float(inside.mean()),
        "unseen_network_mape": _network_mape(samples, known, predicted.seconds, measured),
    }
    shuffled = np.random.default_rng(_SEED).permutation(known)
    half = len(known) // 2
    learnt, judged = shuffled[:half], shuffled[half:]
    for count in counts:
        after = device.given(measurements(samples, kind, learnt[:count]))
        seconds = after.predict(samples.pieces(judged)).seconds
        errors[f"unseen_{count}_samples_mape"] = mape(seconds, samples.seconds[kind][judged])
    return errors


def _limits(samples: Samples, kind: str, model: LatencyModel) -> dict[str, float]:
    """What keeps any prediction from being right: ``model`` was taught by this kind too."""
    known, rounds = samples.units("known"), samples.rounds[kind]
    work = model.work(samples.pieces(known))
    own = work.kinds[:, :, model.kind_names.index(kind)]
    each = work.seconds * np.exp(own)
    totals = [np.bincount(work.owners, direction) for direction in each]
    seconds = np.array(totals, dtype=np.float64).T
    again = [
        mape(np.nanmedian(np.delete(rounds[:, known], number, axis=0), axis=0), one)
        for number, one in enumerate(rounds[:, known])
    ]
    return {
        "taught_kind_mape": mape(seconds, samples.seconds[kind][known]),
        "repeatability_mape": fmean(again),
    }


def _others(samples: Samples, kind: str, taught: Teaching) -> dict[str, float]:
    probe, known = samples.units("probe"), samples.units("known")
    measured = samples.seconds[kind]
    reference = samples.seconds[_REFERENCE]
    capacity = np.median(measured[probe] / reference[probe], axis=0)
    ways: Mapping[str, Floats] = {
        "scalar_capacity_mape": reference[known] * capacity,
        "flops_regression_mape": fitted(samples, flops, measured, probe, known),
        "roofline_mape": fitted(samples, _roofline, measured, probe, known),
        "boosted_trees_mape": _trees(samples, taught, measured, probe, known),
    }
    return {key: mape(seconds, measured[known]) for key, seconds in ways.items()}


def _median_error(predicted: Floats, measured: Floats) -> float:
    some = measured > 0
    return float(np.median(np.abs(predicted[some] / measured[some] - 1)))


def _network_mape(samples: Samples, units: Units, predicted: Floats, measured: Floats) -> float:
    """Of whole networks, a pass forward and backward."""
    networks = np.array(samples.networks)[units]
    pairs = [
        (predicted[networks == name].sum(), measured[networks == name].sum())
        for name in dict.fromkeys(networks.tolist())
    ]
    return fmean(abs(ours / true - 1) for ours, true in pairs)


def flops(macs: Floats, traffic: Floats, rates: Floats) -> Floats:
    """Overhead and multiply-adds alone."""
    return np.asarray(rates[0] + rates[1] * macs)


def _roofline(macs: Floats, traffic: Floats, rates: Floats) -> Floats:
    return np.asarray(rates[0] + np.maximum(rates[1] * macs, rates[2] * traffic))


def fitted(
    samples: Samples,
    way: Callable[[Floats, Floats, Floats], Floats],
    measured: Floats,
    probe: Units,
    known: Units,
) -> Floats:
    """Seconds of known units; rates by least squares of log seconds on the probe, by direction."""
    work, wanted = sums(samples.pieces(probe)), sums(samples.pieces(known))
    found = []
    for direction in range(2):
        seconds = np.log(measured[probe, direction])
        grids = (np.logspace(-6, -3, 25), np.logspace(-12, -8, 41), np.logspace(-12, -8, 41))
        rates = np.array([1e-5, 1e-10, 1e-10])
        for _ in range(6):
            for index, grid in enumerate(grids):
                tried = [np.array([*rates[:index], value, *rates[index + 1 :]]) for value in grid]
                errors = [np.square(np.log(way(*work, each)) - seconds).sum() for each in tried]
                rates = tried[int(np.argmin(errors))]
        found.append(way(*wanted, rates))
    return np.stack(found, axis=1)


def _trees(
    samples: Samples, taught: Teaching, measured: Floats, probe: Units, known: Units
) -> Floats:
    """Typical seconds from a unit's sums by family, and the probe's median ratio to them."""
    random = samples.units("random")
    typical = taught.typical()
    found = []
    for direction in range(2):
        trees = HistGradientBoostingRegressor(max_iter=400, learning_rate=0.06, random_state=0)
        trees.fit(_aggregated(samples, random), typical[:, direction])
        at_probe = np.exp(trees.predict(_aggregated(samples, probe)))
        scale = np.median(measured[probe, direction] / at_probe)
        found.append(scale * np.exp(trees.predict(_aggregated(samples, known))))
    return np.stack(found, axis=1)


def _aggregated(samples: Samples, units: Units) -> Floats:
    """A unit's multiply-adds and bytes, its operators counted by family, its largest features."""
    pieces = samples.pieces(units)
    macs, traffic = sums(pieces)
    rows = [
        [*np.bincount(piece[:, 0].astype(int), minlength=len(FAMILIES)), *piece[:, 1:].max(axis=0)]
        for piece in pieces
    ]
    return np.column_stack([np.log1p(macs), np.log1p(traffic), np.array(rows)])
