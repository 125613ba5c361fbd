"""Which frames a member takes: everything that its program and its place do not declare is refused
before anything is allocated for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeweave.core.errors import WireError
from edgeweave.device.place import COORDINATOR
from edgeweave.device.slices.member_frames import check_rows
from edgeweave.device.slices.member_messages import Message
from edgeweave.device.slices.messages import SliceAssignment
from edgeweave.device.slices.roster import Roster
from edgeweave.net import FrameHeader
from edgeweave.program import Value

__all__ = ["SliceChecks"]


class SliceChecks:
    """Of one member. ``expect`` raises ``WireError`` for what it does not take."""

    def __init__(
        self,
        assignment: SliceAssignment,
        messages: Sequence[Message],
        external: Mapping[str, Value],
        roster: Roster,
    ) -> None:
        self._assignment = assignment
        self._messages = messages
        self._external = external
        self._roster = roster
        self._me = assignment.peer(assignment.stage)

    def expect(self, header: FrameHeader) -> None:
        """Refuse what the program does not declare, before anything is allocated for it."""
        samples = header.scalars.get("samples", -1.0)
        if not 0 <= samples <= self._assignment.microbatch_size or samples != int(samples):
            raise WireError(
                f"{self._me} expects 0 to {self._assignment.microbatch_size} samples "
                f"(got {samples} from {header.device})."
            )
        if header.kind == "input":
            self._expect_input(header, int(samples))
            return
        message = self._message(header)
        count = self._check_number(header, "of")
        known = message.n_datagrams(int(samples))
        if count not in ((1, known) if header.tensors else (0,)):
            raise WireError(
                f"{self._me} expects {message.value.name} in 1 or {known} parts, or none "
                f"(got {len(header.tensors)} tensors and {count} from {header.device})."
            )
        if header.tensors:
            try:
                check_rows(header, message, count, int(samples))
            except WireError as error:
                raise WireError(f"{self._me} refuses a frame: {error}") from error

    def _message(self, header: FrameHeader) -> Message:
        """The one that a header is of; ``WireError`` if its sender has none such for me."""
        known = 0 <= header.microbatch < len(self._messages)
        message = self._messages[header.microbatch] if known else None
        ends = None if message is None else (message.sender, message.receiver)
        mine = self._assignment.stage
        expected = {"values": (header.stage, mine), "gradients": (mine, header.stage)}
        right_device = self._roster.has_been(header.stage, header.device)
        if message is None or ends != expected.get(header.kind) or not right_device:
            raise WireError(
                f"{self._me} expects no {header.kind[:40]!r} number {header.microbatch} from "
                f"member {header.stage} ({header.device})."
            )
        return message

    def _check_number(self, header: FrameHeader, name: str) -> int:
        value = header.scalars.get(name, -1.0)
        if not (0 <= value < 2**31 and value == int(value)):
            raise WireError(
                f"{self._me} expects a whole number called {name} (got {value} from "
                f"{header.device})."
            )
        return int(value)

    def _expect_input(self, header: FrameHeader, samples: int) -> None:
        if header.device != self._assignment.coordinator or header.stage != COORDINATOR:
            raise WireError(
                f"{self._me} takes inputs of its coordinator only (got some of {header.device})."
            )
        for name in ("train", "step"):
            self._check_number(header, name)
        for spec in header.tensors:
            value = self._external.get(spec.name)
            expected = None if value is None else (value.dtype, value.shape_at(samples))
            if expected != (spec.dtype, spec.shape):
                raise WireError(
                    f"{self._me} expects {spec.name} as {expected} (got {spec.dtype} "
                    f"{spec.shape} from {header.device})."
                )
