"""One peer of a gossip run as a state machine: events in, effects out. No clock, thread or socket.

    start --fresh-----> gathers --all edges open, or patience is over--> works --> finished
          --returning-> returns --a neighbour's model came, or patience is over-^

    works:  begin: Send models, Train  ->  trained, and nothing waited for:  mix, update, begin

Whoever runs it performs the effects and tells what happened: ``edgeweave.device.peers.run`` on a
device with its clock, ``edgeweave.gossip.virtual`` for a thousand peers on a virtual one. Moments
are seconds on that clock.

A neighbour that is lost is mixed with no more; one that is found is greeted, and mixed with once
both ends agree (``Sessions``). Nobody waits for ever: a neighbour that is there and says nothing
loses its edge after a deadline, learnt from how long such waits took, and is greeted anew; so is
one of whose messages one was lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from edgeweave.mixing.balance import Balance
from edgeweave.mixing.message import Effect, Finished, Message, Send, Train, Trained, Wake
from edgeweave.mixing.sessions import Sessions
from edgeweave.mixing.settings import GossipSettings, exchange_of, graph_of

__all__ = ["Apply", "Peer", "PeerStatistics"]

Apply = Callable[[torch.Tensor, int], torch.Tensor]
"""The optimizer: the model that the gradient computed last makes of a model, in a step."""

Phase = Literal["waits", "gathers", "returns", "works", "finished"]

_WAITS_BEFORE_LEARNT = 5
_TIMES_THE_LONGEST = 8.0
_LONGEST_KEPT = 0.99
_LEAST_PATIENCE_SECONDS = 2.0
_GATHERING_SECONDS = 10.0
"""How long the first iteration waits for all neighbours, or for the model of one."""
_RETRY_SECONDS = 3.0
"""Between two greetings of a neighbour that is there and does not answer."""


@dataclass(slots=True)
class PeerStatistics:
    """What a peer did so far. Lists have an entry for every iteration."""

    busy_seconds: list[float] = field(default_factory=list)
    """Training, scoring, mixing and updating; waiting for others is not in it."""
    waited_seconds: list[float] = field(default_factory=list)
    n_samples: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    scoring_seconds: float = 0.0
    bytes_sent: int = 0
    n_closed: int = 0
    """Edges lost so far, and edges given up because nothing came over them."""


class Peer:
    """One device's part in a run. Every event returns the effects it has."""

    def __init__(
        self,
        settings: GossipSettings,
        me: str,
        model: torch.Tensor,
        *,
        steps: int,
        apply: Apply,
        incarnation: int,
        patience_seconds: float,
    ) -> None:
        self.me = me
        self.phase: Phase = "waits"
        self.step = 0
        self.steps = steps
        self.statistics = PeerStatistics()
        self._settings = settings
        self._apply = apply
        self._patience = patience_seconds
        self._neighbours = graph_of(settings).neighbours(me)
        self._exchange = exchange_of(settings, me, model)
        self._sessions = Sessions(incarnation)
        scoring = settings.scoring if settings.selects else None
        self._balance = Balance(settings.balance, settings.batch_size, scoring)
        self._present: set[str] = set()
        self._gone: set[str] = set()
        self._effects: list[Effect] = []
        self._began = 0.0
        self._deadline = self._retry_at = float("inf")
        self._trained: Trained | None = None
        self._trained_at = 0.0
        self._training = False
        self._local = 0
        self._n_waits = 0
        self._longest_wait = 0.0

    @property
    def model(self) -> torch.Tensor:
        """The model now."""
        return self._exchange.model

    @property
    def open_peers(self) -> tuple[str, ...]:
        """Neighbours that are mixed with."""
        return self._sessions.open_peers()

    @property
    def neighbours(self) -> tuple[str, ...]:
        """Neighbours in the graph."""
        return self._neighbours

    def start(self, now: float, *, returning: bool = False) -> list[Effect]:
        """Begin; ``returning`` takes a neighbour's model and step before it trains."""
        self.phase = "returns" if returning else "gathers"
        self._deadline = now + min(self._patience, _GATHERING_SECONDS)
        self._effects.append(Wake(self._deadline))
        for peer in sorted(self._present):
            self._greet(peer)
        return self._proceed(now)

    def found(self, now: float, peer: str) -> list[Effect]:
        """A neighbour is there."""
        if peer in self._neighbours:
            self._present.add(peer)
            self._gone.discard(peer)
            if self.phase != "waits" and not self._sessions.is_open(peer):
                self._greet(peer)
        return self._proceed(now)

    def lost(self, now: float, peer: str) -> list[Effect]:
        """A neighbour is not there any more."""
        self._present.discard(peer)
        self._close(peer)
        return self._proceed(now)

    def heard(self, now: float, peer: str, message: Message) -> list[Effect]:
        """A message came. What is of no session of now is dropped."""
        if self.phase == "waits":
            return []
        self._balance.hear(message.scalars)
        if message.kind == "hello":
            self._hello(peer, message)
        elif message.kind == "state":
            self._take_state(message)
        elif self._sessions.is_current(peer, message.scalars):
            if not self._sessions.follows(peer, message.scalars):
                # Ends that do not mix the same pairs of messages would change the mean, and a
                # coded difference would be added to another model than it was taken from.
                self._close(peer)
                self._greet(peer)
            elif message.kind == "bye":
                self._gone.add(peer)
                self._sessions.close(peer)
                self._exchange.closed(peer)
            else:
                self._send(self._exchange.heard(peer, message))
        return self._proceed(now)

    def trained(self, now: float, trained: Trained) -> list[Effect]:
        """The gradient that ``Train`` asked for is there."""
        self._training = False
        self._trained, self._trained_at = trained, now
        self._balance.learn(trained)
        seconds = trained.seconds + trained.scoring_seconds + trained.other_seconds
        self.statistics.busy_seconds.append(seconds)
        self.statistics.n_samples.append(trained.n_samples)
        self.statistics.losses.append(trained.loss)
        self.statistics.scoring_seconds += trained.scoring_seconds
        return self._proceed(now)

    def woke(self, now: float) -> list[Effect]:
        """A moment asked for by ``Wake`` has come."""
        if now >= self._deadline:
            self._deadline = float("inf")
            if self.phase in ("gathers", "returns"):
                self.phase = "works"
            elif self._trained is not None:
                self._give_up(self._exchange.waits_for())
            elif not self._training:
                self._give_up(self.open_peers)
        if now >= self._retry_at:
            self._retry_at = float("inf")
            for peer in sorted(self._unanswered()):
                self._greet(peer)
        return self._proceed(now)

    def stop(self, now: float) -> list[Effect]:
        """Do no more steps, as if all were done: the model stays, neighbours go on without."""
        if self.phase in ("gathers", "returns", "works"):
            self._end()
        return self._taken()

    def leave(self, now: float) -> list[Effect]:
        """Leave before the end, handing on what must not be lost."""
        if self.phase != "finished":
            self._send(self._exchange.farewell())
            self._say_bye()
            self.phase = "finished"
        return self._taken()

    def _unanswered(self) -> set[str]:
        """Neighbours that are there, and with whom no edge is open."""
        return {p for p in self._present - self._gone if not self._sessions.is_open(p)}

    def _proceed(self, now: float) -> list[Effect]:
        """Do whatever can be done, and return all effects so far."""
        if self.phase == "gathers" and all(map(self._sessions.is_open, self._neighbours)):
            self.phase = "works"
        if self.phase == "works" and self._trained is None and not self._training:
            self._begin_when_possible(now)
        while self.phase == "works" and self._trained is not None:
            if self._is_last_local and self._exchange.waits_for():
                self._watch(now, self._patience_now())
                break
            self._finish_step(now)
        if self._retry_at == float("inf") and self.phase != "waits" and self._unanswered():
            self._retry_at = now + _RETRY_SECONDS
            self._effects.append(Wake(self._retry_at))
        return self._taken()

    @property
    def _is_last_local(self) -> bool:
        return self._local == self._settings.local_steps - 1

    def _begin_when_possible(self, now: float) -> None:
        if self._training or self._trained is not None:
            return
        if self.step >= self.steps:
            self._end()
            return
        if not self._exchange.can_begin():
            self._watch(now, self._patience)
            return
        self._deadline = float("inf")
        if self._local == 0:
            self._send(self._exchange.begin())
        self._began = now
        self._training = True
        train = Train(self._exchange.model, self._balance.n_samples(), self.step)
        self._effects.append(train)

    def _finish_step(self, now: float) -> None:
        if self._is_last_local:
            self._learn_wait(now - self._trained_at)
            self._exchange.finish()
        self.statistics.waited_seconds.append(now - self._trained_at)
        self._exchange.replace(self._apply(self._exchange.model, self.step))
        self._local = 0 if self._is_last_local else self._local + 1
        self._trained, self._deadline = None, float("inf")
        self.step += 1
        self._begin_when_possible(now)

    def _end(self) -> None:
        self.phase = "finished"
        if not self._exchange.goes_on:
            self._say_bye()
        self._effects.append(Finished())

    def _say_bye(self) -> None:
        for peer in self._sessions.open_peers():
            self._send([Send(peer, Message("bye"))])

    def _watch(self, now: float, patience_seconds: float) -> None:
        """Wait for neighbours, until a deadline."""
        if self._deadline == float("inf"):
            self._deadline = now + patience_seconds
            self._effects.append(Wake(self._deadline))

    def _patience_now(self) -> float:
        if self._n_waits < _WAITS_BEFORE_LEARNT:
            return self._patience
        learnt = max(_TIMES_THE_LONGEST * self._longest_wait, _LEAST_PATIENCE_SECONDS)
        return min(learnt, self._patience)

    def _learn_wait(self, seconds: float) -> None:
        self._n_waits += 1
        self._longest_wait = max(_LONGEST_KEPT * self._longest_wait, seconds)

    def _give_up(self, peers: tuple[str, ...]) -> None:
        """Whoever is still waited for says nothing: go on without, and greet anew."""
        for peer in peers:
            self._close(peer)

    def _hello(self, peer: str, message: Message) -> None:
        heard = self._sessions.hello(peer, message.scalars)
        if peer not in self._neighbours:
            self._neighbours = (*self._neighbours, peer)
        self._present.add(peer)
        self._gone.discard(peer)
        if heard.closes:
            self._lose(peer)
        if heard.answers:
            # Before what follows: it is the answer that opens the other end.
            self._say_hello(peer, self._sessions.stamp(peer))
        if heard.opens:
            number = int(message.scalars.get("round", 0))
            incarnation = self._sessions.incarnation_of(peer)
            self._send(self._exchange.opened(peer, incarnation=incarnation, round_number=number))
            if self.phase == "finished" and not self._exchange.goes_on:
                self._send([Send(peer, Message("bye"))])  # or the other end would wait for models
        wants = message.scalars.get("wants", 0.0) > 0
        if wants and self.phase in ("works", "finished"):
            scalars = {"step": float(self.step)}
            self._effects.append(Send(peer, Message("state", scalars, self._exchange.model)))
            self.statistics.bytes_sent += self._exchange.model.nbytes

    def _take_state(self, message: Message) -> None:
        if self.phase != "returns" or message.tensor is None:
            return
        if message.tensor.shape != self._exchange.model.shape:
            return
        self._exchange.adopt(message.tensor)
        self.step = min(int(message.scalars.get("step", 0)), self.steps)
        self._deadline = float("inf")
        self.phase = "works"

    def _greet(self, peer: str) -> None:
        if self._sessions.is_open(peer):
            return
        self._say_hello(peer, self._sessions.greet(peer))

    def _say_hello(self, peer: str, numbers: dict[str, float]) -> None:
        scalars = {
            **numbers,
            "round": float(self._exchange.round_number),
            "wants": float(self.phase == "returns"),
        }
        self._effects.append(Send(peer, Message("hello", {**scalars, **self._balance.tell()})))

    def _close(self, peer: str) -> None:
        if self._sessions.close(peer):
            self._lose(peer)

    def _lose(self, peer: str) -> None:
        self.statistics.n_closed += 1
        self._exchange.closed(peer)

    def _send(self, sends: list[Send]) -> None:
        told = self._balance.tell()
        for send in sends:
            message = send.message
            scalars = {**message.scalars, **self._sessions.number(send.to), **told}
            self.statistics.bytes_sent += message.n_bytes
            stamped = Message(message.kind, scalars, message.tensor, message.coded)
            self._effects.append(Send(send.to, stamped))

    def _taken(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
