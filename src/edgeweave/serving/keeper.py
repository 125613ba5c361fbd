"""Keeps a model served while devices come and go: plans, deploys, switches over, looks after.

    a device is lost   --> nothing more is sent in this term --> plan for the others --> deploy
                           --> what is unanswered waits again --> next term
    one is there, faster with it
                       --> deploy beside the old term --> new requests go to the next term
                           --> the old one answers what it has, then retires

A device keeps what it holds from one term to the next; only what it lacks travels. Everything is
decided on one thread, which takes news in their order.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edgeweave.core.errors import DeviceError, DeviceTimeout, EdgeweaveError, PlanError
from edgeweave.device import Fault, Pulse, ServingStatistics, decode_message
from edgeweave.fleet import Fleet
from edgeweave.net import check_hello, control_key, hello_of
from edgeweave.net.remote import decode_error
from edgeweave.plan import Costs, DeviceCosts, Link, ServingPlan, serving_plan
from edgeweave.serving.absences import Absences
from edgeweave.serving.desk import Desk
from edgeweave.serving.hands import Hands
from edgeweave.serving.measuring import Measuring
from edgeweave.serving.options import ServeOptions
from edgeweave.serving.report import Change
from edgeweave.serving.stalls import culprits
from edgeweave.serving.term import Hearing, ServingTerm

__all__ = ["Keeper"]

_log = logging.getLogger(__name__)

_WORTH_A_SWITCH = 0.97
"""A plan with a device that came is taken if it is better than the one in use by more than 3 %."""
_DRAINS = 5.0
"""So many times what its requests take, an old term has to answer them. Then they are sent anew."""
_STALLED = 3.0
"""So many times what all requests under way take, until nobody's answering is looked into."""


@dataclass(frozen=True, slots=True)
class _Draining:
    """An old term that answers what it was sent."""

    term: ServingTerm
    until_seconds: float


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
        """Devices are measured if ``costs`` are not given."""
        self._fleet = fleet
        self._options = options
        self._measuring = measuring
        self._hands = hands
        self._desk: Desk | None = None
        self._costs = costs
        self._there: set[str] = set()
        self._absences = Absences(fleet.clock, fleet.timeouts.silence)
        self._term: ServingTerm | None = None
        self._draining: list[_Draining] = []
        self._stalls = 0
        self._began = fleet.clock.now()
        self._changes: list[Change] = []
        self._news: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="edgeweave-keeper")
        self._meeting = ThreadPoolExecutor(1, "edgeweave-meeting")
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
        """What devices measured, once they did."""
        return self._costs

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
            stack.callback(self._meeting.shutdown, wait=True, cancel_futures=True)
            stack.callback(self._hands.release_all)
            stack.callback(self._close_terms)
            fault_key = control_key(fleet.name, transport.name, "fault")
            stack.callback(transport.serve(fault_key, self._on_fault).close)
            allowed = [device for device in fleet.devices if self._options.allows(device)]
            self._there = set(allowed)
            self._costs = self._costs or self._measuring.costs(allowed)
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
        while True:
            try:
                news = self._news.get(timeout=self._fleet.timeouts.silence)
            except queue.Empty:
                news = self._look_after
            if news is None:
                return
            try:
                news()
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
        for draining in [d for d in self._draining if device in d.term.plan.devices]:
            self._stop_draining(draining)
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
        assert self._costs is not None
        if device in {each.device for each in self._costs.devices}:
            self._join(device)
        else:
            self._meeting.submit(self._meet, device, sorted(self._there))

    def _meet(self, device: str, others: Sequence[str]) -> None:
        """Measure a device, beside everything else. Runs on a thread of its own."""
        try:
            check_hello(hello_of(self._fleet.transport.name), self._fleet.greet(device).hello)
            costs, links = self._measuring.device(device, others)
        except EdgeweaveError as error:
            failure = error
            self._news.put(lambda: self._exclude(device, failure))
        except Exception:  # noqa: BLE001 - a thread's boundary: told, never lost
            _log.exception("measuring %s failed", device)
        else:
            self._news.put(lambda: self._met(costs, links))

    def _met(self, costs: DeviceCosts, links: Mapping[tuple[str, str], Link]) -> None:
        assert self._costs is not None
        self._costs = self._costs.with_device(costs, links)
        self._join(costs.device)

    def _join(self, device: str) -> None:
        self._there.add(device)
        self._change(f"{device} is there", self._fleet.clock.now())

    def _failed(self, number: int, error: EdgeweaveError) -> None:
        """A term cannot go on: some device's fault, or its link's."""
        for draining in [each for each in self._draining if each.term.number == number]:
            self._stop_draining(draining)
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
        for draining in list(self._draining):
            if draining.term.is_empty or now > draining.until_seconds:
                self._stop_draining(draining)
        self._watch_silence(now)
        for device in self._absences.due():
            if device in self._fleet.present() and self._pulse(device) is not None:
                self._absences.end(device)
                self._came(device)
            else:
                self._absences.wait_longer(device)

    def _watch_silence(self, now: float) -> None:
        """Find out who stands still, if nothing comes for much longer than it takes."""
        term = self._term
        if term is None:
            return
        plan, slack = term.plan, self._fleet.timeouts.silence
        usual = plan.latency_seconds + plan.in_flight * plan.period_seconds
        silent = term.silent_seconds()
        if silent <= _STALLED * usual + slack * (1 + self._stalls):
            self._stalls = 0 if silent == 0 else self._stalls
            return
        self._stalls += 1
        with ThreadPoolExecutor(len(plan.devices)) as pool:
            pulses = dict(zip(plan.devices, pool.map(self._pulse, plan.devices), strict=True))
        found = culprits(plan.devices, pulses, term.n_sent)
        if None not in pulses.values() and (self._stalls == 1 or len(self._there) == 1):
            found = {}  # slower than planned, it may be: look again
        for device, fact in found.items():
            text = f"nothing came for {silent:.1f} s, and of {device} is known: {fact}"
            self._exclude(device, DeviceTimeout(text, device=device))
        if found or self._stalls > 1:
            self._stalls = 0
            why = f"{', '.join(found)} stands still" if found else f"{silent:.1f} s of silence"
            self._change(why, now, is_broken=True)

    def _pulse(self, device: str) -> Pulse | None:
        """What a device says of itself, asked up to three times; None if it says nothing."""
        for _ in range(3):
            try:
                return self._fleet.pulse(device, timeout_seconds=self._fleet.timeouts.silence)
            except EdgeweaveError as error:
                _log.debug("no pulse of %s: %s", device, error)
        return None

    def _change(self, why: str, noticed: float, *, is_broken: bool = False) -> None:
        """Serve by the best plan for those that are there, if there is one and it is worth it."""
        desk, old = self._desk, self._term
        assert desk is not None
        if old is not None and not self._there.issuperset(old.plan.devices):
            is_broken = True
        if old is not None and is_broken:
            desk.suspend(old)
        term = self._deployed(old, is_broken=is_broken)
        n_resent = 0
        if old is not None and (term is not None or is_broken):
            n_resent = self._leave(old, is_broken=is_broken)
        if term is not None:
            self._term = term
            desk.use(term)
            now = self._fleet.clock.now()
            change = Change(now - self._began, why, term.plan, now - noticed, n_resent)
            self._changes.append(change)
            _log.info("run %s: %s", self._hands.run, change.line())
        elif is_broken:
            self._term = None
            _log.warning("run %s: %s, and nobody can serve for now", self._hands.run, why)
        self._let_go()

    def _deployed(self, old: ServingTerm | None, *, is_broken: bool) -> ServingTerm | None:
        """A new term that is ready, if a plan is worth it; devices that fail are left out."""
        desk = self._desk
        assert desk is not None
        while (plan := self._best_plan()) is not None:
            if old is not None and not is_broken and not self._is_worth(plan, old.plan):
                return None
            hearing = Hearing(desk.answered, desk.refused, desk.room_changed, self._tell_failed)
            term, failed = self._hands.deploy(plan, hearing)
            if term is not None:
                return term
            for device, error in failed.items():
                self._exclude(device, error)
        return None

    def _tell_failed(self, number: int, error: EdgeweaveError) -> None:
        self._news.put(lambda: self._failed(number, error))

    def _best_plan(self) -> ServingPlan | None:
        costs = self._costs
        assert costs is not None
        known = {each.device for each in costs.devices} & self._there
        if not known:
            return None
        try:
            return serving_plan(
                costs,
                batch_size=self._measuring.batch_size,
                result_bytes=self._measuring.result_bytes,
                objective=self._options.objective,
                devices=known,
                use=self._options.use,
            )
        except PlanError as error:
            self._absences.last_error = error
            return None

    def _is_worth(self, plan: ServingPlan, old: ServingPlan) -> bool:
        if self._options.use == "all" and len(plan.stages) != len(old.stages):
            return len(plan.stages) > len(old.stages)
        if self._options.objective == "latency":
            return plan.latency_seconds < _WORTH_A_SWITCH * old.latency_seconds
        return plan.period_seconds < _WORTH_A_SWITCH * old.period_seconds

    def _leave(self, old: ServingTerm, *, is_broken: bool) -> int:
        """Let an old term end; how many of its requests are sent again at once."""
        desk, plan = self._desk, old.plan
        assert desk is not None
        if is_broken:
            shipments = old.take_back()
            desk.give_back(shipments)
            return sum(len(shipment.requests) for shipment in shipments)
        usual = plan.latency_seconds + plan.in_flight * plan.period_seconds
        until = self._fleet.clock.now() + _DRAINS * usual + self._fleet.timeouts.silence
        self._draining.append(_Draining(old, until))
        return 0

    def _stop_draining(self, draining: _Draining) -> None:
        assert self._desk is not None
        self._draining.remove(draining)
        self._desk.give_back(draining.term.take_back())
        self._let_go()

    def _let_go(self) -> None:
        """Retire the stages that no term needs, and the devices that have no stage."""
        self._hands.let_go(self._terms())

    def _terms(self) -> list[ServingTerm]:
        """Those that answer, the newest last."""
        old = [each.term for each in self._draining]
        return old if self._term is None else [*old, self._term]

    def _close_terms(self) -> None:
        for term in self._terms():
            term.close()
        self._term, self._draining = None, []
