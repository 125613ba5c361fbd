"""Agents as ``edgeweave join --threads 1`` starts them here: no speed, nothing held back."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import edgeweave as ew
from edgeweave.device import AgentSettings
from edgeweave.device.process import ProcessSettings
from edgeweave.fleet.processes import AgentProcesses
from edgeweave.net import NetSettings

__all__ = ["real_fleet"]

_START_SECONDS = 60.0
_STOP_SECONDS = 5.0


@contextmanager
def real_fleet(names: Sequence[str]) -> Iterator[ew.Fleet]:
    """A fleet of such agents, one for each name, started when the coordinator can be reached."""
    net = NetSettings(fleet=f"real-{secrets.token_hex(4)}")
    with ExitStack() as stack:
        agents = stack.enter_context(ExitStack())

        def start(endpoints: tuple[str, ...], there: tuple[str, ...]) -> None:
            if not there:
                settings = [_agent(name, net.fleet, endpoints) for name in names]
                agents.enter_context(AgentProcesses(settings, stop_seconds=_STOP_SECONDS))

        yield stack.enter_context(
            ew.Fleet.lan(net, devices=names, wait_seconds=_START_SECONDS, on_waiting=start)
        )


def _agent(name: str, fleet: str, endpoints: tuple[str, ...]) -> ProcessSettings:
    return ProcessSettings(
        agent=AgentSettings(name=name, fleet=fleet, threads=1),
        net=NetSettings(fleet=fleet, connect=endpoints),
        until_stdin_closes=True,
    )
