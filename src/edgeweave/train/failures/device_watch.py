"""The vigil of a run: how devices are asked for pulses, and what is said of one that is lost."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from edgeweave.core.errors import DeviceLost
from edgeweave.core.units import format_seconds
from edgeweave.device import Pulse
from edgeweave.fleet import Fleet
from edgeweave.plan import Plan
from edgeweave.train.crew import Crew
from edgeweave.train.failures.deadlines import Deadlines
from edgeweave.train.failures.suspicion import Ask, Verdict
from edgeweave.train.failures.vigil import Vigil

__all__ = ["device_watch", "lost_error"]

_LINK_SILENCES: Final = 10
"""A link that carries no pulse for so many times ``Timeouts.silence`` is dead. Pulses overtake what
is slow, and a link that is down for some seconds loses nothing: giving up one costs more."""


def device_watch(fleet: Fleet, plan: Plan, crew: Crew) -> Vigil:
    """A vigil over the devices of ``plan``, whose verdict ends the run of ``crew``."""

    def ask(asked: Ask) -> Pulse:
        return fleet.pulse(asked.device, via=asked.via, timeout_seconds=asked.timeout_seconds)

    def condemn(verdict: Verdict, what: str) -> None:
        stage = plan.devices.index(verdict.device)
        error = lost_error(verdict, stage, round=crew.rounds - 1, what=what)
        crew.lose(error, is_gone=verdict.why == "silent")

    timeouts = fleet.timeouts
    deadlines = Deadlines(timeouts.silence, timeouts.request)
    return Vigil(
        plan.devices,
        ask,
        fleet.clock,
        deadlines,
        on_verdict=condemn,
        on_error=crew.fail,
        links=tuple(pairwise(plan.devices)),
        link_seconds=_LINK_SILENCES * timeouts.silence,
    )


def lost_error(
    verdict: Verdict,
    stage: int,
    *,
    round: int,  # noqa: A002  the protocol's word
    what: str,
) -> DeviceLost:
    """Who is lost, what was waited for and how long, and what to do."""
    device, pulse, seconds = verdict.device, verdict.pulse, format_seconds(verdict.seconds)
    if verdict.why == "stuck" and pulse is not None:
        usual = format_seconds(pulse.usual_seconds or 0.0)
        facts = (
            f"it computes {pulse.what} for {seconds} and more, which took {usual} before, while "
            f"{what} is waited for"
        )
        fix = "Restart its agent or leave it out, and resume from the last checkpoint."
    elif verdict.why == "cut off":
        facts = (
            f"nothing passes between it and {verdict.peer}, although both answer: {seconds} and "
            f"{verdict.n_pulses} pulses, while {what} was waited for"
        )
        fix = (
            "Look at the link between them, or leave one out, and resume from the last checkpoint."
        )
    else:
        last = f"; its last one: {pulse.doing} {pulse.what}" if pulse is not None else ""
        facts = (
            f"it answered none of {verdict.n_pulses} pulses for {seconds}, while {what} was "
            f"waited for{last}"
        )
        fix = (
            "Bring it back or leave it out, and resume from the last checkpoint; for links with "
            "longer holes, raise Timeouts.silence."
        )
    return DeviceLost(
        f"stage {stage} on {device} was lost in round {round} ({facts}). {fix}",
        device=device,
        stage=stage,
    )
