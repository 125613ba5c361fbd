"""What work and links take, told to the coordinator along with the frames that travel anyway, and
how new the replicas are that stages keep of each other.

    step k       every stage times its full microbatches
    step k + 1   stage 0 --activation 0 [t0]--> stage 1 --activation 0 [t0 t1]--> ... --result 0-->

Nobody asks and nobody answers: two numbers a stage and step ride on the first microbatch, and one
for each link that frames tell of (``link_rates``), told by the stage that received them, and the
step of the newest replica. It costs no message, no thread and no waiting. Requests for
``statistics`` would cost all three, and carry every event of the run. An emulated device tells what
it was paced to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

import msgspec

from edgeweave.core.errors import WireError

__all__ = [
    "StageTiming",
    "StepTimings",
    "forward_scalars",
    "told_forwards",
    "told_rates",
    "told_replicas",
    "told_timings",
]

_KINDS = ("forward", "backward")


class StageTiming(msgspec.Struct, frozen=True):
    """Seconds a stage took for a full microbatch in one step, the median over its microbatches."""

    forward_seconds: float
    backward_seconds: float

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.forward_seconds + self.backward_seconds


class StepTimings:
    """The times of one stage's step, and what it heard of the stages before it."""

    def __init__(self, stage: int, microbatch_size: int) -> None:
        self._stage = stage
        self._microbatch_size = microbatch_size
        self._samples: dict[str, list[float]] = {kind: [] for kind in _KINDS}
        self._to_tell: dict[str, float] = {}

    def add(self, kind: str, n_samples: int, seconds: float) -> None:
        """A piece of work is done; what is no training or no full microbatch tells nothing."""
        if kind in self._samples and n_samples == self._microbatch_size:
            self._samples[kind].append(seconds)

    def end_step(self, rates: Mapping[int, float], replica_step: int | None = None) -> None:
        """Keep the step's medians, bytes per second by sending stage, and after which step the
        newest replica here is, until they are told.
        """
        if replica_step is not None:
            self._to_tell[_replica_name(self._stage)] = float(replica_step)
        for sender, rate in rates.items():
            self._to_tell[_rate_name(sender, self._stage)] = rate
        if all(self._samples.values()):
            for kind, seconds in self._samples.items():
                self._to_tell[f"{kind}:{self._stage}"] = median(seconds)
        self._samples = {kind: [] for kind in _KINDS}

    def hear(self, scalars: Mapping[str, float]) -> None:
        """Take over what a frame tells of the stages before."""
        for stage in range(self._stage):
            for name in (*_names(stage), *_rate_names(stage), _replica_name(stage)):
                if name in scalars:
                    self._to_tell[name] = scalars[name]

    def tell(self) -> dict[str, float]:
        """All of it, as scalars of a frame, once."""
        told, self._to_tell = self._to_tell, {}
        return told


def told_timings(scalars: Mapping[str, float], n_stages: int) -> dict[int, StageTiming]:
    """What a result tells, by stage; ``WireError`` if a number is no duration."""
    found: dict[int, StageTiming] = {}
    for stage in range(n_stages):
        names = _names(stage)
        if all(name in scalars for name in names):
            seconds = [scalars[name] for name in names]
            if not all(math.isfinite(each) and each >= 0 for each in seconds):
                raise WireError(
                    f"the time that stage {stage} took is finite and not negative (got {seconds})."
                )
            found[stage] = StageTiming(*seconds)
    return found


def forward_scalars(
    stage: int, seconds: float | None, heard: Mapping[str, float]
) -> dict[str, float]:
    """What a stage that only answers requests tells along with one: what the stages before it told
    (in the scalars ``heard``) and what it took itself, if that tells anything.
    """
    names = (_names(before)[0] for before in range(stage))
    told = {name: heard[name] for name in names if name in heard}
    return told if seconds is None else {**told, _names(stage)[0]: seconds}


def told_forwards(scalars: Mapping[str, float], n_stages: int) -> dict[int, float]:
    """What an answer tells of the stages it went through; ``WireError`` if one is no duration."""
    found: dict[int, float] = {}
    for stage in range(n_stages):
        seconds = scalars.get(_names(stage)[0])
        if seconds is None:
            continue
        if not (math.isfinite(seconds) and seconds >= 0):
            raise WireError(
                f"the time that stage {stage} took is finite and not negative (got {seconds})."
            )
        found[stage] = seconds
    return found


def told_rates(scalars: Mapping[str, float], n_stages: int) -> dict[tuple[int, int], float]:
    """Bytes per second a result tells, by source and target; ``WireError`` if one is no rate."""
    found: dict[tuple[int, int], float] = {}
    for target in range(n_stages):
        for source in (target - 1, target + 1):
            rate = scalars.get(_rate_name(source, target))
            if rate is None:
                continue
            if not (math.isfinite(rate) and rate > 0):
                raise WireError(
                    f"the rate from stage {source} to stage {target} is finite and above zero "
                    f"(got {rate})."
                )
            found[source, target] = rate
    return found


def told_replicas(scalars: Mapping[str, float], n_stages: int) -> dict[int, int]:
    """By stage, the step after which the newest replica is that it keeps of another stage;
    ``WireError`` if one is no step.
    """
    found: dict[int, int] = {}
    for stage in range(n_stages):
        step = scalars.get(_replica_name(stage))
        if step is None:
            continue
        if not (math.isfinite(step) and step >= 0 and step == int(step)):
            raise WireError(f"the step of the replica on stage {stage} is 0 or more (got {step}).")
        found[stage] = int(step)
    return found


def _rate_names(stage: int) -> tuple[str, ...]:
    """Of the links to a stage from its neighbours."""
    return _rate_name(stage - 1, stage), _rate_name(stage + 1, stage)


def _rate_name(source: int, target: int) -> str:
    return f"rate:{source}:{target}"


def _replica_name(stage: int) -> str:
    return f"replica:{stage}"


def _names(stage: int) -> tuple[str, ...]:
    return tuple(f"{kind}:{stage}" for kind in _KINDS)
