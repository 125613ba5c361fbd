"""Super neurons against pipelines and horizontal splits, over links that lose: test accuracy, %.

``benchmarks/edgepipe_runs.py`` has the arms and tasks. Reception is the share of packets that
arrive. The table is EdgePipe's link model (a message is lost or arrives whole); what must hold of
our own exchange is measured with a fate for each datagram. Fixed time is the slots that the hybrid
takes for the batches.

hybrid               super neurons: losses are zero, the rest is rescaled
vertical             whole layers, a lost message ends its microbatch (PipeDream under loss)
retransmitting       whole layers, lost messages are sent again, a slot each time
horizontal           every layer over all devices, a lost message ends the batch
masked_horizontal    the same with our exchange: not EdgePipe's baseline, but a fair one
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.edgepipe_claim import RECEPTIONS, TABLE_ARMS, WAITS
from benchmarks.edgepipe_runs import BURSTS, Found, Job, Links, drawn_reception, sliced, train
from benchmarks.harness import Result
from benchmarks.keeping import kept_or_made
from edgeweave.plan import traffic
from edgeweave.plan.super_neurons import horizontal_slots, pipelined_slots

__all__ = ["run"]

_Samples = dict[str, list[float]]
_Train = Callable[[Job], Found]
_FOREVER = 1e12
_BATCHES = 2000
_QUICK_BATCHES = 60


def run(*, quick: bool, kept: Path | None = None) -> Result:
    """``quick``: two receptions, one seed, 60 batches; what it learns says nothing."""
    torch.set_num_threads(1)
    seeds = (0,) if quick else (0, 1, 2)
    n_batches = _QUICK_BATCHES if quick else _BATCHES

    def found(job: Job) -> Found:
        name = f"edgepipe-{hashlib.sha256(repr(job).encode()).hexdigest()[:24]}"
        return kept_or_made(None if quick else kept, name, Found, lambda: train(job))

    samples: _Samples = {}
    for seed in seeds:
        base = Job(
            "mlp_mnist",
            "hybrid",
            Links(0.0),
            n_batches,
            0.0,
            seed=seed,
            n_tests=500 if quick else 10_000,
        )
        _table(samples, base, found, ("1", "0p8") if quick else tuple(RECEPTIONS))
        _drops(samples, base, found)
        if not quick:
            _mapping(samples, base, found)
            _waiting(samples, base, found)
            _others(samples, base, found)
    _judge(samples)
    _counts(samples, n_batches)
    metrics = {key: median(each) for key, each in samples.items()}
    return Result(
        name="edgepipe",
        quick=quick,
        metrics=metrics,
        lines=tuple(f"{key:>48} = {value:.3f}" for key, value in metrics.items()),
        samples=samples,
        settings={"seed": seeds[0], "seeds": list(seeds), "batches": n_batches, "batch_size": 64},
    )


def _note(samples: _Samples, key: str, value: float) -> None:
    samples.setdefault(key, []).append(value)


def _timed(base: Job) -> float:
    """The slots that the hybrid takes for the batches."""
    cut_up = sliced(base.task, "hybrid", base.n_devices, base.seed)
    layers = [cut_up.n_layers(group) for group in range(len(cut_up.groups))]
    return pipelined_slots(sum(layers), max(layers), base.n_batches)


def _table(samples: _Samples, base: Job, found: _Train, receptions: Sequence[str]) -> None:
    base = dataclasses.replace(base, n_slots=_timed(base))
    for name in receptions:
        for arm in TABLE_ARMS:
            links = Links(1 - RECEPTIONS[name])
            came = found(dataclasses.replace(base, arm=arm, links=links))
            _note(samples, f"{arm}_accuracy_{name}", came.of_samples)
            _note(samples, f"{arm}_fixed_time_{name}", came.of_slots)


def _only_samples(found: _Train, base: Job, **changes: object) -> float:
    """The accuracy after the batches; no slots are looked at."""
    return found(dataclasses.replace(base, n_slots=0.0, **changes)).of_samples  # type: ignore[arg-type]


def _drops(samples: _Samples, base: Job, found: _Train) -> None:
    """Points lost to reception 0.8, and to devices that die after a third of the batches."""
    for arm in ("hybrid", "vertical"):
        exact = _only_samples(found, base, arm=arm)
        lossy = _only_samples(found, base, arm=arm, links=Links(0.2, "datagram"))
        _note(samples, f"{arm}_accuracy_drop_at_0p8", exact - lossy)
        for n_dead, words in ((1, "one_dead_device"), (2, "two_dead_devices")):
            left = _only_samples(found, base, arm=arm, deaths=_deaths(base, n_dead))
            _note(samples, f"{arm}_accuracy_drop_{words}", exact - left)
    whole = samples["vertical_accuracy_1"][-1] - samples["vertical_accuracy_0p8"][-1]
    _note(samples, "vertical_accuracy_drop_at_0p8_messages", whole)


def _deaths(base: Job, n_dead: int) -> dict[str, tuple[float, float]]:
    """Devices 0 and 2 in the first run, 1 and 3 in the next: of both groups."""
    dead = [f"pi-{(base.seed + 2 * index) % base.n_devices}" for index in range(n_dead)]
    return dict.fromkeys(dead, (_timed(base) / 3, _FOREVER))


def _others(samples: _Samples, base: Job, found: _Train) -> None:
    """Other networks and data, more devices, bursts and recorded links."""
    settings: Mapping[str, tuple[str, int, Links]] = {
        "lenet_mnist": ("lenet_mnist", 4, Links(0.2, "datagram")),
        "mlp_fashion": ("mlp_fashion", 4, Links(0.2, "datagram")),
        "lenet_fashion": ("lenet_fashion", 4, Links(0.2, "datagram")),
        "cnn_cifar10": ("cnn_cifar10", 4, Links(0.2, "datagram")),
        "cnn_har": ("cnn_har", 4, Links(0.2, "datagram")),
        "eight_devices": ("mlp_mnist", 8, Links(0.2, "datagram")),
        "bursts": ("mlp_mnist", 4, Links(BURSTS, "datagram")),
        "recorded": ("mlp_mnist", 4, Links("recorded", "datagram")),
        "half_lost": ("mlp_mnist", 4, Links(0.5, "datagram")),
    }
    for name, (task, n_devices, links) in settings.items():
        job = dataclasses.replace(base, task=task, n_devices=n_devices)
        exact = _only_samples(found, job)
        lossy = _only_samples(found, job, links=links)
        _note(samples, f"hybrid_accuracy_{name}_lossless", exact)
        _note(samples, f"hybrid_accuracy_drop_{name}", exact - lossy)


def _mapping(samples: _Samples, base: Job, found: _Train) -> None:
    """Every link with a reception of its own: with mapping, without; with pipelining, without."""
    names = [f"pi-{index}" for index in range(base.n_devices)]
    loss = {ends: 1 - share for ends, share in drawn_reception(names, base.seed).items()}
    job = dataclasses.replace(base, n_slots=_timed(base), links=Links(loss))
    for arm in ("hybrid", "random_mapping", "sequential"):
        came = found(dataclasses.replace(job, arm=arm))
        _note(samples, f"{arm}_accuracy_drawn_links", came.of_samples)
        _note(samples, f"{arm}_fixed_time_drawn_links", came.of_slots)


def _waiting(samples: _Samples, base: Job, found: _Train) -> None:
    """Sending again, the longer it takes: accuracy in the hybrid's time at reception 0.8."""
    job = dataclasses.replace(base, n_slots=_timed(base), links=Links(0.2))
    for slots in WAITS:
        came = found(dataclasses.replace(job, arm="retransmitting", repeat_slots=slots))
        _note(samples, f"retransmitting_fixed_time_wait_{slots}", came.of_slots)


def _judge(samples: _Samples) -> None:
    """Does the order hold at every reception up to 0.9, by medians? How far apart are arms at 1?"""
    lossy = [
        name
        for name, share in RECEPTIONS.items()
        if share <= 0.9 and f"hybrid_accuracy_{name}" in samples
    ]
    for kind in ("accuracy", "fixed_time"):
        ordered = [
            _typical(samples, "hybrid", kind, name)
            > _typical(samples, "vertical", kind, name)
            > _typical(samples, "horizontal", kind, name)
            for name in lossy
        ]
        _note(samples, f"ordered_share_{kind}", sum(ordered) / len(ordered))
    ends = [_typical(samples, arm, "accuracy", "1") for arm in ("hybrid", "vertical", "horizontal")]
    _note(samples, "spread_points_lossless", max(ends) - min(ends))


def _typical(samples: _Samples, arm: str, kind: str, reception: str) -> float:
    return median(samples[f"{arm}_{kind}_{reception}"])


def _counts(samples: _Samples, n_batches: int) -> None:
    """Values sent per batch, and slots against the formulas."""
    for arm in ("hybrid", "vertical", "horizontal"):
        sent = traffic(sliced("mlp_mnist", arm, 4, 0), 64).sum() / 4
        _note(samples, f"values_per_batch_{arm}", float(sent))
    _note(
        samples,
        "slots_hybrid_over_horizontal",
        pipelined_slots(6, 3, n_batches) / horizontal_slots(6, n_batches),
    )
