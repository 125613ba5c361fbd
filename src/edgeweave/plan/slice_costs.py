"""What a step of super neurons takes, and what losses leave of it: a model beside EdgePipe's.

EdgePipe counts slots, all alike, and chooses groups by the number of layers and devices alone
(``super_neurons``). Here seconds are those that devices measured, messages take what links take,
and losses count too::

    turn(group)     = sum over its segments of the slowest member's seconds, and of the exchanges
                      between them, forward and backward, and the update
    member          = sum over units of ( fixed + share * ( whole - fixed ) ), and its messages
    step            = max( longest turn, busiest link )          groups overlap, as in a pipeline
    kept            = 1 / product over exchanges, both ways, of ( 1 + share * p / (1 - p) )
    progress        = kept / step                                what a plan is chosen by

``fixed`` is what a unit takes however few samples it is given, which slices do not share: Python's
dispatch. Every message takes ``message_seconds`` of both of its ends, whatever its size.

``p`` is the loss of a link and ``share`` what comes over it of all that a member reads: scaled by
``1 / (1 - p)``, what arrives has the relative variance ``p / (1 - p)``, which layers pass on. A
gradient whose square is so many times larger on average is worth that many times less: with noise,
SGD needs as many more steps (McCandlish et al., arXiv:1812.06162, section 2.2). Sent reliably,
nothing is lost, and messages wait for what is sent again (``core.loss``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from edgeweave.core.errors import PlanError
from edgeweave.plan.costs import Costs, DeviceCosts
from edgeweave.plan.links import Link
from edgeweave.plan.reception import LEAST_SHARE
from edgeweave.plan.schedule import most_in_flight
from edgeweave.program import Program, Sliced, Value, value_bytes

__all__ = ["SliceCosts", "SliceModel"]

_Way = Literal["forward_seconds", "backward_seconds"]
_WAYS: Final[tuple[_Way, ...]] = get_args(_Way)


@dataclass(frozen=True, slots=True)
class SliceCosts:
    """What a plan is predicted to take and to lose."""

    step_seconds: float
    kept: float
    """Of what a step teaches, the share that losses leave."""
    transfer_bytes: float
    """Between devices, for each step."""
    lost_share: float = 0.0
    """Of these bytes, what is expected not to arrive."""

    @property
    def progress(self) -> float:
        """Steps without loss that are worth a second of this. Larger is better."""
        return self.kept / self.step_seconds if self.step_seconds else math.inf


@dataclass(frozen=True, slots=True)
class _Message:
    sender: int
    receiver: int
    source: int
    """Segment."""
    target: int
    forward_bytes: float
    backward_bytes: float


@dataclass(frozen=True, slots=True)
class _Work:
    """A member's part of a segment: unit -> its share of that unit's work."""

    shares: dict[int, float]

    def seconds(self, whole: Sequence[float], fixed: Sequence[float] | None) -> float:
        """``fixed`` is what units take that no slice shares, None: nothing."""
        found = 0.0
        for unit, share in self.shares.items():
            alone = 0.0 if fixed is None else min(fixed[unit], whole[unit])
            found += alone + share * (whole[unit] - alone)
        return found


class SliceModel:
    """A program in slices, and what they take on whom. ``costs`` are for microbatches of ``batch``
    samples, and of the same program; ``fixed`` are for one sample, by device, where that is known.
    """

    def __init__(
        self,
        sliced: Sliced,
        costs: Costs,
        batch: int,
        fixed: Mapping[str, DeviceCosts] | None = None,
    ) -> None:
        self._fixed = fixed or {}
        self._sliced = sliced
        self._costs = costs
        self._devices = {each.device: each for each in costs.devices}
        units = {unit: index for index, unit in enumerate(sliced.program.unit_numbers)}
        whole = _amounts(sliced.program, batch)
        ranks = {who: rank for rank, who in enumerate(sliced.members)}
        self._work: list[dict[int, _Work]] = [{} for _ in sliced.members]
        for number, segment in enumerate(sliced.segments):
            for member, program in enumerate(segment.programs):
                if program is not None:
                    own = _amounts(program, batch)
                    shares = {
                        units[unit]: own[unit] / whole[unit]
                        for unit in own.keys() & units.keys()
                        if whole[unit]
                    }
                    self._work[ranks[segment.group, member]][number] = _Work(shares)
        messages = _messages(sliced, batch)
        self._remote = [each for each in messages if each.sender != each.receiver]
        self._handled: dict[tuple[int, int], int] = {}
        """Messages that a member receives or sends at a segment, by segment and rank."""
        for each in self._remote:
            for end in ((each.target, each.receiver), (each.source, each.sender)):
                self._handled[end] = self._handled.get(end, 0) + 1
        self._reads: dict[tuple[int, int], list[_Message]] = {}
        """What members read at the beginning of each segment, by segment and rank."""
        for each in messages:
            self._reads.setdefault((each.target, each.receiver), []).append(each)

    @property
    def n_members(self) -> int:
        return len(self._sliced.members)

    def costs(self, devices: Sequence[str], *, reliable: bool) -> SliceCosts:
        """If member ``m`` is ``devices[m]``."""
        turns = [
            self._turn(group, devices, reliable=reliable)
            for group in range(len(self._sliced.groups))
        ]
        sent = sum(each.forward_bytes + each.backward_bytes for each in self._remote)
        return SliceCosts(
            step_seconds=max(*turns, self._busiest(devices)),
            kept=1.0 if reliable else self._kept(devices),
            transfer_bytes=sent,
            lost_share=0.0 if reliable or not sent else self._lost_bytes(devices) / sent,
        )

    def member_seconds(self, rank: int, device: str) -> float:
        """What a member computes and handles in a step, the update included."""
        seconds = self._update_seconds(rank, device)
        for segment in range(len(self._sliced.segments)):
            seconds += sum(self._segment_seconds(segment, rank, device, way) for way in _WAYS)
        return seconds

    def weights_share(self, rank: int) -> float:
        """Of all trainable bytes, what a member holds."""
        whole = sum(unit.trainable_bytes for unit in self._costs.units)
        return self._trainable_bytes(rank) / whole if whole else 0.0

    def check_memory(self, devices: Sequence[str]) -> None:
        """``PlanError`` if a member does not fit its device."""
        groups = self._sliced.groups
        for rank, (group, _) in enumerate(self._sliced.members):
            device = self._devices[devices[rank]]
            limit = device.memory_limit_bytes
            held = most_in_flight(group, len(groups), 0)
            needed = sum(
                share * self._unit_bytes(unit, held)
                for work in self._work[rank].values()
                for unit, share in work.shares.items()
            )
            if limit is not None and needed > limit:
                raise PlanError(
                    f"a slice of group {group} needs {needed:.0f} bytes on {device.device} "
                    f"(limit: {limit}). Lower batch_size or add a device."
                )

    def _unit_bytes(self, unit: int, held: int) -> float:
        facts = self._costs.units[unit]
        kept = 1 + self._costs.optimizer_bytes_per_trainable_byte + (held > 1)
        return (
            facts.parameter_bytes
            + facts.buffer_bytes
            + kept * facts.trainable_bytes
            + held * facts.activation_bytes
        )

    def _turn(self, group: int, devices: Sequence[str], *, reliable: bool) -> float:
        segments = [n for n, each in enumerate(self._sliced.segments) if each.group == group]
        members = [r for r, who in enumerate(self._sliced.members) if who[0] == group]
        seconds = max(self._update_seconds(rank, devices[rank]) for rank in members)
        for segment in segments:
            for way in _WAYS:
                seconds += max(
                    self._segment_seconds(segment, rank, devices[rank], way) for rank in members
                )
            inside = [
                each for each in self._remote if each.target == segment and each.source in segments
            ]
            seconds += max(
                (self._arrival(each, devices, reliable=reliable) for each in inside), default=0.0
            )
            seconds += max(
                (self._return(each, devices, reliable=reliable) for each in inside), default=0.0
            )
        return seconds

    def _segment_seconds(self, segment: int, rank: int, device: str, way: _Way) -> float:
        """A member's, of a segment forward or backward, messages included."""
        costs, fixed = self._devices[device], self._fixed.get(device)
        work = self._work[rank].get(segment, _Work({}))
        seconds = work.seconds(getattr(costs, way), None if fixed is None else getattr(fixed, way))
        return seconds + self._handled.get((segment, rank), 0) * costs.message_seconds

    def _update_seconds(self, rank: int, device: str) -> float:
        return self._trainable_bytes(rank) * self._devices[device].update_seconds_per_byte

    def _trainable_bytes(self, rank: int) -> float:
        return sum(
            share * self._costs.units[unit].trainable_bytes
            for work in self._work[rank].values()
            for unit, share in work.shares.items()
        )

    def _arrival(self, each: _Message, devices: Sequence[str], *, reliable: bool) -> float:
        link = self._link(devices[each.sender], devices[each.receiver])
        return _seconds(link, each.forward_bytes, reliable=reliable)

    def _return(self, each: _Message, devices: Sequence[str], *, reliable: bool) -> float:
        link = self._link(devices[each.receiver], devices[each.sender])
        return _seconds(link, each.backward_bytes, reliable=reliable)

    def _busiest(self, devices: Sequence[str]) -> float:
        """Seconds of a step for which the busiest link is occupied."""
        carried: dict[tuple[str, str], float] = {}
        for each in self._remote:
            ends = devices[each.sender], devices[each.receiver]
            for way, n_bytes in ((ends, each.forward_bytes), (ends[::-1], each.backward_bytes)):
                carried[way] = carried.get(way, 0.0) + n_bytes
        return max(
            (n_bytes / self._link(*ends).goodput for ends, n_bytes in carried.items()), default=0.0
        )

    def _lost_bytes(self, devices: Sequence[str]) -> float:
        lost = 0.0
        for each in self._remote:
            ends = devices[each.sender], devices[each.receiver]
            lost += each.forward_bytes * self._link(*ends).loss
            lost += each.backward_bytes * self._link(*ends[::-1]).loss
        return lost

    def _kept(self, devices: Sequence[str]) -> float:
        """One over the growth of a gradient's square, exchange by exchange."""
        growth = 1.0
        for segment in range(len(self._sliced.segments)):
            ranks = [rank for number, rank in self._reads if number == segment]
            for back in (False, True):
                found = [self._variance(segment, rank, devices, back=back) for rank in ranks]
                growth *= 1 + (sum(found) / len(found) if found else 0.0)
        return 1 / growth

    def _variance(self, segment: int, rank: int, devices: Sequence[str], *, back: bool) -> float:
        """Of what a member reads at a segment's beginning, relative to its square; with ``back``
        of the gradients of it, as they are received.
        """
        read = self._reads[segment, rank]
        total = sum(each.forward_bytes for each in read)
        found = 0.0
        for each in read:
            if each.sender == rank or (back and not each.backward_bytes):
                continue
            ends = devices[each.sender], devices[rank]
            loss = min(self._link(*(ends[::-1] if back else ends)).loss, 1 - LEAST_SHARE)
            found += each.forward_bytes / total * loss / (1 - loss)
        return found

    def _link(self, source: str, target: str) -> Link:
        return self._costs.link(source, target)


def _seconds(link: Link, n_bytes: float, *, reliable: bool) -> float:
    """Until a message is there; unreliably, nobody waits for what is lost."""
    if not n_bytes:
        return 0.0
    size = math.ceil(n_bytes)
    waits = link.arrival_seconds(size) if reliable else link.latency_seconds
    return link.occupied_seconds(size) + waits


def _amounts(program: Program, batch: int) -> dict[int, float]:
    """By unit, how much there is to compute: elements of its weights, or of its results if none."""
    trained = {spec.name: math.prod(spec.shape) for spec in program.trainable}
    weights: dict[int, float] = {}
    results: dict[int, float] = {}
    for node in program.nodes:
        used = sum(trained.get(name, 0) for name in set(node.inputs()))
        made = sum(value_bytes(value, batch) for value in node.results)
        weights[node.unit] = weights.get(node.unit, 0.0) + used
        results[node.unit] = results.get(node.unit, 0.0) + made
    return {unit: weights[unit] or results[unit] for unit in weights}


def _messages(sliced: Sliced, batch: int) -> list[_Message]:
    ranks = {who: rank for rank, who in enumerate(sliced.members)}
    values = sliced.program.values()
    found = []
    for transfer in sliced.transfers:
        sender, receiver = (
            ranks[sliced.segments[shard.segment].group, shard.member]
            for shard in (transfer.source, transfer.target)
        )
        value = values[transfer.value]
        n_bytes = _part_bytes(value, transfer.dim, transfer.span, batch)
        back = n_bytes if value.requires_grad else 0.0
        found.append(
            _Message(
                sender, receiver, transfer.source.segment, transfer.target.segment, n_bytes, back
            )
        )
    return found


def _part_bytes(
    value: Value, dim: int | None, span: tuple[tuple[int, int], ...], batch: int
) -> float:
    whole = value_bytes(value, batch)
    if dim is None:
        return whole
    return whole * sum(stop - start for start, stop in span) / value.shape_at(batch)[dim]
