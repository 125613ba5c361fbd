"""Super neurons at work: batches in, losses out. Knows no epochs and no files.

    submit(step) --inputs--> all members that are there --a result of each--> collect()

A step is one batch, whole. Some are under way at once, as in a pipeline without a flush. A device
that vanishes is absent from the next round on, and nobody waits for it. When it is back it is
deployed again, with the weights it has, or the newest copy of them that is here. Where it stays
away, a spare device gets its slice with that copy.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import fmean
from types import TracebackType
from typing import Self

import torch

from edgeweave.core.errors import DeviceTimeout, EdgeweaveError, WireError
from edgeweave.data.batches import Batch
from edgeweave.device import (
    COORDINATOR,
    Fault,
    Outboxes,
    Release,
    SliceStatistics,
    StateRequest,
    decode_message,
    metrics_in,
    tensor_frame,
    told_hyperparameters,
)
from edgeweave.fleet import Fleet
from edgeweave.net import Frame, FrameHeader, control_key, frame_key, frame_pattern
from edgeweave.net.remote import decode_error
from edgeweave.plan import SlicePlan
from edgeweave.program import (
    Program,
    Sliced,
    gather_entries,
    gather_state,
    is_external,
    slice_program,
    without_outputs,
)
from edgeweave.train.run import RoundResult
from edgeweave.train.slices.absences import Absence, Move
from edgeweave.train.slices.crew import SliceCrew
from edgeweave.train.slices.deployment import Deployment, SliceSettings

__all__ = ["SliceRun"]


@dataclass(frozen=True, slots=True)
class _Round:
    """One that is under way."""

    number: int
    absent: frozenset[int]
    n_samples: int


class SliceRun:
    """Deploys on entering, releases the devices on leaving, whatever happened in between."""

    def __init__(
        self,
        fleet: Fleet,
        program: Program,
        state: Mapping[str, torch.Tensor],
        plan: SlicePlan,
        settings: SliceSettings,
        *,
        optimizer_state: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._fleet = fleet
        self._plan = plan
        self._settings = settings
        self._name = f"slices-{secrets.token_hex(4)}"
        whole = without_outputs(program)
        self._sliced = slice_program(whole, plan.groups, plan.mode)
        self._state = dict(state)
        self._deployment = Deployment(
            fleet,
            self._name,
            whole,
            self._sliced,
            self._state,
            optimizer_state or {},
            plan,
            settings,
        )
        self._crew = SliceCrew(self._deployment)
        n_members = len(plan.devices)
        self._inputs = [_read_inputs(self._sliced, rank) for rank in range(n_members)]
        self._outboxes = Outboxes(stop_seconds=fleet.timeouts.stop)
        self._results: dict[int, dict[int, FrameHeader]] = {}
        self._error: EdgeweaveError | None = None
        self._flying: deque[_Round] = deque()
        self._next_round = 0
        self._collected_at = fleet.clock.now()
        self.squared_gradient = 0.0
        """What members told with the last result: of a step up to a window earlier."""
        self._stack = ExitStack()

    @property
    def sliced(self) -> Sliced:
        return self._sliced

    @property
    def window(self) -> int:
        """How many steps may be under way."""
        return len(self._plan.groups) + 1

    @property
    def n_under_way(self) -> int:
        return len(self._flying)

    @property
    def absences(self) -> tuple[Absence, ...]:
        """Devices that were away, or are."""
        return self._crew.absences

    @property
    def moves(self) -> tuple[Move, ...]:
        """Slices that went from devices that stayed away to spare ones."""
        return self._crew.moves

    @property
    def plan(self) -> SlicePlan:
        """With the devices that members are on now."""
        return replace(self._plan, devices=self._crew.roster.devices)

    def __enter__(self) -> Self:
        fleet, transport = self._fleet, self._fleet.transport
        with ExitStack() as stack:
            stack.callback(self._crew.release)
            fault_key = control_key(fleet.name, transport.name, "fault")
            stack.callback(transport.serve(fault_key, self._on_fault).close)
            stack.enter_context(self._crew.watched())
            results = transport.subscribe(
                frame_pattern(fleet.name, self._name, 0, COORDINATOR),
                self._receive,
                on_error=self._fail,
                expect=self._expect,
                limit_bytes=1,
            )
            stack.callback(results.close)
            self._crew.deploy_all()
            stack.callback(self._outboxes.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def submit(
        self,
        step: int,
        batch: Batch,
        hyperparameters: Mapping[str, float],
        *,
        reliable: bool = False,
        square: bool = False,
    ) -> None:
        """Begin a step, without waiting for its loss; ``window`` of them may be under way.

        With ``square`` members tell of the gradients that they apply.

        Raises ``DeviceLost`` where no device of a group is there: nothing could be learnt.
        """
        self._crew.step = step
        self._fleet.step_begins(step)
        told = told_hyperparameters(hyperparameters)
        is_copied = (step + 1) % self._settings.copy_every == 0
        told |= {"train": 1.0, "copy": float(is_copied), "reliable": float(reliable)}
        told["square"] = float(square)
        self._begin(batch, told)
        if is_copied:
            self._crew.begin_copies()

    def collect(self) -> RoundResult:
        """The oldest step under way, once every member that is there has done its forward."""
        oldest = self._flying[0]
        heard = self._wait_results(oldest)
        self._flying.popleft()
        self.squared_gradient = sum(header.scalars.get("square", 0.0) for header in heard)
        now = self._fleet.clock.now()
        seconds, self._collected_at = now - self._collected_at, now
        return _mean(heard, oldest.n_samples, seconds)

    def evaluate(self, parts: Iterable[Batch]) -> RoundResult:
        """Mean loss and metrics over batches, as ``model.eval()`` computes them; nothing is lost.

        Slices of absent devices count as zeros.
        """
        assert not self._flying, "what is under way is collected first"
        results: list[RoundResult] = []
        for part in parts:
            if len(self._flying) >= self.window:
                results.append(self.collect())
            self._begin(part, {"train": 0.0, "reliable": 1.0})
        while self._flying:
            results.append(self.collect())
        return _joined(results)

    def fetch_state(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The user's state, and the optimizer's by ``<parameter>|<entry>``, after all steps.

        Of a device that is away it is the newest copy that is here.
        """
        assert not self._flying, "what is under way is collected first"
        self._begin(Batch({}, 0), {"train": 0.0})
        self._wait_results(self._flying[0])
        self._flying.popleft()
        self._crew.fetch("part", StateRequest(self._name, self._next_round, "weights"))
        self.check()
        parts = {who: self._deployment.part(rank) for rank, who in enumerate(self._sliced.members)}
        entries = {
            who: {name: tensor for name, tensor in part.items() if "|" in name}
            for who, part in parts.items()
        }
        return (
            gather_state(self._sliced, parts, self._state),
            gather_entries(self._sliced, entries),
        )

    def statistics(self) -> dict[str, SliceStatistics]:
        """What every device that is there did so far, and what reached it."""
        answers = self._crew.ask_there("reception", Release(self._name))
        devices = self._crew.roster.devices
        return {devices[r]: decode_message(each, SliceStatistics) for r, each in answers.items()}

    def check(self) -> None:
        """Raise the error that ended the run, if one did."""
        if self._error is not None:
            raise self._error

    def _begin(self, batch: Batch, scalars: Mapping[str, float]) -> None:
        """Hand a round to all members that are there."""
        self.check()
        self._crew.welcome(self._next_round)
        self._crew.check_groups()
        if not self._flying:
            self._collected_at = self._fleet.clock.now()
        number, self._next_round = self._next_round, self._next_round + 1
        absent = self._crew.absent
        told = {**scalars, "step": float(self._crew.step), "samples": float(batch.n_samples)}
        told |= {f"absent:{rank}": 1.0 for rank in absent}
        self._flying.append(_Round(number, absent, batch.n_samples))
        for rank in set(range(len(self._plan.devices))) - absent:
            names = self._inputs[rank] if batch.n_samples else ()
            tensors = {name: batch.tensors[name].contiguous() for name in names}
            self._send(rank, number, tensors, told)

    def _send(
        self,
        rank: int,
        number: int,
        tensors: Mapping[str, torch.Tensor],
        scalars: Mapping[str, float],
    ) -> None:
        transport = self._fleet.transport
        frame = tensor_frame(
            "input",
            transport.name,
            COORDINATOR,
            0,
            round=number,
            microbatch=0,
            tensors=tensors,
            scalars=scalars,
        )
        key = frame_key(self._fleet.name, self._name, 0, rank, "input")
        device = self._crew.roster.device_of(rank)
        send = functools.partial(transport.send, key, frame, device=device)
        self._outboxes.to(device).post(send)

    def _wait_results(self, round_: _Round) -> list[FrameHeader]:
        """Of all members that are there, in their order."""
        seconds = self._fleet.timeouts.frame
        everybody = set(range(len(self._plan.devices)))

        def missing() -> set[int]:
            heard = self._results.get(round_.number, {})
            return everybody - round_.absent - self._crew.absent - heard.keys()

        with self._crew.changed:
            self._crew.changed.wait_for(lambda: self._error is not None or not missing(), seconds)
            self.check()
            late = missing()
            if late:
                device = self._crew.roster.device_of(min(late))
                raise DeviceTimeout(
                    f"no result of round {round_.number} came from {device} in {seconds:.0f} s. "
                    "It is far slower than the others or stuck; look at `edgeweave status`, or "
                    "raise Timeouts.frame.",
                    device=device,
                    stage=min(late),
                )
            found = self._results.pop(round_.number, {})
        self._crew.check_groups()
        return [found[rank] for rank in sorted(found)]

    # The transport's threads.

    def _on_fault(self, payload: bytes) -> bytes:
        fault = decode_message(payload, Fault)
        if fault.run == self._name and fault.device in self._crew.roster.devices:
            self._fail(decode_error(fault.error, fault.device))
        return b""

    def _fail(self, error: EdgeweaveError) -> None:
        """End the run with an error; the first one counts."""
        with self._crew.changed:
            self._error = self._error or error
            self._crew.changed.notify_all()

    def _receive(self, frame: Frame) -> None:
        header = frame.header
        if header.device != self._crew.roster.device_of(header.stage):
            return  # the member is elsewhere now
        with self._crew.changed:
            if not self._flying or header.step < self._flying[0].number:
                return  # of one that is back, for a round that nobody waits for any more
            self._results.setdefault(header.step, {})[header.stage] = header
            self._crew.changed.notify_all()

    def _expect(self, header: FrameHeader) -> None:
        right = self._crew.roster.has_been(header.stage, header.device)
        if header.kind != "result" or not right or header.tensors:
            raise WireError(
                f"the coordinator expects results of members (got {header.kind[:40]!r} from "
                f"member {header.stage} on {header.device})."
            )


def _read_inputs(sliced: Sliced, rank: int) -> tuple[str, ...]:
    """What a member needs of the data owner."""
    group, number = sliced.members[rank]
    programs = (s.programs[number] for s in sliced.segments if s.group == group)
    names = (v.name for p in programs if p is not None for v in p.inputs if is_external(v.name))
    return tuple(dict.fromkeys(names))


def _mean(heard: Sequence[FrameHeader], n_samples: int, seconds: float) -> RoundResult:
    """The mean of what members say that compute the loss; each has another view of what was lost.

    NaN where the only ones that do have vanished.
    """
    told = [header.scalars for header in heard if "loss" in header.scalars]
    if not told:
        return RoundResult(math.nan, {}, n_samples, seconds)
    metrics = [metrics_in(scalars) for scalars in told]
    return RoundResult(
        fmean(scalars["loss"] for scalars in told),
        {name: fmean(each[name] for each in metrics) for name in metrics[0]},
        n_samples,
        seconds,
    )


def _joined(results: Sequence[RoundResult]) -> RoundResult:
    """Means over the samples of several rounds."""
    n_samples = sum(each.n_samples for each in results)

    def mean(values: Iterable[float]) -> float:
        weighted = (v * r.n_samples for v, r in zip(values, results, strict=True))
        return sum(weighted) / n_samples

    return RoundResult(
        mean(each.loss for each in results),
        {name: mean(each.metrics[name] for each in results) for name in results[0].metrics},
        n_samples,
        sum(each.seconds for each in results),
    )
