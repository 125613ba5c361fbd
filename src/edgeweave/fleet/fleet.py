"""A fleet: devices one can ask, emulated on this machine or real ones on the network."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import msgspec

from edgeweave.core.clock import Clock, SystemClock
from edgeweave.core.errors import ConfigError, FleetError
from edgeweave.core.timeouts import Timeouts
from edgeweave.device import AgentSettings, Greeting, decode_message, encode_message
from edgeweave.device.process import ProcessSettings
from edgeweave.fleet.processes import AgentProcesses
from edgeweave.fleet.spec import Device
from edgeweave.net import (
    NetSettings,
    Subscription,
    Transport,
    ZenohTransport,
    check_hello,
    control_key,
    control_pattern,
    device_of,
    hello_of,
)

__all__ = ["Fleet"]

_COORDINATOR_PREFIX = "coordinator-"
_POLL_SECONDS = 0.25

OnWaiting = Callable[[tuple[str, ...], tuple[str, ...]], None]
"""Told the endpoints at which the coordinator can be reached, and the devices there so far."""


class Fleet:
    """The devices a run may use, for the time of a ``with`` block.

    ``Fleet.local`` starts one agent process per device on this machine and stops them at the end;
    ``Fleet.lan`` finds agents that ``edgeweave join`` started. ``devices`` names them.

    >>> with Fleet.local([Device("pi-a", speed=0.5)]) as fleet:  # doctest: +SKIP
    ...     fleet.devices
    ('pi-a',)
    """

    def __init__(
        self,
        net: NetSettings,
        *,
        local: Sequence[Device] = (),
        wanted: Sequence[str] = (),
        n_devices: int = 1,
        clock: Clock | None = None,
        join: Callable[[str], Transport] | None = None,
        wait_seconds: float | None = None,
        on_waiting: OnWaiting | None = None,
    ) -> None:
        self._net = net
        self._join = join or (lambda name: ZenohTransport(name, net))
        self._local = tuple(local)
        self._wanted = tuple(wanted)
        self._n_devices = n_devices
        self._clock = clock or SystemClock()
        self._timeouts = net.timeouts
        # Starting a process imports torch, which takes a slow device many seconds.
        patience = self._timeouts.work if local else self._timeouts.connect
        self._wait_seconds = patience if wait_seconds is None else wait_seconds
        self._on_waiting = on_waiting or (lambda _endpoints, _there: None)
        self._stack = ExitStack()
        self._transport: Transport | None = None
        self._processes: AgentProcesses | None = None
        self._devices: tuple[str, ...] = ()

    @classmethod
    def local(cls, devices: Sequence[Device], *, timeouts: Timeouts | None = None) -> Self:
        """An emulated fleet: the real agent, once per device, over the loopback network."""
        names = [device.name for device in devices]
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                f"a local fleet has at least one device and unique names (got {names})."
            )
        net = NetSettings(fleet=f"local-{secrets.token_hex(4)}", timeouts=timeouts or Timeouts())
        return cls(net, local=devices, wanted=names, n_devices=len(names))

    @classmethod
    def lan(
        cls,
        net: NetSettings,
        *,
        devices: Sequence[str] = (),
        n_devices: int = 1,
        wait_seconds: float | None = None,
        on_waiting: OnWaiting | None = None,
    ) -> Self:
        """Agents that others started: those named, or else all that are there.

        Entering waits until every named device, or ``n_devices`` of any name, are present, for at
        most ``wait_seconds`` (default: ``Timeouts.connect``). ``on_waiting(endpoints, there)`` is
        called when the waiting begins and whenever a device comes or goes, so that somebody can be
        told where to join. ``n_devices=0`` waits for nobody and takes nobody, for those who only
        look: ``present()``, ``greet()``.
        """
        return cls(
            net,
            wanted=devices,
            n_devices=n_devices,
            wait_seconds=wait_seconds,
            on_waiting=on_waiting,
        )

    @classmethod
    def over(
        cls, join: Callable[[str], Transport], net: NetSettings, *, devices: Sequence[str]
    ) -> Self:
        """Agents that are on another fabric already; ``join`` makes the coordinator's transport.

        ``net`` says the fleet's name and timeouts. With ``MemoryFabric.join`` a whole fleet lives
        in one process, which tests do.
        """
        return cls(net, wanted=devices, n_devices=len(devices), join=join)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that were there on entering, in the order given or by name."""
        return self._devices

    @property
    def is_local(self) -> bool:
        """Whether the devices are emulated on this machine, sharing its cores."""
        return bool(self._local)

    @property
    def name(self) -> str:
        return self._net.fleet

    @property
    def transport(self) -> Transport:
        if self._transport is None:
            raise FleetError("the fleet is not open. Use it in a with block.")
        return self._transport

    @property
    def timeouts(self) -> Timeouts:
        return self._timeouts

    @property
    def clock(self) -> Clock:
        return self._clock

    def pid(self, device: str) -> int:
        """The process of a local device."""
        if self._processes is None:
            raise FleetError(f"{device} is not a process of this machine's fleet.")
        return self._processes.pid(device)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            name = _COORDINATOR_PREFIX + secrets.token_hex(4)
            self._transport = stack.enter_context(self._join(name))
            alive = control_key(self.name, name, "alive")
            stack.callback(self._transport.announce(alive).close)
            if self._local:
                settings = [self._settings_of(device) for device in self._local]
                self._processes = stack.enter_context(
                    AgentProcesses(settings, stop_seconds=self._timeouts.stop)
                )
            self._devices = self._wait_devices()
            self._check_versions()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._transport = None
        self._processes = None

    def ask(
        self, device: str, verb: str, message: msgspec.Struct, *, timeout_seconds: float
    ) -> bytes:
        """Send one request to one device and return its answer."""
        return self.transport.request(
            control_key(self.name, device, verb),
            encode_message(message),
            device=device,
            timeout_seconds=timeout_seconds,
        )

    def greet(self, device: str) -> Greeting:
        """Ask a device who it is."""
        answer = self.transport.request(
            control_key(self.name, device, "hello"),
            b"",
            device=device,
            timeout_seconds=self._timeouts.request,
        )
        return decode_message(answer, Greeting)

    def for_each(
        self, devices: Sequence[str], work: Callable[[str], bytes], *, one_at_a_time: bool
    ) -> dict[str, bytes]:
        """Do ``work`` for every device: at once, or in turn where they would disturb each other."""
        if one_at_a_time or len(devices) < 2:
            return {device: work(device) for device in devices}
        pool = ThreadPoolExecutor(max_workers=len(devices))
        try:
            asked = {pool.submit(work, device): device for device in devices}
            answers = {asked[done]: done.result() for done in as_completed(asked)}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the first error is not held up
        return {device: answers[device] for device in devices}

    def watch(self, on_lost: Callable[[str], None]) -> Subscription:
        """Call ``on_lost(device)`` when a device's liveliness token vanishes."""

        def changed(key: str, alive: bool) -> None:
            if not alive:
                on_lost(device_of(key))

        return self.transport.watch(control_pattern(self.name, "alive"), changed)

    def present(self) -> tuple[str, ...]:
        """The devices there now, by name."""
        keys = self.transport.alive(
            control_pattern(self.name, "alive"), timeout_seconds=self._timeouts.request
        )
        names = (device_of(key) for key in keys)
        return tuple(sorted(name for name in names if not name.startswith(_COORDINATOR_PREFIX)))

    def _settings_of(self, device: Device) -> ProcessSettings:
        return ProcessSettings(
            agent=AgentSettings(
                name=device.name,
                fleet=self.name,
                speed=device.speed,
                memory_limit_bytes=device.memory_bytes,
            ),
            net=NetSettings(fleet=self.name, connect=self._endpoints(), timeouts=self._timeouts),
            timeouts=self._timeouts,
            until_stdin_closes=True,
        )

    def _wait_devices(self) -> tuple[str, ...]:
        """Wait for liveliness tokens; a local agent that ends early is reported at once."""
        if not self._n_devices and not self._wanted:
            return ()
        changed = threading.Condition()
        there: set[str] = set()

        def note(key: str, alive: bool) -> None:
            device = device_of(key)
            if not device.startswith(_COORDINATOR_PREFIX):
                with changed:
                    (there.add if alive else there.discard)(device)
                    changed.notify_all()

        def enough() -> bool:
            return there.issuperset(self._wanted) and len(there) >= self._n_devices

        deadline = self._clock.now() + self._wait_seconds
        told: tuple[str, ...] | None = None
        watch = self.transport.watch(control_pattern(self.name, "alive"), note)
        try:
            while True:
                with changed:
                    complete, now = enough(), tuple(sorted(there))
                if now != told:  # outside the lock: the hook is not ours
                    told = now
                    self._on_waiting(self._endpoints(), now)
                if complete:
                    return self._wanted or now
                if self._processes is not None:
                    self._processes.check()
                if self._clock.now() > deadline:
                    raise self._absent(set(now))
                with changed:
                    changed.wait_for(enough, _POLL_SECONDS)
        finally:
            watch.close()

    def _absent(self, there: set[str]) -> FleetError:
        missing = sorted(set(self._wanted) - there)
        wanted = ", ".join(missing) if missing else f"{self._n_devices} devices"
        joined = ", ".join(sorted(there)) or "none"
        options = "".join(f" --connect {endpoint}" for endpoint in self._endpoints())
        return FleetError(
            f"the fleet {self.name!r} lacks {wanted} after {self._wait_seconds:.0f} s "
            f"(there: {joined}). On each device run: edgeweave join --fleet {self.name}{options}"
        )

    def _endpoints(self) -> tuple[str, ...]:
        """Where this process can be reached, on a network."""
        transport = self.transport
        return transport.endpoints() if isinstance(transport, ZenohTransport) else ()

    def _check_versions(self) -> None:
        mine = hello_of(self.transport.name)
        for device in self._devices:
            check_hello(mine, self.greet(device).hello)
