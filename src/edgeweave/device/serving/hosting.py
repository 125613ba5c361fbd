"""What a device has of a run that answers requests, from its first ``Serve`` until it is released.

    serve(term 0) --> stage 0 answers
    serve(term 1) --> stage 0 answers what it was sent, stage 1 answers what is sent from now on
    retire(1)     --> stage 1 answers

Stages of two terms hold a tensor that both need once. Where memory has no room for both, the older
one goes on until the coordinator lets it end for the new one, which it does when all others are
ready; what was not answered then is sent again in the new term.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from edgeweave.core.errors import FleetError, PlanError
from edgeweave.core.units import format_bytes
from edgeweave.device import memory
from edgeweave.device.coordinator_watch import CoordinatorWatch
from edgeweave.device.faults import report_fault
from edgeweave.device.frames.codec import FrameCoding
from edgeweave.device.messages import Pulse, encode_message
from edgeweave.device.place import Place
from edgeweave.device.serving.messages import Serve, Served, ServingStatistics
from edgeweave.device.serving.stage import ServingStage
from edgeweave.device.serving.tally import StageTally
from edgeweave.device.stages.exchange import StageExchange
from edgeweave.device.workplace import Workplace
from edgeweave.program import (
    Program,
    StageProgram,
    cut,
    decode_program,
    decode_state,
    result_bytes,
    state_bytes,
)

__all__ = ["NOTHING_TRAINS", "Hosting"]

_log = logging.getLogger(__name__)

NOTHING_TRAINS = "none"
"""The optimizer under which units of a model that only answers are profiled."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A stage at work."""

    place: Place
    stage: StageProgram
    working: ServingStage
    ends: ExitStack

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return self.stage.fixed_state()


class Hosting:
    """One run's place on this device. ``on_orphaned`` is called when its coordinator vanishes."""

    def __init__(self, run: str, place: Workplace, *, on_orphaned: Callable[[], None]) -> None:
        self.run = run
        self._place = place
        self._changing = threading.RLock()
        self._computing = threading.Lock()
        self._held: dict[int, _Held] = {}
        self._program: Program | None = None
        self._tally = StageTally()
        self._watch = CoordinatorWatch(place, lambda _coordinator: on_orphaned())
        self._moved_before = place.transport.statistics()
        self._cpu_before = time.process_time()
        memory.reset_peak()

    @property
    def is_empty(self) -> bool:
        """Whether no stage is at work."""
        return not self._held

    def deploy(self, message: Serve) -> Served:
        """Put a stage to work beside those of earlier terms. Nothing is done if there is no room
        beside them and they may not end for it.
        """
        with self._changing:
            place = message.place
            held = [self._held[term] for term in sorted(self._held)]
            newest = held[-1].tensors if held else {}
            missing = set(message.own) - newest.keys()
            if missing:
                raise FleetError(
                    f"{place.device} does not hold {sorted(missing)[0]} of run {self.run}, which "
                    "it was said to. Send it along."
                )
            stages = cut(self._whole(message), message.first_units, direct=message.direct)
            program = stages[place.stage]
            sent = tuple(spec for spec in program.state if spec.name not in message.own)
            state = decode_state(message.tensors, sent)
            state.update((name, newest[name]) for name in message.own)
            is_crowded = not self._has_room(place, program, state)
            if is_crowded:
                if not message.makes_room:
                    return Served(is_ready=False)
                _log.info("run %s: stages before term %d make room", self.run, place.term)
                self.retire(place.term)
            torch.set_num_threads(self._place.n_threads)
            device = self._place.torch_device
            stage = StageProgram(program, state, device=device, take_over=True)
            self._held[place.term] = self._begin(message, stage)
            self._watch.follow(place.coordinator)
            return Served(is_ready=True, has_ended_stages=is_crowded)

    def retire(self, before: int, after: int | None = None) -> None:
        """End the stages of earlier terms, and of those behind ``after``."""
        with self._changing:
            ended = [n for n in self._held if n < before or (after is not None and n > after)]
            for term in ended:
                self._held.pop(term).ends.close()
            memory.release_freed()

    def pulse(self) -> Pulse:
        """What the newest stage does now."""
        held = dict(self._held)  # others deploy and retire meanwhile
        return held[max(held)].working.pulse() if held else Pulse(None)

    def statistics(self) -> ServingStatistics:
        """What this device did for the run so far, in all terms."""
        moved, before = self._place.transport.statistics(), self._moved_before
        tally = self._tally.statistics()
        emulated = self._place.settings.speed is not None
        cpu = tally.compute_seconds if emulated else time.process_time() - self._cpu_before
        return ServingStatistics(
            requests=tally.requests,
            refused=tally.refused,
            compute_seconds=tally.compute_seconds,
            wait_seconds=tally.wait_seconds,
            cpu_seconds=cpu,
            bytes_in=moved.bytes_received - before.bytes_received,
            bytes_out=moved.bytes_sent - before.bytes_sent,
            peak_memory_bytes=memory.peak_bytes(),
        )

    def close(self) -> None:
        """Let everything go."""
        with self._changing:
            self._watch.close()
            for held in self._held.values():
                held.ends.close()
            self._held.clear()
        memory.release_freed()

    def _begin(self, message: Serve, stage: StageProgram) -> _Held:
        here, place, usual = self._place, message.place, message.usual_samples
        throttle = here.throttle.on_another_thread()
        exchange = StageExchange(
            place,
            stage.program,
            here.transport,
            fleet=here.settings.fleet,
            clock=here.clock,
            timeouts=here.timeouts,
            throttle=throttle,
        )
        working = ServingStage(
            place,
            stage,
            exchange,
            throttle=throttle,
            clock=here.clock,
            computing=self._computing,
            tally=self._tally,
            usual_samples=usual,
            coding=None if message.codec is None else FrameCoding(message.codec),
            on_fault=lambda error: report_fault(
                error,
                place,
                here.transport,
                fleet=here.settings.fleet,
                timeout_seconds=here.timeouts.request,
            ),
        )
        if here.settings.speed is not None:
            known = here.units.recall(stage.program, usual, NOTHING_TRAINS)
            slowdown = here.slowdown()
            seconds = None if known is None else slowdown * known.forward
            working.rehearse(usual, seconds)
        with ExitStack() as ends:
            ends.enter_context(working)
            return _Held(place, stage, working, ends.pop_all())

    def _whole(self, message: Serve) -> Program:
        """The program of the whole model: the one that came, checked, or the one that is here."""
        if message.graph is not None:
            self._program = decode_program(message.graph, examine=self._examine)
        if self._program is None:
            raise FleetError(
                f"{message.place.device} does not hold the program of run {self.run}, which it "
                "was said to. Send it along."
            )
        return self._program

    def _examine(self, program: Program) -> None:
        self._place.run_task("check", encode_message(program))

    def _has_room(self, place: Place, program: Program, state: dict[str, torch.Tensor]) -> bool:
        """Whether the stage fits beside older ones; ``PlanError`` if it does not even alone."""
        limit = self._place.settings.memory_limit_bytes
        if limit is None:
            return True
        working = sum(result_bytes(program, place.microbatch_size).values())
        needed = working + sum(state_bytes(spec) for spec in program.state)
        if needed > limit:
            raise PlanError(
                f"{place.peer(place.stage)} needs {format_bytes(needed)} to answer "
                f"{place.microbatch_size} samples at once (limit: {format_bytes(limit)}). Add a "
                "device, or raise the limit."
            )
        others = {
            name: tensor.nbytes
            for held in self._held.values()
            for name, tensor in held.tensors.items()
            if name not in state
        }
        return needed + sum(others.values()) <= limit
