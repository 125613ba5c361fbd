"""A fleet: devices one can ask, emulated on this machine or real ones on the network."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import msgspec

from edgeweave.core.clock import Clock, SystemClock
from edgeweave.core.errors import FleetError
from edgeweave.core.names import COORDINATOR_PREFIX
from edgeweave.core.timeouts import Timeouts
from edgeweave.device import (
    Emulate,
    Greeting,
    Pulse,
    Relay,
    RunStatus,
    decode_message,
    encode_message,
)
from edgeweave.fleet.chaos import Chaos
from edgeweave.fleet.chaos_runner import ChaosRecord, ChaosRunner
from edgeweave.fleet.description import FleetDescription
from edgeweave.fleet.emulation import Emulation
from edgeweave.fleet.local import LocalSetup
from edgeweave.fleet.presence import OnWaiting, Wanted, wait_devices
from edgeweave.fleet.processes import AgentProcesses
from edgeweave.fleet.spec import Device
from edgeweave.net import (
    Links,
    NetSettings,
    Priority,
    ShapedTransport,
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
        local: LocalSetup | None = None,
        wanted: Sequence[str] = (),
        n_devices: int = 1,
        clock: Clock | None = None,
        join: Callable[[str], Transport] | None = None,
        wait_seconds: float | None = None,
        on_waiting: OnWaiting | None = None,
    ) -> None:
        self._net = net
        self._join = join
        self._local = local
        self._clock = clock or SystemClock()
        self._timeouts = net.timeouts
        # Starting a process imports torch, which takes a slow device many seconds.
        patience = self._timeouts.work if local else self._timeouts.connect
        self._wanted = Wanted(
            net.fleet,
            tuple(wanted),
            n_devices,
            patience if wait_seconds is None else wait_seconds,
        )
        self._on_waiting = on_waiting or (lambda _endpoints, _there: None)
        self._stack = ExitStack()
        self._direct: Transport | None = None
        self._transport: Transport | None = None
        self._processes: AgentProcesses | None = None
        self._reshape: Callable[[Links], None] = lambda _links: None
        self._runner: ChaosRunner | None = None
        self._devices: tuple[str, ...] = ()

    @classmethod
    def local(
        cls,
        devices: Sequence[Device],
        *,
        links: Links | None = None,
        chaos: Chaos | None = None,
        timeouts: Timeouts | None = None,
    ) -> Self:
        """An emulated fleet: the real agent, once per device, over the loopback network.

        ``links`` shape what devices and coordinator send each other; without them, and without
        ``chaos``, the loopback network is as fast as it is. ``ConfigError`` if either is about
        somebody who is not in the fleet.
        """
        return cls._emulated(devices, links, chaos, timeouts, kernel=False)

    @classmethod
    def described(
        cls,
        description: FleetDescription,
        *,
        timeouts: Timeouts | None = None,
        kernel: bool = False,
    ) -> Self:
        """The emulated fleet of a ``fleet.toml`` or a preset.

        ``kernel`` puts each device into a network namespace of its own and lets the kernel shape
        the links, which needs root; see ``NamespaceLayout`` for what is then different.

        >>> with Fleet.described(load_preset("equal-lan")) as fleet:  # doctest: +SKIP
        ...     fleet.devices
        ('fast-1', 'fast-2', 'slow')
        """
        return cls._emulated(
            description.devices, description.links, description.chaos, timeouts, kernel=kernel
        )

    @classmethod
    def _emulated(
        cls,
        devices: Sequence[Device],
        links: Links | None,
        chaos: Chaos | None,
        timeouts: Timeouts | None,
        *,
        kernel: bool,
    ) -> Self:
        times = timeouts or Timeouts()
        local = LocalSetup.of(devices, links, chaos, kernel=kernel, stop_seconds=times.stop)
        return cls(
            NetSettings(fleet=f"local-{secrets.token_hex(4)}", timeouts=times),
            local=local,
            wanted=local.names,
            n_devices=len(local.names),
        )

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
        return self._local is not None

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

    @property
    def chaos_log(self) -> tuple[ChaosRecord, ...]:
        """What the script of this fleet has done so far; kept when the fleet ends."""
        return () if self._runner is None else self._runner.log

    def step_begins(self, step: int) -> None:
        """Told by whoever trains, before each step: what is scripted for it happens now."""
        if self._runner is not None:
            self._runner.step_begins(step)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            name = COORDINATOR_PREFIX + secrets.token_hex(4)
            self._transport = self._direct = self._joined(name, stack)
            if self._local is not None and self._local.is_shaped:
                shaped = ShapedTransport(
                    self._direct,
                    self._local.links,
                    clock=self._clock,
                    timeouts=self._timeouts,
                    lease_seconds=self._net.lease_seconds,
                )
                self._transport = stack.enter_context(shaped)
                self._reshape = shaped.reshape
            alive = control_key(self.name, name, "alive")
            stack.callback(self._transport.announce(alive).close)
            if self._local is not None:
                agents = self._local.agents(self.name, self._endpoints(), self._timeouts)
                self._processes = stack.enter_context(agents)
            self._devices = wait_devices(
                self._wanted,
                self._transport,
                self._clock,
                endpoints=self._endpoints(),
                check=self._check_processes,
                on_waiting=self._on_waiting,
            )
            self._check_versions()
            if self._local is not None and self._processes is not None and self._local.chaos:
                self._runner = self._begin_chaos(self._local, self._processes, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
        self._direct = None
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

    def pulse(
        self, device: str, *, via: str | None = None, timeout_seconds: float | None = None
    ) -> Pulse:
        """Ask a device what it does at this moment, directly or over another one."""
        seconds = self._timeouts.request if timeout_seconds is None else timeout_seconds
        to, verb = (device, "pulse") if via is None else (via, "relay")
        answer = self.transport.request(
            control_key(self.name, to, verb),
            b"" if via is None else encode_message(Relay(device, seconds)),
            device=to,
            timeout_seconds=seconds,
            priority=Priority.CONTROL,
        )
        return decode_message(answer, Pulse)

    def run_status(self, coordinator: str) -> RunStatus:
        """Ask a coordinator where its run is; ``FleetError`` if it has none."""
        answer = self.transport.request(
            control_key(self.name, coordinator, "run"),
            b"",
            device=coordinator,
            timeout_seconds=self._timeouts.request,
        )
        return decode_message(answer, RunStatus)

    def clock_offset(self, device: str) -> float:
        """How far a device's clock is ahead of ours, to half a round trip."""
        before = self.clock.now()
        theirs = self.greet(device).clock_seconds
        return theirs - (before + self.clock.now()) / 2

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

    def watch(
        self,
        on_lost: Callable[[str], None],
        on_there: Callable[[str], None] = lambda _device: None,
    ) -> Subscription:
        """Call ``on_lost(device)`` when a device's liveliness token vanishes, and ``on_there`` for
        those that are there and that come.
        """

        def changed(key: str, alive: bool) -> None:
            device = device_of(key)
            if not alive:
                on_lost(device)
            elif not device.startswith(COORDINATOR_PREFIX):
                on_there(device)

        return self.transport.watch(control_pattern(self.name, "alive"), changed)

    def present(self) -> tuple[str, ...]:
        """The devices there now, by name."""
        return tuple(n for n in self._names() if not n.startswith(COORDINATOR_PREFIX))

    def coordinators(self) -> tuple[str, ...]:
        """The other coordinators there now, by name."""
        names = (name for name in self._names() if name.startswith(COORDINATOR_PREFIX))
        return tuple(name for name in names if name != self.transport.name)

    def _names(self) -> list[str]:
        keys = self.transport.alive(
            control_pattern(self.name, "alive"), timeout_seconds=self._timeouts.request
        )
        return sorted(device_of(key) for key in keys)

    def _joined(self, name: str, stack: ExitStack) -> Transport:
        """The coordinator's transport; in kernel mode on the network of the layout."""
        if self._join is not None:
            return stack.enter_context(self._join(name))
        net = self._net
        if self._local is not None and self._local.layout is not None:
            stack.enter_context(self._local.layout)
            self._reshape = self._local.layout.reshape
            net = self._local.coordinator_net(net)
        return stack.enter_context(ZenohTransport(name, net))

    def _begin_chaos(
        self, local: LocalSetup, processes: AgentProcesses, stack: ExitStack
    ) -> ChaosRunner:
        world = local.world()
        emulation = Emulation(
            world,
            send_signal=lambda device, number: os.kill(processes.pid(device), number),
            start=processes.start_again,
            tell=self._tell,
            reshape=self._reshape,
            tells_links=local.layout is None,
        )
        runner = ChaosRunner(local.chaos, world, emulation.change, self._clock)
        stack.callback(lambda: emulation.release(runner.world))
        stack.enter_context(runner)
        stack.callback(self.watch(lambda _device: None, emulation.came).close)
        return runner

    def _tell(self, device: str, message: Emulate) -> None:
        """Beside shaped links, or one that is down would keep itself down."""
        transport = self.transport
        request = (
            transport.request_beside
            if isinstance(transport, ShapedTransport)
            else transport.request
        )
        request(
            control_key(self.name, device, "emulate"),
            encode_message(message),
            device=device,
            timeout_seconds=self._timeouts.request,
        )

    def _check_processes(self) -> None:
        if self._processes is not None:
            self._processes.check()

    def _endpoints(self) -> tuple[str, ...]:
        """Where this process can be reached, on a network."""
        direct = self._direct
        return direct.endpoints() if isinstance(direct, ZenohTransport) else ()

    def _check_versions(self) -> None:
        mine = hello_of(self.transport.name)
        for device in self._devices:
            check_hello(mine, self.greet(device).hello)
