"""A pipeline of three stages over emulated links, and a vigil over it: events in virtual time.

The links are those of ``net.link_model``, the deadlines and the suspicion those of a run. Stages
keep to 1F1B; who stops finishes and answers nothing any more, while what it sent before still
arrives. Pulses take their turn behind what a link was given before, whole messages included, which
is worse for them than the network's priorities.
"""

from __future__ import annotations

import copy
import heapq
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from edgeweave.device import Pulse
from edgeweave.net import GilbertElliott, LinkShape
from edgeweave.net.link_model import LinkModel
from edgeweave.train.failures.deadlines import Deadline, Deadlines
from edgeweave.train.failures.suspicion import Ask, Suspicion, Verdict

N_STAGES, N_MICROBATCHES = 3, 4
STAGES = ("a", "b", "c")
_PULSE_BYTES, _RESULT_BYTES, _BEGIN_BYTES = 200, 400, 300

BURSTS = GilbertElliott(to_bad=0.002, to_good=0.1, loss_good=0.0005, loss_bad=1.0)
"""2 % in all, nearly all of it in bursts of ten packets on average."""
SCATTERED = 0.02

WIFI = {
    "20 Mbit/s, bursts": LinkShape(2.5e6, 0.02, 0.002, BURSTS),
    "20 Mbit/s, 2 % scattered": LinkShape(2.5e6, 0.02, 0.002, SCATTERED),
    "45 Mbit/s, bursts": LinkShape(45e6 / 8, 0.003, 0.00125, BURSTS),
}
"""The Wi-Fi of DESIGN.md section 7, and that of the preset raspberry-pi-wifi."""


@dataclass(frozen=True)
class Load:
    """What a microbatch is: seconds of a forward (a backward takes twice that) and bytes."""

    forward_seconds: float
    bytes: int


LOADS = {"small": Load(0.02, 20_000), "large": Load(0.12, 200_000)}


class Radio:
    """The pipeline and its coordinator. ``stop`` may be set to (device, moment)."""

    def __init__(self, shape: LinkShape, load: Load, seed: int) -> None:
        ends = ["coordinator", *STAGES]
        self.links = {
            (s, t): LinkModel(shape, (s, t), seed=seed) for s in ends for t in ends if s != t
        }
        self.load = load
        self.rng = np.random.default_rng(seed)
        self.now = 0.0
        self.stop: tuple[str, float] = ("", math.inf)
        self.cut: tuple[set[str], float] = (set(), math.inf)
        self.slowness = dict.fromkeys(STAGES, 1.0)
        self.deadlines = Deadlines(slack_seconds=1.0, unknown_seconds=15.0)
        self.trips = dict.fromkeys(STAGES, Deadline())
        self.verdict: Verdict | None = None
        self.n_steps = self.n_suspicions = self.n_pulses = 0
        self.longest_trip = 0.0
        self._events: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self._n_events = 0
        self._come: list[set[tuple[str, int, int]]] = [set() for _ in STAGES]
        self._agenda: list[list[tuple[str, int, int]]] = [[] for _ in STAGES]
        self._busy = [False] * len(STAGES)
        self._round = -1
        self._wait_number = 0
        self._suspicion: Suspicion | None = None
        self._begin_round()

    def run_until(self, moment: float) -> Verdict | None:
        """Let happen what happens until then; the verdict that ends the run, if there is one."""
        while self.verdict is None and self._events[0][0] <= moment:
            self.now, _, name, arguments = heapq.heappop(self._events)
            getattr(self, name)(*arguments)
        return self.verdict

    def with_stop(self, device: str, moment: float) -> Radio:
        """Another one with the same past, in which a device stops."""
        other = copy.deepcopy(self)
        other.stop = (device, moment)
        return other

    def with_cut(self, one: str, other: str, moment: float) -> Radio:
        """Another one with the same past, in which nothing passes between two devices any more."""
        made = copy.deepcopy(self)
        made.cut = ({one, other}, moment)
        return made

    def suspect_now(self) -> None:
        """Suspect without a reason."""
        self._suspect(self._wait_number)

    def _at(self, moment: float, name: str, *arguments: Any) -> None:
        self._n_events += 1
        heapq.heappush(self._events, (moment, self._n_events, name, arguments))

    def _carry(self, source: str, target: str, n_bytes: int, name: str, *arguments: Any) -> None:
        arrives = self.links[source, target].carry(self.now, n_bytes).arrives_at
        if not (self.cut[0] == {source, target} and self.now > self.cut[1]):
            self._at(arrives, name, *arguments)

    def _is_stopped(self, device: str) -> bool:
        return device == self.stop[0] and self.now > self.stop[1]

    # Stages.

    def _begins(self, stage: int, number: int) -> None:
        warm_up = min(N_STAGES - stage, N_MICROBATCHES)
        order = [("F", number, m) for m in range(warm_up)]
        for m in range(N_MICROBATCHES):
            order.append(("B", number, m))
            if m + warm_up < N_MICROBATCHES:
                order.append(("F", number, m + warm_up))
        self._agenda[stage] += order
        self._start(stage)

    def _arrives(self, stage: int, kind: str, number: int, microbatch: int) -> None:
        self._come[stage].add((kind, number, microbatch))
        self._start(stage)

    def _start(self, stage: int) -> None:
        device = STAGES[stage]
        if self._busy[stage] or not self._agenda[stage] or self._is_stopped(device):
            return
        action = self._agenda[stage][0]
        needs_nothing = action[0] == "B" and stage == N_STAGES - 1
        if not needs_nothing and action not in self._come[stage]:
            return
        self._busy[stage] = True
        forwards = 1.0 if action[0] == "F" else 2.0
        seconds = self.load.forward_seconds * forwards * self.rng.lognormal(0.0, 0.15)
        self._at(self.now + seconds * self.slowness[device], "_done", stage, action)

    def _done(self, stage: int, action: tuple[str, int, int]) -> None:
        device, (kind, number, microbatch) = STAGES[stage], action
        if self._is_stopped(device):
            return
        self._busy[stage] = False
        self._agenda[stage].pop(0)
        self._come[stage].discard(action)
        to = stage + 1 if kind == "F" else stage - 1
        if to == N_STAGES:
            self._carry(device, "coordinator", _RESULT_BYTES, "_result")
        elif to >= 0:
            target = STAGES[to]
            self._carry(device, target, self.load.bytes, "_arrives", to, kind, number, microbatch)
        self._start(stage)

    # The coordinator.

    def _begin_round(self) -> None:
        self._round += 1
        self._round_began, self._n_sent, self._n_results = self.now, 0, 0
        for stage, device in enumerate(STAGES):
            self._carry("coordinator", device, _BEGIN_BYTES, "_begins", stage, self._round)
        for _ in range(min(N_STAGES, N_MICROBATCHES)):
            self._send_input()
        self._begin_wait()

    def _send_input(self) -> None:
        arguments = (0, "F", self._round, self._n_sent)
        self._carry("coordinator", STAGES[0], self.load.bytes, "_arrives", *arguments)
        self._n_sent += 1

    def _begin_wait(self) -> None:
        self._wait_number += 1
        self._wait_began, self._suspicion = self.now, None
        self._kind = "next" if self._n_results else "first"
        after = self.deadlines.suspect_seconds(self._kind)
        self._at(self.now + after, "_suspect", self._wait_number)

    def _result(self) -> None:
        self.deadlines = self.deadlines.heard(self._kind, self.now - self._wait_began)
        if self._suspicion is not None:
            self.deadlines = self.deadlines.was_too_short(self._kind)
        self._n_results += 1
        if self._n_results == N_MICROBATCHES:
            self.deadlines = self.deadlines.stepped(self.now - self._round_began)
            self.n_steps += 1
            self._begin_round()
            return
        if self._n_sent < N_MICROBATCHES:
            self._send_input()
        self._begin_wait()

    def _suspect(self, wait_number: int) -> None:
        if wait_number != self._wait_number or self._suspicion is not None:
            return
        self.n_suspicions += 1
        patience = self.deadlines.give_up_seconds() - self.deadlines.suspect_seconds(self._kind)
        retry = {device: trip.seconds for device, trip in self.trips.items()}
        links = tuple(pairwise(STAGES))
        self._suspicion = Suspicion(self.now, patience, retry, links=links, link_seconds=10.0)
        self._look(self._suspicion)

    def _look(self, suspicion: Suspicion) -> None:
        if suspicion is not self._suspicion:
            return
        self.verdict = suspicion.look(self.now)
        for ask in suspicion.due(self.now):
            self.n_pulses += 1
            way = ["coordinator", *([ask.via] if ask.via else []), ask.device]
            self._hop(suspicion, ask, self.now, [*way, *way[-2::-1]])
        self._at(self.now + suspicion.look_seconds, "_look", suspicion)

    def _hop(self, suspicion: Suspicion, ask: Ask, asked: float, way: list[str]) -> None:
        if len(way) > 1 and not self._is_stopped(way[0]):
            self._carry(*way[:2], _PULSE_BYTES, "_hop", suspicion, ask, asked, way[1:])
        elif len(way) == 1 and self.now - asked <= ask.timeout_seconds:
            if ask.via is None:
                self.longest_trip = max(self.longest_trip, self.now - asked)
                self.trips[ask.device] = self.trips[ask.device].heard(self.now - asked)
            suspicion.answered(ask.device, Pulse("run", doing="waits"), self.now, via=ask.via)
