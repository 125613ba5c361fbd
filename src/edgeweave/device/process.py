"""The process around an agent: settings in, exit code out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from edgeweave.core.clock import SystemClock
from edgeweave.core.errors import ConfigError, EdgeweaveError
from edgeweave.core.timeouts import Timeouts
from edgeweave.device import memory
from edgeweave.device.agent import Agent
from edgeweave.device.nursery import Nursery
from edgeweave.device.settings import AgentSettings
from edgeweave.device.signals import StopSignals
from edgeweave.device.tasks import preparation, tasks
from edgeweave.net import Links, NetSettings, ShapedTransport, ZenohTransport

__all__ = ["ProcessSettings", "main", "run_agent"]


class ProcessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything an agent process is told."""

    agent: AgentSettings
    net: NetSettings
    timeouts: Timeouts = Timeouts()
    until_stdin_closes: bool = False
    links: Links | None = None
    """The links of the emulated fleet this agent is in; None where they are real."""


def main(arguments: list[str]) -> int:
    """Read settings from the file named by the only argument and serve until told to stop."""
    try:
        settings = _read(arguments)
        logging.basicConfig(
            level=os.environ.get("EDGEWEAVE_LOG", "WARNING"),
            format=f"{settings.agent.name}: %(levelname)s %(message)s",
        )
        run_agent(settings, ready=lambda _transport: None)
    except EdgeweaveError as error:
        sys.stderr.write(f"edgeweave: {error}\n")
        return error.exit_code
    return 0


def run_agent(settings: ProcessSettings, *, ready: Callable[[ZenohTransport], None]) -> None:
    """Serve one device until stdin closes, SIGTERM or Ctrl-C; ``ready`` is called once it does."""
    name = settings.agent.name
    memory.keep_freed()
    try:
        with (
            StopSignals() as signals,
            Nursery(
                name,
                tasks(settings.agent),
                timeout_seconds=settings.timeouts.work,
                prepare=preparation(psutil.virtual_memory().total),
            ) as nursery,
            ZenohTransport(settings.agent.name, settings.net) as transport,
            _agent(settings, transport, nursery),
        ):
            ready(transport)
            signals.wait_until_told(sys.stdin.fileno() if settings.until_stdin_closes else None)
    except KeyboardInterrupt:
        logging.getLogger(__name__).info("stopped by a signal before it served")


@contextmanager
def _agent(
    settings: ProcessSettings, transport: ZenohTransport, nursery: Nursery
) -> Iterator[Agent]:
    """The agent on the transport, behind emulated links if there are any."""
    if settings.links is None:
        with Agent(
            settings.agent, transport, timeouts=settings.timeouts, run_task=nursery
        ) as agent:
            yield agent
        return
    shaped = ShapedTransport(
        transport,
        settings.links,
        clock=SystemClock(),
        timeouts=settings.timeouts,
        lease_seconds=settings.net.lease_seconds,
    )
    with (
        shaped,
        Agent(
            settings.agent,
            shaped,
            timeouts=settings.timeouts,
            run_task=nursery,
            reshape=shaped.reshape,
        ) as agent,
    ):
        yield agent


def _read(arguments: list[str]) -> ProcessSettings:
    if len(arguments) != 1:
        raise ConfigError("usage: python -m edgeweave.device SETTINGS.json")
    try:
        data = Path(arguments[0]).read_bytes()
        return msgspec.json.decode(data, type=ProcessSettings)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"the agent's settings cannot be read ({error}).") from error
