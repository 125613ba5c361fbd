"""The agent: one process per device, the same for a real board and an emulated one.

It announces itself, answers requests, and works for at most one run at a time. A run ends here
when it is released; when its coordinator vanishes, what it had computed is kept for a while, or
until another run wants the device. The agent stays.

    idle --profile--> profiling --> idle
    idle --probe----> probing ----> idle
    idle --deploy---> a run ------> idle   (released, coordinator gone; ``serve``, ``slice`` too)
    idle --enrol----> gossip -----> idle   (all steps done, released)
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil
import torch

from edgeweave.core.clock import Clock, SystemClock
from edgeweave.core.errors import ConfigError, DeviceBusy, FleetError
from edgeweave.core.timeouts import Timeouts
from edgeweave.device.facts import read_facts
from edgeweave.device.inquiries import inquiries
from edgeweave.device.messages import (
    Emulate,
    Greeting,
    Pulse,
    Release,
    decode_message,
    encode_message,
)
from edgeweave.device.pacing import UnitMemory
from edgeweave.device.peers.place import PeerPlace
from edgeweave.device.place import Place
from edgeweave.device.probes.cache import ProbeCache
from edgeweave.device.probes.messages import ProbeRequest, ProbeWork, Profile, UnitTimings
from edgeweave.device.run_requests import requests_of_runs
from edgeweave.device.serving.hosting import Hosting
from edgeweave.device.serving.messages import Serve
from edgeweave.device.settings import AgentSettings
from edgeweave.device.slices.messages import DeploySlice
from edgeweave.device.slices.slicing import Slicing
from edgeweave.device.stages.membership import Membership
from edgeweave.device.stages.messages import Deploy, Halt, Holdings
from edgeweave.device.tasks import tasks
from edgeweave.device.throttle import Throttle
from edgeweave.device.workplace import Workplace
from edgeweave.net import Links, Transport, control_key, hello_of
from edgeweave.net.transport import REQUEST_BYTES
from edgeweave.predict.probe import Probe
from edgeweave.program import decode_program

__all__ = ["Agent"]

_log = logging.getLogger(__name__)

_REMEMBERED_RELEASES = 64

_Part = TypeVar("_Part", Membership, Hosting, Slicing)
_Deployed = TypeVar("_Deployed")
"""A run's place here: it trains, it answers, or it has a slice."""


class Agent:
    """Serves one device on a transport, between ``with`` and its end."""

    def __init__(
        self,
        settings: AgentSettings,
        transport: Transport,
        *,
        clock: Clock | None = None,
        timeouts: Timeouts | None = None,
        run_task: Callable[[str, bytes], bytes] | None = None,
        reshape: Callable[[Links], None] | None = None,
    ) -> None:
        """``run_task`` does the work of ``edgeweave.device.tasks``; ``reshape`` changes the links
        of an emulated fleet, and is None where they are real.
        """
        self._settings = settings
        self._transport = transport
        self._reshape = reshape
        self._threads, self._threads_reason = settings.choose_threads()
        own_tasks = tasks(settings)
        real_clock = clock or SystemClock()
        self._place = Workplace(
            settings,
            transport,
            real_clock,
            timeouts or Timeouts(),
            Throttle(settings.speed, real_clock),
            settings.torch_device(),
            self._threads,
            run_task or (lambda name, data: own_tasks[name](data)),
            UnitMemory(),
        )
        self._facts = read_facts(self._place.torch_device, self._threads)
        cache = settings.cache_directory
        self._probes = ProbeCache(settings.name, None if cache is None else Path(cache))
        self._gossip = PeerPlace(self._place, take=self._take, free=self._free)
        self._busy = threading.Lock()
        self._busy_with: str | None = None
        self._membership: Membership | Hosting | Slicing | None = None
        self._joining = threading.Lock()
        self._forgetting: threading.Timer | None = None
        self._released: deque[Release] = deque(maxlen=_REMEMBERED_RELEASES)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        torch.set_num_threads(self._threads)
        most = psutil.virtual_memory().total
        verbs: dict[str, tuple[Callable[[bytes], bytes], int]] = {
            "hello": (self._hello, REQUEST_BYTES),
            **inquiries(self._place),
            **self._gossip.verbs(),
            **requests_of_runs(
                lambda run: self._part(run, Membership),
                lambda run: self._part(run, Hosting),
                lambda run: self._part(run, Slicing),
            ),
            "profile": (self._profile, most),
            "probe": (self._probe, REQUEST_BYTES),
            "deploy": (self._deploy, most),
            "serve": (self._serve, most),
            "slice": (self._slice, most),
            "halt": (self._halt, REQUEST_BYTES),
            "pulse": (self._pulse, REQUEST_BYTES),
            "release": (self._release, REQUEST_BYTES),
            "emulate": (self._emulate, REQUEST_BYTES),
        }
        for verb, (handler, limit_bytes) in verbs.items():
            key = control_key(self._settings.fleet, self._settings.name, verb)
            served = self._transport.serve(key, handler, limit_bytes=limit_bytes)
            self._stack.callback(served.close)
        alive = control_key(self._settings.fleet, self._settings.name, "alive")
        self._stack.callback(self._transport.announce(alive).close)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._gossip.leave()
        self._stack.close()
        self._gossip.release()
        self._leave("the agent stops")

    def greeting(self) -> Greeting:
        """The facts of this device, now."""
        return Greeting(
            hello=hello_of(self._settings.name),
            machine=f"{platform.system()} {platform.machine()}",
            cores=os.cpu_count() or 1,
            threads=self._threads_reason,
            device=str(self._place.torch_device),
            speed=self._place.throttle.speed,
            memory_bytes=psutil.virtual_memory().total,
            memory_limit_bytes=self._settings.memory_limit_bytes,
            run=self._busy_with,
            clock_seconds=self._place.clock.now(),
            facts=self._facts,
        )

    def _hello(self, _payload: bytes) -> bytes:
        return encode_message(self.greeting())

    def _profile(self, payload: bytes) -> bytes:
        message = decode_message(payload, Profile)
        speed = self._settings.speed
        self._check_takes_over(message.full_speed)
        with self._working("profiling"):
            if message.full_speed is None or speed is None:
                answer = self._place.run_task("profile", payload)
                timings = decode_message(answer, UnitTimings)
            else:
                timings = message.full_speed.stretched(1 / speed)
            if speed is None:
                return encode_message(timings)
            program = decode_program(message.graph, examine=lambda _checked: None)
            self._place.units.learn(
                program, message.microbatch_size, message.optimizer.name, timings
            )
            return encode_message(timings.stretched(self._place.slowdown()))

    def _probe(self, payload: bytes) -> bytes:
        message = decode_message(payload, ProbeRequest)
        speed = self._settings.speed
        self._check_takes_over(message.full_speed)
        with self._working("probing"):
            if message.full_speed is None or speed is None:
                found = self._probed()
            else:
                found = message.full_speed.stretched(1 / speed)
            return encode_message(found.stretched(self._place.slowdown()))

    def _probed(self) -> Probe:
        """At the speed the device was started with: what is known of it, or measured now."""
        known = self._probes.load(self._facts)
        answer = self._place.run_task("probe", encode_message(ProbeWork(self._facts, known)))
        found = decode_message(answer, Probe)
        if found != known:
            self._probes.keep(found)
        return found

    def _check_takes_over(self, full_speed: UnitTimings | Probe | None) -> None:
        if self._settings.speed is None and full_speed is not None:
            raise ConfigError(
                f"only an emulated device takes over what another measured "
                f"({self._settings.name} is a real one). Let it measure."
            )

    def _emulate(self, payload: bytes) -> bytes:
        message = decode_message(payload, Emulate)
        if message.links is not None and self._reshape is None:
            raise ConfigError(
                f"only a device of an emulated fleet changes its links "
                f"({self._settings.name} has real ones). Start it with Fleet.local(links=...)."
            )
        if message.speed is not None:
            self._place.throttle.change_speed(message.speed)
        if message.links is not None and self._reshape is not None:
            self._reshape(message.links)
        return b""

    def _deploy(self, payload: bytes) -> bytes:
        message = decode_message(payload, Deploy)
        assignment = message.assignment
        membership = self._joined(assignment.run, Membership)
        try:
            membership.deploy(message)
        except BaseException:
            if assignment.term == 0:
                self._leave("it could not be deployed", assignment.run)
            raise
        self._check_wanted(assignment)
        _log.info(
            "run %s, term %d: stage %d of %d is ready",
            assignment.run,
            assignment.term,
            assignment.stage,
            assignment.n_stages,
        )
        return b""

    def _serve(self, payload: bytes) -> bytes:
        message = decode_message(payload, Serve)
        place, hosting = message.place, self._joined(message.place.run, Hosting)
        served = self._at_work(place, hosting, lambda: hosting.deploy(message))
        if served.is_ready:
            _log.info("run %s, term %d: stage %d serves", place.run, place.term, place.stage)
        return encode_message(served)

    def _slice(self, payload: bytes) -> bytes:
        message = decode_message(payload, DeploySlice)
        place, slicing = message.place, self._joined(message.place.run, Slicing)
        self._at_work(place, slicing, lambda: slicing.deploy(message))
        _log.info("run %s, term %d: stage %d is at work", place.run, place.term, place.stage)
        return b""

    def _at_work(
        self, place: Place, part: Hosting | Slicing, deploy: Callable[[], _Deployed]
    ) -> _Deployed:
        try:
            deployed = deploy()
        except BaseException:
            if part.is_empty:
                self._leave("it could not be deployed", place.run)
            raise
        self._check_wanted(place)
        return deployed

    def _joined(self, run: str, kind: type[_Part]) -> _Part:
        """The place of a run on this device, which is busy with it from now on."""
        with self._joining:
            membership = self._membership
            if isinstance(membership, kind) and membership.run == run:
                if self._busy_with != run:
                    self._take(run)
                self._remember()
                return membership
            self._take(run)
            self._remember()
            if membership is not None:
                _log.info("run %s: what was kept of it makes room for %s", membership.run, run)
                membership.close()
            made = kind(run, self._place, on_orphaned=lambda: self._orphaned(run))
            self._membership = made
            return made

    def _check_wanted(self, assignment: Place) -> None:
        """End a run that was released, or whose coordinator vanished, while it was deployed."""
        if any(
            assignment.run == each.run and (each.before is None or assignment.term < each.before)
            for each in self._released
        ):
            self._leave("it was released before it was ready", assignment.run)
            raise FleetError(f"run {assignment.run} was released before it was ready.")
        alive = control_key(self._settings.fleet, assignment.coordinator, "alive")
        if not self._transport.alive(alive, timeout_seconds=self._place.timeouts.request):
            self._leave(f"its coordinator {assignment.coordinator} is not there", assignment.run)
            raise FleetError(
                f"{self._settings.name} works for coordinators that it sees "
                f"({assignment.coordinator} is not there). Announce it before deploying."
            )

    def _halt(self, payload: bytes) -> bytes:
        message = decode_message(payload, Halt)
        membership = self._membership
        if not isinstance(membership, Membership) or membership.run != message.run:
            return encode_message(Holdings({}, ()))
        return encode_message(membership.halt(message))

    def _pulse(self, _payload: bytes) -> bytes:
        """Whoever asks learns that this process runs, and what its stage does."""
        membership = self._membership
        return encode_message(Pulse(None) if membership is None else membership.pulse())

    def _release(self, payload: bytes) -> bytes:
        message = decode_message(payload, Release)
        self._released.append(message)
        self._leave("it was released", message.run)
        self._gossip.release(message.run)
        return b""

    def _part(self, run: str, kind: type[_Part]) -> _Part:
        """What there is of a run here; ``FleetError`` if it is none, or of another kind."""
        membership = self._membership
        if not isinstance(membership, kind) or membership.run != run:
            raise FleetError(
                f"{self._settings.name} does not work for run {run} "
                f"(it works for {membership.run if membership else 'none'})."
            )
        return membership

    @contextmanager
    def _working(self, what: str) -> Iterator[None]:
        self._take(what)
        try:
            yield
        finally:
            self._free()

    def _take(self, what: str) -> None:
        if not self._busy.acquire(blocking=False):
            raise DeviceBusy(
                f"{self._settings.name} already works for {self._busy_with}. "
                "Wait until it is done, or use another device.",
                device=self._settings.name,
            )
        self._busy_with = what

    def _free(self) -> None:
        self._busy_with = None
        self._busy.release()

    def _orphaned(self, run: str) -> None:
        """Free for others; what is kept of training stays until they come, or for a while."""
        if isinstance(self._membership, Hosting | Slicing):
            self._leave("its coordinator vanished", run)
            return
        with self._joining:
            if self._busy_with != run:
                return
            self._free()
            self._remember()
            seconds = self._place.timeouts.keep
            timer = threading.Timer(seconds, self._leave, ("nobody came for it", run))
            timer.daemon = True
            timer.start()
            self._forgetting = timer

    def _remember(self) -> None:
        """Forget nothing by itself any more."""
        timer, self._forgetting = self._forgetting, None
        if timer is not None:
            timer.cancel()

    def _leave(self, why: str, run: str | None = None) -> None:
        """End a run here, whichever it is or only this one, and forget what was kept of it."""
        with self._joining:
            membership = self._membership
            if membership is None or run not in (None, membership.run):
                return
            self._membership = None
            self._remember()
        try:
            membership.close()
        finally:
            if self._busy_with == membership.run:
                self._free()
        _log.info("run %s: ended, because %s", membership.run, why)
