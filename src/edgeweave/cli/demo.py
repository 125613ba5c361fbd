"""``edgeweave demo``: one small model over unequal devices, against each of them alone.

Everything it shows is measured in the run itself. A device alone gets the whole batch at once,
which suits it best: it has nobody to overlap with, so pieces only cost it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Subset

from edgeweave.cli.documents import plan_document, report_document
from edgeweave.cli.jobs import explained
from edgeweave.cli.output import Output, encode_document, write_file
from edgeweave.cli.tables import Alone, alone_table, devices_table, step_line
from edgeweave.core.errors import ConfigError
from edgeweave.core.words import suggest
from edgeweave.data.sources import DataPair, load_source
from edgeweave.device import Optimizer
from edgeweave.fleet import PRESETS, Device, Fleet, FleetDescription, load_fleet, load_preset
from edgeweave.observe import draw_timeline, perfetto_trace
from edgeweave.plan import SCHEDULE_NAMES, Costs, Plan, partition
from edgeweave.train import PipelineTrainer, Report
from edgeweave.train.metrics import accuracy
from edgeweave.train.models import digits_cnn

__all__ = ["DemoOptions", "run_demo"]

# Two to two to one, and together three quarters of a core: with more of them, devices on a host of
# two cores slow each other down, which real ones would not.
_DEVICES = (Device("pi-a", speed=0.3), Device("pi-b", speed=0.3), Device("old-laptop", speed=0.15))
_OPTIMIZER = Optimizer("SGD", lr=0.1, momentum=0.9)
# Microbatches of 64: smaller ones cost pictures this small a third of a device's speed.
_BATCH_SIZE = 512
_N_MICROBATCHES = 8
_EPOCHS = 12
_BATCHES_ALONE = 2
_EPOCHS_ALONE = 3

_Schedule = Literal["1f1b", "gpipe", "async-1f1b"]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says about the demo."""

    out: Path
    seed: int = 0
    quick: bool = False
    fleet: str | None = None
    """A fleet file or a preset instead of the demo's own devices."""
    schedule: str = "1f1b"


@dataclass(frozen=True, slots=True)
class _Result:
    report: Report
    costs: Costs
    explanation: dict[str, object]
    alone: tuple[Alone, ...]


def run_demo(options: DemoOptions, output: Output) -> None:
    """Train, compare, show, and keep a picture, a trace and the report."""
    emulated = _emulated(options)
    schedule = _schedule(options.schedule)
    data = load_source("digits", path=None)
    output.say(data.description)
    devices = (f"{each.name} ({each.speed:g} of a core)" for each in emulated.devices)
    output.say(f"fleet: {', '.join(devices)}")
    with ExitStack() as stack:
        with output.doing("starting the devices"):
            fleet = stack.enter_context(Fleet.described(emulated))
        result = _run(fleet, data, options, schedule, output)
    _show(result, output)
    document = {
        "plan": plan_document(result.report.plan),
        "explanation": result.explanation,
        "report": report_document(result.report),
        **_comparison(result),
    }
    files = _save(result.report, document, options.out, output)
    output.finish({**document, "files": files})


def _emulated(options: DemoOptions) -> FleetDescription:
    if options.fleet is None:
        return FleetDescription(_DEVICES[1:] if options.quick else _DEVICES)
    if options.fleet in PRESETS:
        return load_preset(options.fleet)
    if options.fleet.endswith(".toml"):
        return load_fleet(Path(options.fleet))
    raise ConfigError(
        f"--fleet takes a file that ends in .toml, or a preset (got {options.fleet!r}). "
        f"{suggest(options.fleet, PRESETS)}"
    )


def _schedule(name: str) -> _Schedule:
    """``ConfigError`` if there is no such schedule: before any device is started."""
    if name in get_args(_Schedule):
        return cast(_Schedule, name)
    raise ConfigError(
        f"--schedule takes {', '.join(SCHEDULE_NAMES)} (got {name!r}). "
        f"{suggest(name, SCHEDULE_NAMES)}"
    )


def _run(
    fleet: Fleet, data: DataPair, options: DemoOptions, schedule: _Schedule, output: Output
) -> _Result:
    trainer = _trainer(fleet, options.seed, n_microbatches=_N_MICROBATCHES, schedule=schedule)
    with output.doing("measuring every unit on every device"):
        plan = trainer.prepare(data.train, batch_size=_BATCH_SIZE)
    costs = trainer.costs
    assert costs is not None, "a trainer without a plan measures"
    explanation = explained(plan, costs, output)
    output.say("")
    report = trainer.fit(
        data.train,
        batch_size=_BATCH_SIZE,
        epochs=1 if options.quick else _EPOCHS,
        validate=data.test,
    )
    alone = []
    for name in fleet.devices:
        with output.doing(f"measuring {name} alone"):
            alone.append(_alone(fleet, data, costs, name))
    return _Result(report, costs, explanation, tuple(alone))


def _alone(fleet: Fleet, data: DataPair, costs: Costs, name: str) -> Alone:
    plan = partition(costs, n_microbatches=1, schedule="1f1b", devices=[name])
    trainer = _trainer(fleet, 0, n_microbatches=1, plan=plan)
    few = Subset(data.train, range(_BATCHES_ALONE * _BATCH_SIZE))
    report = trainer.fit(few, batch_size=_BATCH_SIZE, epochs=_EPOCHS_ALONE, progress=False)
    return Alone(name, _full_speed(report))


def _full_speed(report: Report) -> float:
    """Samples per second of the median full step: the same for a fleet and a device alone."""
    return _BATCH_SIZE / report.measured_step_seconds


def _trainer(
    fleet: Fleet,
    seed: int,
    *,
    n_microbatches: int,
    plan: Plan | None = None,
    schedule: _Schedule = "1f1b",
) -> PipelineTrainer:
    torch.manual_seed(seed)
    return PipelineTrainer(
        digits_cnn(),
        cross_entropy,
        optimizer=_OPTIMIZER,
        fleet=fleet,
        metrics={"accuracy": accuracy},
        schedule=schedule,
        n_microbatches=n_microbatches,
        seed=seed,
        plan=plan,
    )


def _comparison(result: _Result) -> dict[str, object]:
    rates = {each.device: each.samples_per_second for each in result.alone}
    best = max(rates, key=lambda name: rates[name])
    fleet = _full_speed(result.report)
    return {
        "samples_per_second": fleet,
        "alone_samples_per_second": rates,
        "best_single_device": best,
        "speedup_over_best_single": fleet / rates[best],
        "efficiency": fleet / sum(rates.values()),
        "validation_accuracy": _accuracy(result.report),
    }


def _accuracy(report: Report) -> float:
    validation = report.epochs[-1].validation
    return 0.0 if validation is None else validation.metrics["accuracy"]


def _show(result: _Result, output: Output) -> None:
    output.show(alone_table(_full_speed(result.report), result.alone), devices_table(result.report))
    output.say("")
    output.say(step_line(result.report))
    output.say(f"Validation accuracy: {_accuracy(result.report) * 100:.1f} %")


def _save(
    report: Report, document: dict[str, object], folder: Path, output: Output
) -> dict[str, str | None]:
    files: dict[str, str | None] = {
        "trace": str(folder / "trace.json"),
        "report": str(folder / "report.json"),
        "timeline": None,
    }
    write_file(folder / "trace.json", perfetto_trace(report))
    write_file(folder / "report.json", encode_document("demo", document).encode())
    try:
        picture = draw_timeline(report)
    except ConfigError as error:
        output.say(f"No picture: {error}")
    else:
        write_file(folder / "timeline.png", picture)
        files["timeline"] = str(folder / "timeline.png")
        output.say(f"Picture of the last steps: {folder / 'timeline.png'}")
    output.say(f"Trace, to open at https://ui.perfetto.dev: {folder / 'trace.json'}")
    return files
