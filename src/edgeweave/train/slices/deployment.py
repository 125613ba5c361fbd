"""What members of a run of super neurons are deployed with: their place, and their part of the
state, as it was at first or as it was copied last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgeweave.codec import Codec
from edgeweave.device import DeploySlice, Optimizer, SliceAssignment
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

__all__ = ["Deployment", "SliceSettings"]

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
    move_after: int = 50
    """Rounds that a device is away until its slice moves to a spare one. A move costs that slice
    what it learnt since its last copy, so it comes when waiting has cost about as much."""
    move_after_seconds: float = 30.0
    """Nor does it move earlier than this: a small board takes as long to start an agent again."""


class Deployment:
    """Of one run, which ``run`` names. Members are numbered as in ``Sliced.members``."""

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
        self.fleet = fleet
        self.run = run
        self.plan = plan
        self.settings = settings
        self.held: dict[int, _Tensors] = {}
        """The newest copy of each member's state that is here, the optimizer's part included."""
        self._graph = encode_program(program)
        self._sliced = sliced
        self._state, self._optimizer_state = state, optimizer_state

    def part(self, rank: int) -> _Tensors:
        """A member's state as it is known here."""
        who = self._sliced.members[rank]
        first = slice_state(self._sliced, self._state, *who)
        entries = slice_entries(self._sliced, self._optimizer_state, *who)
        return first | entries | self.held.get(rank, {})

    def deploy(self, rank: int, devices: tuple[str, ...], own: _Tensors | None) -> None:
        """Put a member to work, where all are on these devices.

        ``own``: its state, with the optimizer's; None: it goes on with what it has.
        """
        weights = entries = None
        if own is not None:
            weights = memoryview(encode_state({n: t for n, t in own.items() if "|" not in n}))
            entries = memoryview(encode_state({n: t for n, t in own.items() if "|" in n}))
        self.fleet.ask(
            devices[rank],
            "slice",
            DeploySlice(self._assignment(rank, devices), self._graph, weights, entries),
            timeout_seconds=self.fleet.timeouts.work,
        )

    def _assignment(self, rank: int, devices: tuple[str, ...]) -> SliceAssignment:
        settings, plan = self.settings, self.plan
        return SliceAssignment(
            run=self.run,
            term=0,
            coordinator=self.fleet.transport.name,
            stage=rank,
            devices=devices,
            microbatch_size=settings.batch_size,
            max_microbatches=1,
            groups=plan.groups,
            mode=plan.mode,
            seed=settings.seed,
            optimizer=settings.optimizer,
            least_wait_seconds=settings.least_wait_seconds,
            codec=settings.codec,
        )
