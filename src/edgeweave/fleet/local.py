"""What an emulated fleet consists of, checked before anything starts, and its agents' settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.core.timeouts import Timeouts
from edgeweave.device import AgentSettings
from edgeweave.device.process import ProcessSettings
from edgeweave.fleet.chaos import Chaos, World
from edgeweave.fleet.namespaces import NamespaceLayout
from edgeweave.fleet.processes import AgentProcesses
from edgeweave.fleet.spec import Device, check_devices, check_links
from edgeweave.net import Links, NetSettings

__all__ = ["LocalSetup"]


@dataclass(frozen=True, slots=True)
class LocalSetup:
    """Devices on this machine, what holds their links back, and what is to happen to them."""

    devices: tuple[Device, ...]
    links: Links
    chaos: Chaos
    layout: NamespaceLayout | None
    """In kernel mode, the network the devices stand on."""

    @classmethod
    def of(
        cls,
        devices: Sequence[Device],
        links: Links | None,
        chaos: Chaos | None,
        *,
        kernel: bool,
        stop_seconds: float,
    ) -> LocalSetup:
        """``ConfigError`` if links or chaos are about somebody who is not in the fleet."""
        links, chaos = links or Links(), chaos or Chaos()
        check_devices(devices)
        names = [device.name for device in devices]
        check_links(links, names)
        chaos.check(names)
        layout = NamespaceLayout(names, links, stop_seconds=stop_seconds) if kernel else None
        return cls(tuple(devices), links, chaos, layout)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(device.name for device in self.devices)

    @property
    def is_shaped(self) -> bool:
        """Whether transports hold messages back, which the kernel does in kernel mode."""
        holds_back = bool(self.links.pairs or self.chaos) or not self.links.default.is_plain
        return holds_back and self.layout is None

    def world(self) -> World:
        """How the fleet begins."""
        return World({device.name: device.speed for device in self.devices}, self.links)

    def coordinator_net(self, net: NetSettings) -> NetSettings:
        """Where the coordinator listens; in kernel mode the layout has to be entered."""
        if self.layout is None:
            return net
        return replace(net, listen=self.layout.listen(COORDINATOR_NAME), insecure=True)

    def agents(self, fleet: str, connect: tuple[str, ...], timeouts: Timeouts) -> AgentProcesses:
        """The processes of all devices, not yet started."""
        settings = [self._settings(device, fleet, connect, timeouts) for device in self.devices]
        if self.layout is None:
            return AgentProcesses(settings, stop_seconds=timeouts.stop)
        prefix = self.layout.prefix
        return AgentProcesses(settings, stop_seconds=timeouts.stop, prefix=prefix)

    def _settings(
        self, device: Device, fleet: str, connect: tuple[str, ...], timeouts: Timeouts
    ) -> ProcessSettings:
        net = NetSettings(fleet=fleet, connect=connect, timeouts=timeouts)
        if self.layout is not None:
            net = replace(net, listen=self.layout.listen(device.name), insecure=True)
        return ProcessSettings(
            agent=AgentSettings(
                name=device.name,
                fleet=fleet,
                speed=device.speed,
                memory_limit_bytes=device.memory_bytes,
            ),
            net=net,
            timeouts=timeouts,
            until_stdin_closes=True,
            links=self.links if self.is_shaped else None,
        )
