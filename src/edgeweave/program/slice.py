"""Cut a program in depth and width: super neurons (EdgePipe, Yoon et al.; DESIGN section 10).

A *group* of devices has consecutive units, and each of its members a slice of every layer in them.
A member's part is a chain of *segments*, programs that run without hearing from anybody. Between
two segments members *exchange*: who needs neurons that others computed gets them, by transfers::

    group 0, two members            group 1, one member
    linear a  |  linear b           linear ...
       \\__ exchange __/   ->  all of it goes to group 1
    linear a' |  linear b'

What has no parameters and needs all neurons (a loss, a softmax over classes) is computed whole by
every member. Vertical and horizontal allocation are the same with other groups: one device each, or
one group of all. Deviations from EdgePipe: layers are the program's units; inputs and targets come
whole from their owner. Values in, values out: ``edgeweave.program.slicing_rules`` knows operators,
``sliced_state`` tensors; nobody here knows of devices or loss.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgeweave.core.errors import CaptureError, PlanError
from edgeweave.program.fragments import Arrivals, Step, fragment
from edgeweave.program.graph import SHARED_UNIT, Node, Program, Value
from edgeweave.program.shares import Asked, Mode, Ruling, Share, Surroundings, TooFine
from edgeweave.program.slicing_rules import rule
from edgeweave.program.spans import size
from edgeweave.program.transfers import Held, Segment, Transfer, transfers_to

__all__ = ["Group", "Sliced", "slice_program"]


@dataclass(frozen=True, slots=True)
class Group:
    """Units ``first`` to ``stop - 1``, sliced over so many members."""

    first: int
    stop: int
    n_members: int


@dataclass(frozen=True, slots=True)
class Sliced:
    """A program in slices. Segments are numbered in the order in which they run."""

    program: Program
    groups: tuple[Group, ...]
    mode: Mode
    segments: tuple[Segment, ...]
    transfers: tuple[Transfer, ...]
    """All that members hand each other for one microbatch, forward."""
    state: Mapping[str, tuple[int, Asked]]
    """What training changes -> the group that holds it, and how it is cut over its members."""
    held: Mapping[str, Held]
    """Where each value lies that leaves its segment."""

    @property
    def members(self) -> tuple[tuple[int, int], ...]:
        """``(group, member)`` of each, in order."""
        return tuple(
            (number, member)
            for number, group in enumerate(self.groups)
            for member in range(group.n_members)
        )

    def n_layers(self, group: int) -> int:
        """How many of a group's units have weights: EdgePipe's layers, a slot each."""
        first, stop = self.groups[group].first, self.groups[group].stop
        trained = {spec.name for spec in self.program.trainable}
        return len(
            {
                node.unit
                for node in self.program.nodes
                if first <= node.unit < stop and not trained.isdisjoint(node.inputs())
            }
        )


def slice_program(
    program: Program,
    groups: Sequence[Group],
    mode: Mode = "exchange",
    *,
    sums_last: bool = True,
) -> Sliced:
    """Cut ``program`` for groups that have its units in order.

    With ``sums_last`` the last linear layer is cut by the neurons before it: each member sums its
    own, and the sums are exchanged. Then a device that is lost costs a part of every output, where
    it would cost its outputs whole (all samples of some classes).

    Raises ``CaptureError`` for a layer that cannot be sliced, naming the user's line, and
    ``PlanError`` for groups that do not fit the program.

    Below, a member has three of six neurons, and sums them in the last layer.

    >>> import torch
    >>> from edgeweave.program import capture
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> example = torch.zeros(3, 4), torch.tensor([0, 1, 1])
    >>> captured = capture(model, torch.nn.functional.cross_entropy, *example)
    >>> sliced = slice_program(captured.program, [Group(0, 3, 2)])
    >>> [spec.shape for spec in sliced.segments[0].programs[0].state]
    [(3, 4), (3,), (2, 3), (1,)]
    """
    _check_groups(program, groups)
    granules: dict[int, int] = {}
    summed = _last_linear(program) if sums_last else set[int]()
    while True:
        try:
            return _Walk(program, groups, mode, granules, summed).sliced()
        except TooFine as too_fine:
            granules |= too_fine.granules


def _last_linear(program: Program) -> set[int]:
    """The node of the last layer with weights, if it is linear."""
    weights = {spec.name for spec in program.trainable if len(spec.shape) > 1}
    found = [i for i, node in enumerate(program.nodes) if not weights.isdisjoint(node.inputs())]
    return {i for i in found[-1:] if program.nodes[i].op == "aten.linear.default"}


def _check_groups(program: Program, groups: Sequence[Group]) -> None:
    units = program.unit_numbers
    edges = [group.first for group in groups] + [groups[-1].stop if groups else -1]
    follow = all(a.stop == b.first for a, b in pairwise(groups))
    if not groups or sorted(set(edges)) != edges or not follow:
        raise PlanError(f"groups of units follow each other and are not empty (got {groups}).")
    if (edges[0], edges[-1]) != (units[0], units[-1] + 1):
        raise PlanError(
            f"groups cover units {units[0]} to {units[-1]} (got {edges[0]} to {edges[-1] - 1})."
        )
    if any(group.n_members < 1 for group in groups):
        raise PlanError(f"a group has a member or more (got {groups}).")


class _Walk:
    """Goes through the nodes once and decides where each is computed, and in which form."""

    def __init__(
        self,
        program: Program,
        groups: Sequence[Group],
        mode: Mode,
        granules: Mapping[int, int],
        summed: Collection[int],
    ) -> None:
        self._summed = summed
        self._program, self._groups, self._mode = program, tuple(groups), mode
        self._granules = granules
        trained = set(program.trained)
        self._cut_state = {spec.name: spec for spec in program.state if spec.name in trained}
        self._values = program.values() | {
            spec.name: Value(spec.name, spec.dtype, spec.shape) for spec in program.state
        }
        self._everywhere = {spec.name for spec in program.state} - trained
        self._everywhere |= {
            value.name
            for node in program.nodes
            if node.unit == SHARED_UNIT
            for value in node.results
        }
        self._everywhere |= {value.name for value in program.inputs}
        self._held: dict[str, Held] = {}
        self._state: dict[str, tuple[int, Asked]] = {}
        self._users: dict[str, int] = {}
        self._steps: list[list[Step]] = []
        self._group_of: list[int] = []
        self._arrivals: list[dict[str, Asked]] = []

    def sliced(self) -> Sliced:
        """The whole cut."""
        for index, node in enumerate(self._program.nodes):
            if node.unit != SHARED_UNIT:
                self._place(index, node)
        segments = tuple(self._segment(number) for number in range(len(self._steps)))
        transfers = tuple(
            transfer
            for number, segment in enumerate(segments)
            for transfer in transfers_to(number, segments, self._held)
            if _reads(segment.programs[transfer.target.member], transfer.value)
        )
        return Sliced(
            self._program, self._groups, self._mode, segments, transfers, self._state, self._held
        )

    def _place(self, index: int, node: Node) -> None:
        group = next(
            number
            for number, each in enumerate(self._groups)
            if each.first <= node.unit < each.stop
        )
        if not self._steps or self._group_of[-1] != group:
            self._begin(group)
        ruling = self._rule(index, node, group)
        if any(self._is_far(name, asked) for name, asked in ruling.reads.items()):
            self._begin(group)
        here = len(self._steps) - 1
        for name, asked in ruling.reads.items():
            if name in self._cut_state:
                self._keep_state(node, name, group, asked)
            elif name not in self._everywhere and self._held[name].segment != here:
                self._arrive(name, asked)
        self._steps[-1].append(Step(node, ruling))
        for value, share in zip(node.results, ruling.results, strict=True):
            self._held[value.name] = Held(here, share)

    def _begin(self, group: int) -> None:
        self._steps.append([])
        self._group_of.append(group)
        self._arrivals.append({})

    def _rule(self, index: int, node: Node, group: int) -> Ruling:
        n_members = self._groups[group].n_members
        if n_members == 1:
            return Ruling(dict.fromkeys(node.inputs(), ()), (None,) * len(node.results))
        mine = {n: h for n, h in self._held.items() if self._group_of[h.segment] == group}
        here = len(self._steps) - 1
        around = Surroundings(
            values=self._values,
            cut_state=self._cut_state,
            n_members=n_members,
            mode=self._mode,
            held={name: held.lies for name, held in mine.items()},
            latest={name for name, held in mine.items() if held.segment == here},
            granules=self._granules,
            summed=self._summed,
        )
        ruling = rule(around, index, node)
        if self._mode == "grouped":
            _check_grouped(node, ruling, n_members)
        return ruling

    def _is_far(self, name: str, asked: Asked) -> bool:
        """Whether the latest segment made this value, but in a form that members must exchange."""
        held = self._held.get(name)
        if held is None or held.segment != len(self._steps) - 1 or held.lies is None:
            return False
        return asked != (held.lies,)

    def _arrive(self, name: str, asked: Asked) -> None:
        """Note what the latest segment needs from before; two wishes make the whole."""
        before = self._arrivals[-1].setdefault(name, asked)
        held = self._held[name].lies
        other = isinstance(held, Share) and any(share.dim != held.dim for share in asked)
        if before != asked or other:
            self._arrivals[-1][name] = ()

    def _keep_state(self, node: Node, name: str, group: int, asked: Asked) -> None:
        here = len(self._steps) - 1
        if self._users.setdefault(name, here) != here or self._state.get(name) not in (
            None,
            (group, asked),
        ):
            raise CaptureError(
                f"what is trained is used between two exchanges, cut in one way ({name} is used "
                f"again by {node.op}{node.source}). Untie it, or give its uses to one device."
            )
        self._state[name] = group, asked

    def _segment(self, number: int) -> Segment:
        later = {name for arrivals in self._arrivals[number + 1 :] for name in arrivals}
        made = {value.name for step in self._steps[number] for value in step.node.results}
        group = self._group_of[number]
        n_members = self._groups[group].n_members
        arrivals = Arrivals(self._arrivals[number], self._held)
        programs = tuple(
            fragment(
                self._program,
                self._steps[number],
                arrivals,
                member,
                outputs=[name for name in self._program.values() if name in later & made],
                state=self._state,
            )
            for member in range(n_members)
        )
        return Segment(
            group=group,
            programs=programs,
            asked=self._arrivals[number],
            loss_weight=1.0 / n_members,
        )


def _reads(program: Program | None, name: str) -> bool:
    return program is not None and any(value.name == name for value in program.inputs)


def _check_grouped(node: Node, ruling: Ruling, n_members: int) -> None:
    for asked in ruling.reads.values():
        for share in asked:
            if len(asked) == 2 and any(size(span) == 0 for span in share.spans):
                raise PlanError(
                    f"grouped slices give each of {n_members} devices a neuron of every layer "
                    f"({node.op}{node.source} has fewer). Use fewer devices, or exchange."
                )
