"""What a member makes of messages that came whole, in part or not at all: masks, and their scale.

What is lost counts as zero. What came is scaled by one over the share that arrives from its sender
in the long run, learnt from every message before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from edgeweave.codec import kept, put_together
from edgeweave.device.slices.member_messages import Message
from edgeweave.device.slices.messages import SenderStatistics
from edgeweave.device.slices.parcels import Parcel, Parcels
from edgeweave.device.slices.roster import Roster
from edgeweave.plan import Reception
from edgeweave.program import DTYPES

__all__ = ["Factor", "Hearing"]

Factor = torch.Tensor | float
"""What was multiplied with what a message brought: 0.0 if nothing came."""


@dataclass(slots=True)
class _Heard:
    """What came of one other member, from the device it is on."""

    device: str
    reception: Reception = field(default_factory=Reception)
    datagrams: int = 0
    arrived: int = 0
    masked: int = 0


class Hearing:
    """All that one member hears of others. For its compute thread."""

    def __init__(self, roster: Roster, parcels: Parcels) -> None:
        self._roster = roster
        self._parcels = parcels
        self._heard: dict[int, _Heard] = {}

    def opened(
        self, parcel: Parcel | None, message: Message, sender: int, *, samples: int, reliable: bool
    ) -> tuple[torch.Tensor | None, Factor]:
        """A message's tensor, scaled, and by what. None: its sender has no part in this round."""
        heard = self._heard_of(sender)
        if parcel is None or (parcel.outcome in ("nothing", "gone") and not parcel.n_arrived):
            heard.masked += 1
            return None, 0.0
        n_arrived, n_sent = parcel.n_arrived, parcel.count or message.n_datagrams(samples)
        scale = 1.0
        if not reliable:
            heard.datagrams += n_sent
            heard.arrived += n_arrived
            heard.reception = heard.reception.seen(n_arrived, n_sent)
            scale = heard.reception.scale
        if not n_arrived:
            heard.masked += 1
            return None, 0.0
        shape, dtype = message.shape(samples), DTYPES[message.value.dtype]
        tensor = put_together(shape, dtype, parcel.count, parcel.numbers, parcel.rows)
        tensor = tensor if scale == 1.0 else tensor * scale
        if n_arrived == n_sent:
            return tensor, scale
        return tensor, kept(shape, parcel.arrived).to(dtype) * scale

    def _heard_of(self, sender: int) -> _Heard:
        """Of a member that has moved nothing is known: its link is another one."""
        device, known = self._roster.device_of(sender), self._heard.get(sender)
        if known is None or known.device != device:
            known = self._heard[sender] = _Heard(device)
        return known

    def statistics(self) -> tuple[SenderStatistics, ...]:
        """What came of each other member so far."""
        return tuple(
            SenderStatistics(
                sender=heard.device,
                datagrams=heard.datagrams,
                arrived=heard.arrived,
                masked=heard.masked,
                overdue=self._parcels.overdue.get(rank, 0),
                late=self._parcels.late.get(rank, 0),
                share=heard.reception.share,
            )
            for rank, heard in sorted(dict(self._heard).items())
        )
