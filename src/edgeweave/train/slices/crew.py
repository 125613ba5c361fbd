"""The devices of one run of super neurons: deploying on them, who is there, and copies of their
states.

    there --token gone--> absent --token back, deployed again--> there
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch

from edgeweave.codec import Codec
from edgeweave.core.errors import DeviceLost, EdgeweaveError, FleetError
from edgeweave.device import (
    DeploySlice,
    Optimizer,
    Release,
    SliceAssignment,
    StateRequest,
    received_state,
)
from edgeweave.fleet import Fleet
from edgeweave.plan import SlicePlan
from edgeweave.program import (
    Program,
    Sliced,
    encode_program,
    encode_state,
    slice_entries,
    slice_state,
)

__all__ = ["Absence", "SliceCrew", "SliceSettings"]

_log = logging.getLogger(__name__)

_TRIED_AGAIN_AFTER: Final = 16
"""Rounds until a device that is there, and could not be deployed, is tried again."""

_Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class SliceSettings:
    """What a run needs beside program, state and plan."""

    optimizer: Optimizer
    batch_size: int
    seed: int = 0
    least_wait_seconds: float = 0.25
    """Learnt deadlines are never shorter. They are for what ends do not tell (``parcels``)."""
    codec: Codec | None = None
    """What floats between devices travel in; None: as they are."""
    copy_every: int = 50
    """Steps between two copies of the weights to this process, for devices that come back empty."""


@dataclass(frozen=True, slots=True)
class Absence:
    """A device that was away: from the first step without it to the first one with it again."""

    device: str
    first_step: int
    stop_step: int | None = None
    """None: it has not come back."""

    def line(self) -> str:
        """A sentence for a person."""
        back = "and has not come back" if self.stop_step is None else f"to step {self.stop_step}"
        return f"{self.device} was away from step {self.first_step} {back}: a mask."


class SliceCrew:
    """All members, by rank: their number in ``Sliced.members``. ``run`` names the run.

    What is told of devices by the fleet's threads is guarded, and announced, by ``changed``.
    """

    def __init__(
        self,
        fleet: Fleet,
        run: str,
        program: Program,
        sliced: Sliced,
        state: Mapping[str, torch.Tensor],
        optimizer_state: Mapping[str, torch.Tensor],
        plan: SlicePlan,
        settings: SliceSettings,
    ) -> None:
        self.changed = threading.Condition()
        self.step = 0
        """The step that began last."""
        self._fleet = fleet
        self._run = run
        self._graph = encode_program(program)
        self._sliced = sliced
        self._state, self._optimizer_state = state, optimizer_state
        self._plan = plan
        self._settings = settings
        self._ranks = {device: rank for rank, device in enumerate(plan.devices)}
        self._held: dict[int, _Tensors] = {}
        """The newest copy of each member's state that is here, the optimizer's part included."""
        self._absent: set[int] = set()
        self._there: set[int] = set()
        self._next_try: dict[int, int] = {}
        """The round from which on a device is tried again."""
        self._coming: set[int] = set()
        """Those that are being deployed again."""
        self._ready: set[int] = set()
        """Those that have been."""
        self._helper: ThreadPoolExecutor
        self._absences: list[Absence] = []

    @property
    def absent(self) -> frozenset[int]:
        """Who has no part in the next round."""
        with self.changed:
            return frozenset(self._absent)

    @property
    def absences(self) -> tuple[Absence, ...]:
        """Devices that were away, or are, in the order of their going."""
        with self.changed:
            return tuple(self._absences)

    def deploy_all(self) -> None:
        """Put every member to work, in turn where they share this machine."""

        def deploy(device: str) -> bytes:
            rank = self._ranks[device]
            return self._deploy(rank, self.part(rank))

        self._fleet.for_each(self._plan.devices, deploy, one_at_a_time=self._fleet.is_local)

    def release(self) -> None:
        """Let the devices go; one that is gone or silent cannot be told, and need not be."""
        seconds = self._fleet.timeouts.stop
        for device in set(self._fleet.present()) & set(self._plan.devices):
            try:
                self._fleet.ask(device, "release", Release(self._run), timeout_seconds=seconds)
            except EdgeweaveError as error:
                _log.warning("%s was not released: %s", device, error)

    def welcome(self, next_round: int) -> None:
        """Let those that are back, and deployed again meanwhile, have a part in the next round.

        Deploying is beside training. One that cannot be deployed is tried again after a while.
        """
        with self.changed:
            ready, self._ready = sorted(self._ready & self._there), set()
            back = (self._absent & self._there) - self._coming - set(ready)
            due = sorted(rank for rank in back if self._next_try.get(rank, 0) <= next_round)
            self._coming.update(due)
        for rank in ready:
            self._note_back(rank)
        for rank in due:
            self._next_try[rank] = next_round + _TRIED_AGAIN_AFTER
            self._helper.submit(self._come, rank)

    def _come(self, rank: int) -> None:
        """Deploy again on a device that is back. On the helper's thread."""
        device = self._plan.devices[rank]
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

    def check_groups(self) -> None:
        """``DeviceLost`` if all members of a group are away."""
        absent, first = self.absent, 0
        for number, group in enumerate(self._plan.groups):
            members = range(first, first + group.n_members)
            first += group.n_members
            if absent.issuperset(members):
                devices = [self._plan.devices[rank] for rank in members]
                raise DeviceLost(
                    f"no device of group {number} ({', '.join(devices)}) is there, and without "
                    "one nothing can be learnt. Bring one back, or use groups of more devices.",
                    device=devices[0],
                    stage=members[0],
                )

    def part(self, rank: int) -> _Tensors:
        """A member's state as it is known here."""
        who = self._sliced.members[rank]
        first = slice_state(self._sliced, self._state, *who)
        entries = slice_entries(self._sliced, self._optimizer_state, *who)
        return first | entries | self._held.get(rank, {})

    def fetch(self, verb: str, message: StateRequest | Release) -> None:
        """Bring the copies of members' states up to date."""
        for rank, data in self.ask_there(verb, message).items():
            told = received_state(data, self._plan.devices[rank])
            if told:
                self._held[rank] = told

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
        ranks = [rank for rank in range(len(self._plan.devices)) if rank not in absent]
        seconds = self._fleet.timeouts.work
        found: dict[int, bytes] = {}

        def ask(rank: int) -> None:
            device = self._plan.devices[rank]
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

    def _deploy(self, rank: int, own: Mapping[str, torch.Tensor] | None) -> bytes:
        """``own``: its state, with the optimizer's; None: it goes on with what it has."""
        weights = entries = None
        if own is not None:
            weights = memoryview(encode_state({n: t for n, t in own.items() if "|" not in n}))
            entries = memoryview(encode_state({n: t for n, t in own.items() if "|" in n}))
        place = self._assignment(rank)
        return self._fleet.ask(
            self._plan.devices[rank],
            "slice",
            DeploySlice(place, self._graph, weights, entries),
            timeout_seconds=self._fleet.timeouts.work,
        )

    def _deploy_again(self, rank: int) -> None:
        try:
            self._deploy(rank, None)
        except FleetError as error:
            _log.info("%s comes back empty: %s", self._plan.devices[rank], error)
            self._deploy(rank, self.part(rank))

    def _assignment(self, rank: int) -> SliceAssignment:
        settings, plan = self._settings, self._plan
        return SliceAssignment(
            run=self._run,
            term=0,
            coordinator=self._fleet.transport.name,
            stage=rank,
            devices=plan.devices,
            microbatch_size=settings.batch_size,
            max_microbatches=1,
            groups=plan.groups,
            mode=plan.mode,
            seed=settings.seed,
            optimizer=settings.optimizer,
            least_wait_seconds=settings.least_wait_seconds,
            codec=settings.codec,
        )

    def _note_back(self, rank: int) -> None:
        device = self._plan.devices[rank]
        with self.changed:
            if rank not in self._there:
                return
            self._absent.discard(rank)
            for number, each in enumerate(self._absences):
                if each.device == device and each.stop_step is None:
                    self._absences[number] = replace(each, stop_step=self.step)
        _log.info("%s is back, and has a part from step %d on", device, self.step)

    # The fleet's threads.

    def _on_lost(self, device: str) -> None:
        rank = self._ranks.get(device)
        if rank is None:
            return
        with self.changed:
            self._there.discard(rank)
            self._ready.discard(rank)
            if rank not in self._absent:
                self._absent.add(rank)
                self._absences.append(Absence(device, self.step))
            self.changed.notify_all()

    def _on_there(self, device: str) -> None:
        rank = self._ranks.get(device)
        if rank is not None:
            with self.changed:
                self._there.add(rank)
