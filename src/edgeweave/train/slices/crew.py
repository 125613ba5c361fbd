"""The devices of one run of super neurons: deploying on them, who is there, and copies of their
states.

    there --token gone--> absent --token back, deployed again---------------> there
                          absent for long --a spare deployed, others told---> there, on the spare
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from edgeweave.core.errors import DeviceLost, EdgeweaveError, FleetError
from edgeweave.device import MemberMoved, Release, Roster, StateRequest, received_state
from edgeweave.train.slices.absences import Absence, Absences, Move
from edgeweave.train.slices.deployment import Deployment

__all__ = ["SliceCrew"]

_log = logging.getLogger(__name__)

_TRIED_AGAIN_AFTER: Final = 16
"""Rounds until a device that is there, and could not be deployed, is tried again."""


class SliceCrew:
    """All members, by rank: their number in ``Sliced.members``.

    What is told of devices by the fleet's threads is guarded, and announced, by ``changed``.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.changed = threading.Condition()
        self.step = 0
        """The step that began last."""
        self.roster = Roster(deployment.plan.devices)
        """Where members are."""
        self._deployment = deployment
        self._fleet, self._run = deployment.fleet, deployment.run
        self._plan, self._settings = deployment.plan, deployment.settings
        self._left: dict[int, str] = {}
        """The devices of members that have moved, and had no part in a round since."""
        self._former: set[str] = set()
        """Devices without a slice that may still have something of the run."""
        self._used = set(self._plan.devices)
        """Devices that were asked to have a slice."""
        self._absent: set[int] = set()
        self._away: dict[int, tuple[int, float]] = {}
        """The first round from which on a member is absent, and about when that was."""
        self._next_try: dict[int, int] = {}
        """The round from which on a device is tried again."""
        self._coming: set[int] = set()
        """Those that are being deployed again."""
        self._ready: set[int] = set()
        """Those that have been."""
        self._helper: ThreadPoolExecutor
        self._absences = Absences()

    @property
    def absent(self) -> frozenset[int]:
        """Who has no part in the next round."""
        with self.changed:
            return frozenset(self._absent)

    @property
    def absences(self) -> tuple[Absence, ...]:
        """Devices that were away, or are, in the order of their going."""
        with self.changed:
            return self._absences.absences

    @property
    def moves(self) -> tuple[Move, ...]:
        """Slices that went to other devices, in that order."""
        with self.changed:
            return self._absences.moves

    def deploy_all(self) -> None:
        """Put every member to work, in turn where they share this machine."""
        deployment, devices = self._deployment, self._plan.devices

        def deploy(device: str) -> bytes:
            rank = devices.index(device)
            deployment.deploy(rank, devices, deployment.part(rank))
            return b""

        self._fleet.for_each(devices, deploy, one_at_a_time=self._fleet.is_local)

    def release(self) -> None:
        """Let the devices go; one that is gone or silent cannot be told, and need not be."""
        seconds = self._fleet.timeouts.stop
        for device in set(self._fleet.present()) & self._used:
            try:
                self._fleet.ask(device, "release", Release(self._run), timeout_seconds=seconds)
            except EdgeweaveError as error:
                _log.warning("%s was not released: %s", device, error)

    def welcome(self, next_round: int) -> None:
        """Let those that are back, or elsewhere, and deployed meanwhile have a part in the next
        round.

        Deploying is beside training. One that cannot be deployed is tried again after a while.
        """
        with self.changed:
            ready, self._ready = sorted(filter(self._is_there, self._ready)), set()
            self._count_away(next_round)
            out = self._absent - self._coming - set(ready)
            due = sorted(rank for rank in out if self._next_try.get(rank, 0) <= next_round)
            back = [rank for rank in due if self._is_there(rank)]
            lost = [rank for rank in due if self._is_lost(rank, next_round)]
            lost = lost if self._spares() else []
            self._coming.update(back, lost)
            former = sorted(filter(self.roster.is_there, self._former))
            self._former.difference_update(former)
        for rank in ready:
            self._note_back(rank)
        for rank in (*back, *lost):
            self._next_try[rank] = next_round + _TRIED_AGAIN_AFTER
            self._helper.submit(self._come if rank in back else self._move, rank)
        for device in former:
            self._helper.submit(self._dismiss, device)

    def _count_away(self, next_round: int) -> None:
        seen = next_round, self._fleet.clock.now()
        self._away = {rank: self._away.get(rank, seen) for rank in self._absent}

    def _is_lost(self, rank: int, next_round: int) -> bool:
        """Whether a member was away for so long that another device is to have its slice."""
        first_round, began = self._away[rank]
        window = len(self._plan.groups) + 1  # who has a part in a round under way is waited for
        return (
            not self._is_there(rank)
            and next_round - first_round >= max(self._settings.move_after, window)
            and self._fleet.clock.now() - began >= self._settings.move_after_seconds
        )

    def _is_there(self, rank: int) -> bool:
        return self.roster.is_there(self.roster.device_of(rank))

    def _spares(self) -> list[str]:
        """Devices of the fleet that are there and have no slice."""
        free = set(self._fleet.devices) - set(self.roster.devices) - self._former
        return [
            device
            for device in self._fleet.devices
            if device in free and self.roster.is_there(device)
        ]

    def _come(self, rank: int) -> None:
        """Deploy again on a device that is back. On the helper's thread."""
        device = self.roster.device_of(rank)
        try:
            self._deploy_again(rank)
        except EdgeweaveError as error:
            _log.warning("%s is back, and could not be deployed: %s", device, error)
        else:
            with self.changed:
                self._ready.add(rank)
        finally:
            with self.changed:
                self._coming.discard(rank)

    def _move(self, rank: int) -> None:
        """Deploy on a spare device, and tell all others of it. On the helper's thread."""
        try:
            if any(self._has_moved(rank, device) for device in self._spares()):
                with self.changed:
                    self._ready.add(rank)
        finally:
            with self.changed:
                self._coming.discard(rank)

    def _has_moved(self, rank: int, to: str) -> bool:
        """Whether a spare device has taken the slice. The old one then has none, if it returns."""
        before = self.roster.devices
        devices = (*before[:rank], to, *before[rank + 1 :])
        self._used.add(to)
        try:
            self._deployment.deploy(rank, devices, self._deployment.part(rank))
        except EdgeweaveError as error:
            _log.warning("%s could not take the slice of %s: %s", to, before[rank], error)
            with self.changed:
                self._former.add(to)
            return False
        with self.changed:
            self._left.setdefault(rank, before[rank])
            self._former.add(before[rank])
            self.roster.move(rank, to)
        self._tell_others(rank)
        return True

    def _tell_others(self, moved: int) -> None:
        """Who does not know where a member is has no part until it was deployed anew."""
        message = MemberMoved(self._run, moved, self.roster.device_of(moved))
        others = [rank for rank in range(len(self.roster.devices)) if rank != moved]
        seconds = self._fleet.timeouts.request
        told = self._asked(filter(self._is_there, others), "moved", message, seconds)
        with self.changed:
            for rank in set(others) - told.keys():
                self._ready.discard(rank)
                self._set_absent(rank)
            self.changed.notify_all()

    def _dismiss(self, device: str) -> None:
        """End what a device still has of the run. On the helper's thread."""
        if device in self.roster.devices:
            return
        welcome_again, seconds = Release(self._run, before=0), self._fleet.timeouts.stop
        try:
            self._fleet.ask(device, "release", welcome_again, timeout_seconds=seconds)
        except EdgeweaveError as error:
            _log.warning("%s was not released: %s", device, error)
        else:
            _log.info("%s has no slice, and is a spare", device)

    def check_groups(self) -> None:
        """``DeviceLost`` if all members of a group are away."""
        absent, first = self.absent, 0
        for number, group in enumerate(self._plan.groups):
            members = range(first, first + group.n_members)
            first += group.n_members
            if absent.issuperset(members):
                devices = [self.roster.device_of(rank) for rank in members]
                raise DeviceLost(
                    f"no device of group {number} ({', '.join(devices)}) is there, and without "
                    "one nothing can be learnt. Bring one back, or use groups of more devices.",
                    device=devices[0],
                    stage=members[0],
                )

    def fetch(self, verb: str, message: StateRequest | Release) -> None:
        """Bring the copies of members' states up to date."""
        for rank, data in self.ask_there(verb, message).items():
            told = received_state(data, self.roster.device_of(rank))
            if told:
                self._deployment.held[rank] = told

    def begin_copies(self) -> None:
        """The same beside training, of what members copied last."""
        self._helper.submit(self._fetch_copies)

    def _fetch_copies(self) -> None:
        try:
            self.fetch("copy", Release(self._run))
        except EdgeweaveError as error:
            _log.warning("copies of the weights stay as old as they are: %s", error)

    def ask_there(self, verb: str, message: StateRequest | Release) -> dict[int, bytes]:
        """The answers of all members that are there. One that vanishes meanwhile is left out."""
        absent = self.absent
        ranks = (rank for rank in range(len(self.roster.devices)) if rank not in absent)
        return self._asked(ranks, verb, message, self._fleet.timeouts.work)

    def _asked(
        self,
        ranks: Iterable[int],
        verb: str,
        message: StateRequest | Release | MemberMoved,
        seconds: float,
    ) -> dict[int, bytes]:
        """The answers of those that give one."""
        ranks, found = tuple(ranks), dict[int, bytes]()

        def ask(rank: int) -> None:
            device = self.roster.device_of(rank)
            try:
                found[rank] = self._fleet.ask(device, verb, message, timeout_seconds=seconds)
            except FleetError as error:
                _log.warning("%s does not answer to %s: %s", device, verb, error)

        with ThreadPoolExecutor(max_workers=max(len(ranks), 1)) as pool:
            list(pool.map(ask, ranks))
        return {rank: found[rank] for rank in ranks if rank in found}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, it is noticed who goes and comes."""
        with ThreadPoolExecutor(max_workers=1) as self._helper:
            watch = self._fleet.watch(self._on_lost, self._on_there)
            try:
                yield
            finally:
                watch.close()

    def _deploy_again(self, rank: int) -> None:
        deployment, devices = self._deployment, self.roster.devices
        try:
            deployment.deploy(rank, devices, None)
        except FleetError as error:
            _log.info("%s comes back empty: %s", devices[rank], error)
            deployment.deploy(rank, devices, deployment.part(rank))

    def _note_back(self, rank: int) -> None:
        device = self.roster.device_of(rank)
        with self.changed:
            if not self._is_there(rank):
                return
            self._absent.discard(rank)
            left = self._left.pop(rank, None)
            if left is None:
                self._absences.end(device, self.step)
            else:
                self._absences.move(left, device, self.step)
        came = "is back" if left is None else f"has the slice of {left}"
        _log.info("%s %s, and has a part from step %d on", device, came, self.step)

    def _set_absent(self, rank: int) -> None:
        if rank not in self._absent:
            self._absent.add(rank)
            self._absences.begin(self.roster.device_of(rank), self.step)

    # The fleet's threads.

    def _on_lost(self, device: str) -> None:
        with self.changed:
            rank = self.roster.note(device, there=False)
            if rank is not None:
                self._ready.discard(rank)
                self._set_absent(rank)
                self.changed.notify_all()

    def _on_there(self, device: str) -> None:
        self.roster.note(device, there=True)
