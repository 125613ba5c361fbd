"""Terms that get no new requests and answer what they were sent, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edgeweave.core.clock import Clock
from edgeweave.serving.requests import Shipment
from edgeweave.serving.term import ServingTerm

__all__ = ["OldTerms"]

_DRAINS = 5.0
"""So many times what its requests take, an old term has to answer them. Then they are sent anew."""


class OldTerms:
    """Each is here until it is ended. Not safe from several threads.

    ``give_back`` takes the shipments that an ended term had not answered.
    """

    def __init__(self, clock: Clock, give_back: Callable[[Iterable[Shipment]], None]) -> None:
        self._clock = clock
        self._give_back = give_back
        self._until: dict[ServingTerm, float] = {}

    def __iter__(self) -> Iterator[ServingTerm]:
        return iter(tuple(self._until))

    def add(self, term: ServingTerm, slack_seconds: float) -> None:
        """It has some times what its requests take, and so much more."""
        plan = term.plan
        usual = plan.latency_seconds + plan.in_flight * plan.period_seconds
        self._until[term] = self._clock.now() + _DRAINS * usual + slack_seconds

    def end(self, which: Callable[[ServingTerm], bool]) -> bool:
        """End these, and give back what they have not answered; whether there were any."""
        ended = [term for term in self._until if which(term)]
        for term in ended:
            del self._until[term]
            self._give_back(term.take_back())
        return bool(ended)

    def end_finished(self) -> bool:
        """End those that have answered all, and those whose time is over."""
        now = self._clock.now()
        return self.end(lambda term: term.is_empty or now > self._until[term])

    def close(self) -> None:
        """Hear nothing more of any of them."""
        for term in self._until:
            term.close()
        self._until.clear()
