"""Speed asked and got: one device training alone, paced, beside the same agent unpaced.

Full speed is what ``edgeweave join --threads 1`` is on this host: the real agent, without a speed,
with one thread, in a fleet of its own, as a whole stack: coordinator, frames, schedule, optimizer.
A paced device is held to its profile, while the host it is on is up to 40 % slower in one minute
than in the next. So full speed is taken in the seconds before and after the profile, and every
turn begins with both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import mean, median

from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

import edgeweave as ew
from benchmarks.emulator_runs import OPTIMIZER, Deployed, Training, alone, captured_of
from benchmarks.emulator_table import Row
from benchmarks.real_fleet import real_fleet
from benchmarks.resnet import resnet18
from edgeweave.train import measure_costs

__all__ = ["CASES", "measure_speeds"]

_BURST_SECONDS = 0.7
_FULL_STEPS = 12
_FULL = "unpaced"


def _mobilenet() -> MobileNetV2ForImageClassification:
    config = MobileNetV2Config(  # type: ignore[call-arg]  # the stubs know no inherited options
        image_size=32, num_labels=10
    )
    return MobileNetV2ForImageClassification(config)


CASES: Mapping[str, tuple[Training, tuple[float, ...]]] = {
    "MobileNetV2, 8 samples": (Training(_mobilenet, 8, 2), (0.05, 0.2, 0.4, 0.7)),
    "ResNet-18, 4 samples": (Training(lambda: resnet18(0), 4, 2), (0.1, 0.3, 0.5, 0.8)),
}
"""By name: the work of a device, and the speeds it is asked for."""


def measure_speeds(*, quick: bool) -> tuple[list[Row], dict[str, list[float]]]:
    """A row for each speed, and every turn's ratio under the row's name.

    ``quick`` takes every second speed of the first case, in one turn instead of nine.
    """
    rows, samples = [], {}
    for name, (training, speeds) in list(CASES.items())[: 1 if quick else None]:
        chosen = speeds[1::2] if quick else speeds
        for speed, ratios in _speeds_of(training, chosen, 1 if quick else 9).items():
            combination = f"{name}, speed {speed:g}"
            rows.append(Row(combination, "speed", speed, median(ratios)))
            samples[combination] = ratios
    return rows, samples


def _speeds_of(
    training: Training, speeds: tuple[float, ...], turns: int
) -> dict[float, list[float]]:
    captured = captured_of(training)
    names = {speed: f"paced-{index}" for index, speed in enumerate(speeds)}
    devices = [ew.Device(name, speed=speed) for speed, name in names.items()]
    ratios: dict[float, list[float]] = {speed: [] for speed in speeds}
    with real_fleet([_FULL]) as real, ew.Fleet.local(devices) as emulated:
        for _ in range(turns):
            with ExitStack() as stack:

                def deployed(fleet: ew.Fleet, device: str) -> Deployed:
                    plan = alone(device, captured, training.n_microbatches)
                    return stack.enter_context(Deployed(fleet, captured, plan, training))

                full = deployed(real, _FULL)
                full_seconds = full.steps(_FULL_STEPS)
                measure_costs(
                    emulated,
                    captured,
                    microbatch_size=training.microbatch_size,
                    optimizer=OPTIMIZER,
                )
                full_seconds += full.steps(_FULL_STEPS)
                for speed, name in names.items():
                    ratios[speed].append(_speed_of(deployed(emulated, name), speed, full_seconds))
    return ratios


def _speed_of(paced: Deployed, speed: float, full_seconds: Sequence[float]) -> float:
    """What a paced device does, as a share of what the one at full speed did.

    Of the one at full speed the median step counts: what disturbs it now and then is not the host's
    speed, and the paced ones sleep through it.
    """
    full = median(full_seconds)
    return full / mean(paced.steps(max(1, round(_BURST_SECONDS * speed / full))))
