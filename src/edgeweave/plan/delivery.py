"""Whether to let messages be lost, or to wait for what is sent again: what was measured decides.

A step under losses is shorter, and teaches less: its gradient has the noise of masks on top. Both
kinds of steps are tried for a while, and compared by what they teach in a second::

    kept      = mean |g|^2 of reliable steps / mean |g|^2 of steps that lose       at most 1
    tolerant  = kept / seconds of a step that loses
    reliable  = 1 / seconds of a reliable step

``|g|^2`` is the square of the gradient that a step applies. Masks are right on average, so what
they add to it is noise, and with noise SGD needs as many times more steps (McCandlish et al.,
arXiv:1812.06162, section 2.2). Values in, values out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Final, Literal

__all__ = ["Delivery", "DeliveryChoice", "DeliveryTrial", "StepSeen", "choose_delivery"]

Delivery = Literal["tolerant", "reliable"]

_CLEARLY: Final = 1.1
"""How many times better the other way must be to be taken."""


@dataclass(frozen=True, slots=True)
class StepSeen:
    """What a training step took, and the square of the gradient that it applied."""

    seconds: float
    squared_gradient: float


@dataclass(frozen=True, slots=True)
class DeliveryChoice:
    """How messages travel from now on, and why."""

    delivery: Delivery
    tolerant_seconds: float
    reliable_seconds: float
    kept: float
    """Of what a reliable step teaches, what one under losses does."""

    def line(self) -> str:
        """A sentence for a person."""
        return (
            f"{self.delivery}: a step takes {self.tolerant_seconds * 1e3:.1f} ms where messages "
            f"may be lost and {self.reliable_seconds * 1e3:.1f} ms where they are sent again, and "
            f"losses leave {self.kept:.0%} of what it teaches"
        )


def choose_delivery(
    tolerant: Sequence[StepSeen], reliable: Sequence[StepSeen], *, present: Delivery
) -> DeliveryChoice:
    """The way that teaches more in a second; ``present`` unless the other is clearly better.

    >>> slow, fast = StepSeen(0.3, 1.0), StepSeen(0.1, 1.25)
    >>> choose_delivery([fast], [slow], present="reliable").delivery  # 0.8 of it, 3 times as fast
    'tolerant'
    """
    squares = [fmean(step.squared_gradient for step in steps) for steps in (reliable, tolerant)]
    kept = min(1.0, squares[0] / squares[1]) if squares[1] > 0 else 1.0
    seconds: dict[Delivery, float] = {
        "tolerant": median(step.seconds for step in tolerant),
        "reliable": median(step.seconds for step in reliable),
    }
    teaches: dict[Delivery, float] = {
        "tolerant": kept / max(seconds["tolerant"], 1e-9),
        "reliable": 1 / max(seconds["reliable"], 1e-9),
    }
    other: Delivery = "reliable" if present == "tolerant" else "tolerant"
    better = other if teaches[other] > _CLEARLY * teaches[present] else present
    return DeliveryChoice(better, seconds["tolerant"], seconds["reliable"], kept)


@dataclass(frozen=True, slots=True)
class DeliveryTrial:
    """Tries both ways in turn, ``steps`` each, then keeps one for ``kept_steps`` and tries again.

    The first ``settling`` steps of each turn are not looked at: the pipeline still holds others.
    """

    steps: int = 16
    settling: int = 4
    kept_steps: int = 400
    present: Delivery = "tolerant"
    done: int = 0
    """Steps since the trial began."""
    seen: dict[Delivery, tuple[StepSeen, ...]] = field(default_factory=dict)
    choices: tuple[DeliveryChoice, ...] = ()

    @property
    def turn_steps(self) -> int:
        return self.settling + self.steps

    @property
    def delivery(self) -> Delivery:
        """How the next step's messages travel."""
        return self.delivery_of(self.done)

    def delivery_of(self, number: int) -> Delivery:
        """How those of a step travel, counted from the trial's beginning."""
        if number < self.turn_steps:
            return "tolerant"
        return "reliable" if number < 2 * self.turn_steps else self.present

    def stepped(self, step: StepSeen) -> DeliveryTrial:
        """After one more step, in the order in which they were begun."""
        number, seen = self.done, self.seen
        way = self.delivery_of(number)
        if number < 2 * self.turn_steps and number % self.turn_steps >= self.settling:
            seen = {**seen, way: (*seen.get(way, ()), step)}
        trial = replace(self, done=number + 1, seen=seen)
        if trial.done == 2 * self.turn_steps:
            choice = choose_delivery(seen["tolerant"], seen["reliable"], present=self.present)
            return replace(trial, present=choice.delivery, choices=(*self.choices, choice))
        if trial.done == 2 * self.turn_steps + self.kept_steps:
            return replace(trial, done=0, seen={})
        return trial
