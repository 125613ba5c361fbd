"""Keeps a model served while devices come and go: plans, deploys, switches over, looks after.

    a device is lost   --> nothing more is sent in this term --> plan for the others --> deploy
                           --> what is unanswered waits again --> next term
    one is there, faster with it
                       --> deploy beside the old term --> new requests go to the next term
                           --> the old one answers what it has, then retires
    one takes longer than it was measured to (or less), and another cut is faster  --> the same

A device keeps what it holds from one term to the next; only what it lacks travels. Everything is
decided on one thread, which takes news in their order, and looks after what nobody brings news of
once in ``Timeouts.silence``, however many there are.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from edgeweave.core.errors import DeviceError, DeviceTimeout, EdgeweaveError, PlanError
from edgeweave.device import Fault, ServingStatistics, decode_message
from edgeweave.fleet import Fleet
from edgeweave.net import control_key
from edgeweave.net.remote import decode_error
from edgeweave.plan import Costs, DeviceCosts, Link, ServingPlan
from edgeweave.serving.absences import Absences
from edgeweave.serving.desk import Desk
from edgeweave.serving.hands import Hands
from edgeweave.serving.measuring import Measuring
from edgeweave.serving.meetings import Meetings, Met
from edgeweave.serving.old_terms import OldTerms
from edgeweave.serving.options import ServeOptions
from edgeweave.serving.planner import Planner
from edgeweave.serving.report import Change
from edgeweave.serving.requests import Shipment
from edgeweave.serving.stalls import StallWatch
from edgeweave.serving.term import Hearing, ServingTerm

__all__ = ["Keeper"]

_log = logging.getLogger(__name__)


class Keeper:
    """Owns the serving run from ``with`` to its end; entering returns when requests can be sent.

    Raises ``PlanError`` on entering if no plan fits; later there may be times without any, and the
    desk's requests wait.
    """

    def __init__(
        self,
        fleet: Fleet,
        hands: Hands,
        options: ServeOptions,
        measuring: Measuring,
        *,
        costs: Costs | None = None,
    ) -> None:
        """Devices that ``costs`` do not know are measured."""
        self._fleet = fleet
        self._options = options
        self._measuring = measuring
        self._hands = hands
        self._desk: Desk | None = None
        self._given_costs = costs
        self._planner: Planner | None = None
        self._there: set[str] = set()
        self._absences = Absences(fleet.clock, fleet.timeouts.silence)
        self._term: ServingTerm | None = None
        self._old = OldTerms(fleet.clock, self._give_back)
        self._stalls = StallWatch(fleet)
        self._began = fleet.clock.now()
        self._changes: list[Change] = []
        self._news: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="edgeweave-keeper")
        met = Met(
            lambda costs, links: self._news.put(lambda: self._met(costs, links)),
            lambda device, error: self._news.put(lambda: self._not_met(device, error)),
        )
        self._meetings = Meetings(fleet, measuring, met)
        self._stack = ExitStack()

    def begin(self, desk: Desk) -> Self:
        """Serve what is sent to this desk; to be entered."""
        self._desk = desk
        return self

    @property
    def plan(self) -> ServingPlan | None:
        """The plan in use; None while nobody can serve."""
        term = self._term
        return None if term is None else term.plan

    @property
    def costs(self) -> Costs | None:
        """What devices measured, before they served and since, once they did."""
        return None if self._planner is None else self._planner.costs

    @property
    def changes(self) -> tuple[Change, ...]:
        """How the model was served so far, the first plan included."""
        return tuple(self._changes)

    def broken(self, term: object, error: EdgeweaveError) -> None:
        """The desk could not send in a term."""
        if isinstance(term, ServingTerm):
            self._news.put(lambda: self._failed(term.number, error))

    def statistics(self) -> dict[str, ServingStatistics]:
        """What the devices of the plan did so far; without those that do not answer."""
        return self._hands.statistics(self.plan.devices if self.plan is not None else ())

    def __enter__(self) -> Self:
        fleet, transport = self._fleet, self._fleet.transport
        with ExitStack() as stack:
            stack.enter_context(self._meetings)
            stack.callback(self._hands.release_all)
            stack.callback(self._close_terms)
            fault_key = control_key(fleet.name, transport.name, "fault")
            stack.callback(transport.serve(fault_key, self._on_fault).close)
            allowed = [device for device in fleet.devices if self._options.allows(device)]
            self._there = set(allowed)
            measuring = self._measuring
            self._planner = Planner(
                measuring.costs(allowed, known=self._given_costs),
                self._options,
                result_bytes=measuring.result_bytes,
                batch_size=measuring.batch_size,
                clock=fleet.clock,
            )
            self._change("serving begins", fleet.clock.now())
            if self._term is None:
                raise self._absences.last_error or PlanError("no device is there. Start one.")
            watched = fleet.watch(
                lambda device: self._news.put(lambda: self._lost(device)),
                lambda device: self._news.put(lambda: self._came(device)),
            )
            stack.callback(watched.close)
            self._thread.start()
            stack.callback(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._news.put(None)
        self._thread.join()

    def _work(self) -> None:
        clock, every = self._fleet.clock, self._fleet.timeouts.silence
        due = clock.now() + every
        while True:
            try:
                news = self._news.get(timeout=max(due - clock.now(), 0.0))
                if news is None:
                    return
                self._do(news)
            except queue.Empty:
                pass
            if clock.now() >= due:
                self._do(self._look_after)
                due = clock.now() + every

    def _do(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:  # noqa: BLE001 - a thread's boundary: what fails once must not end serving
            _log.exception("looking after run %s failed", self._hands.run)

    def _on_fault(self, payload: bytes) -> bytes:
        """A stage says that it cannot go on."""
        fault = decode_message(payload, Fault)
        if fault.run == self._hands.run:
            error = decode_error(fault.error, fault.device)
            self._news.put(lambda: self._failed(fault.term, error))
        return b""

    def _lost(self, device: str) -> None:
        """A device has vanished, and with it all that it had."""
        self._hands.forget(device)
        self._absences.forget(device)
        if self._old.end(lambda term: device in term.plan.devices):
            self._let_go()
        if device in self._there:
            self._there.discard(device)
            if self._uses(device):
                self._change(f"{device} was lost", self._fleet.clock.now())

    def _uses(self, device: str) -> bool:
        return self._term is not None and device in self._term.plan.devices

    def _came(self, device: str) -> None:
        """A device is there: known ones at once, others when they were measured."""
        is_out = self._absences.is_out(device)
        if device in self._there or is_out or not self._options.allows(device):
            return
        if self._plans.knows(device):
            self._join(device)
        else:
            self._meetings.begin(device, sorted(self._there))

    def _not_met(self, device: str, error: EdgeweaveError) -> None:
        """A device could not be measured; one that serves by now has no time for that."""
        if not self._uses(device):
            self._exclude(device, error)

    def _met(self, costs: DeviceCosts, links: Mapping[tuple[str, str], Link]) -> None:
        self._plans.join(costs, links)
        self._join(costs.device)

    def _join(self, device: str) -> None:
        is_new = device not in self._there
        self._there.add(device)
        why = f"{device} {'is there' if is_new else 'was measured again'}"
        self._change(why, self._fleet.clock.now())

    def _failed(self, number: int, error: EdgeweaveError) -> None:
        """A term cannot go on: some device's fault, or its link's."""
        if self._old.end(lambda term: term.number == number):
            self._let_go()
        if self._term is None or self._term.number != number:
            return
        _log.warning("run %s, term %d failed: %s", self._hands.run, number, error)
        noticed = self._fleet.clock.now()
        present = set(self._fleet.present())
        gone = self._there - present
        self._there &= present
        if isinstance(error, DeviceError) and error.device in self._there and len(self._there) > 1:
            self._exclude(error.device, error)
        why = f"{', '.join(sorted(gone))} was lost" if gone else f"a stage failed ({error})"
        self._change(why, noticed, is_broken=True)

    def _exclude(self, device: str, error: EdgeweaveError) -> None:
        """Leave a device out for a while."""
        _log.warning("%s takes no part for now: %s", device, error)
        self._there.discard(device)
        self._absences.note(device, error)

    def _look_after(self) -> None:
        """What nobody brings news of: old terms that are done, silence, devices that recover."""
        now = self._fleet.clock.now()
        if self._old.end_finished():
            self._let_go()
        self._watch_silence(now)
        self._watch_speeds(now)
        for device in self._absences.due():
            if device in self._fleet.present() and self._stalls.pulse(device) is not None:
                self._absences.end(device)
                self._came(device)
            else:
                self._absences.wait_longer(device)

    def _watch_silence(self, now: float) -> None:
        if self._term is None:
            return
        stall = self._stalls.look(self._term, is_alone=len(self._there) == 1)
        if stall is None:
            return
        for device, fact in stall.culprits.items():
            text = f"nothing came for {stall.seconds:.1f} s, and of {device} is known: {fact}"
            self._exclude(device, DeviceTimeout(text, device=device))
        self._change(stall.why, now, is_broken=True)

    def _watch_speeds(self, now: float) -> None:
        """Plan anew if a device has got slower or faster, and that is worth it."""
        term = self._term
        if term is None:
            return
        departures = self._plans.observe(term.taken_seconds())
        if departures:
            why = " and ".join(map(str, departures))
            _log.info("run %s: %s", self._hands.run, why)
            self._change(why, now, departed=True)
        for device in self._plans.due([d for each in self._terms() for d in each.plan.devices]):
            if device in self._there:
                self._meetings.begin(device, sorted(self._there - {device}))

    def _change(
        self, why: str, noticed: float, *, is_broken: bool = False, departed: bool = False
    ) -> None:
        """Serve by the best plan for those that are there, if there is one and it is worth it.

        ``departed``: devices are there that take another time than they did.
        """
        desk, old = self._at_desk, self._term
        if old is not None and not self._there.issuperset(old.plan.devices):
            is_broken = True
        if old is not None and is_broken:
            desk.suspend(old)
        term, is_broken = self._deployed(old, is_broken=is_broken, departed=departed)
        n_resent = 0
        if old is not None and (term is not None or is_broken):
            n_resent = self._leave(old, is_broken=is_broken)
        if term is not None:
            self._term = term
            self._plans.take_up(term.plan, departed=departed)
            desk.use(term)
            now = self._fleet.clock.now()
            change = Change(now - self._began, why, term.plan, now - noticed, n_resent)
            self._changes.append(change)
            _log.info("run %s: %s", self._hands.run, change.line())
        elif is_broken:
            self._term = None
            _log.warning("run %s: %s, and nobody can serve for now", self._hands.run, why)
        self._let_go()

    def _deployed(
        self, old: ServingTerm | None, *, is_broken: bool, departed: bool
    ) -> tuple[ServingTerm | None, bool]:
        """A new term that is ready, if a plan is worth it; devices that fail are left out.

        Also whether the old one answers no more: it did not before, or ended to make room.
        """
        desk, plans = self._at_desk, self._plans
        while (plan := self._best_plan()) is not None:
            used = None if old is None or is_broken else old.plan
            if used is not None and not plans.is_worth(plan, used, departed=departed):
                break
            hearing = Hearing(desk.answered, desk.refused, desk.room_changed, self._tell_failed)
            term, done = self._hands.deploy(plan, hearing, makes_room=used is None)
            if done.has_ended_stages:
                is_broken = True
                self._old.end(lambda _term: True)
            if term is not None:
                return term, is_broken
            for device, error in done.failed.items():
                self._exclude(device, error)
            self._let_go()  # of the stages that others took, which would want room
        return None, is_broken

    def _tell_failed(self, number: int, error: EdgeweaveError) -> None:
        self._news.put(lambda: self._failed(number, error))

    def _best_plan(self) -> ServingPlan | None:
        try:
            return self._plans.best(self._there)
        except PlanError as error:
            self._absences.last_error = error
            return None

    @property
    def _plans(self) -> Planner:
        assert self._planner is not None, "entered"
        return self._planner

    @property
    def _at_desk(self) -> Desk:
        assert self._desk is not None, "begun"
        return self._desk

    def _leave(self, old: ServingTerm, *, is_broken: bool) -> int:
        """Let an old term end; how many of its requests are sent again at once."""
        if is_broken:
            shipments = old.take_back()
            self._give_back(shipments)
            return sum(len(shipment.requests) for shipment in shipments)
        self._old.add(old, self._fleet.timeouts.silence)
        return 0

    def _give_back(self, shipments: Iterable[Shipment]) -> None:
        self._at_desk.give_back(shipments)

    def _let_go(self) -> None:
        """Retire the stages that no term needs, and the devices that have no stage."""
        self._hands.let_go(self._terms())

    def _terms(self) -> list[ServingTerm]:
        """Those that answer, the newest last."""
        return [*self._old] if self._term is None else [*self._old, self._term]

    def _close_terms(self) -> None:
        self._old.close()
        if self._term is not None:
            self._term.close()
        self._term = None
