"""The process around an agent: settings in, exit code out."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeweave.core.errors import ConfigError, EdgeweaveError
from edgeweave.core.timeouts import Timeouts
from edgeweave.device.agent import Agent
from edgeweave.device.nursery import Nursery
from edgeweave.device.settings import AgentSettings
from edgeweave.device.tasks import tasks
from edgeweave.net import NetSettings, ZenohTransport

__all__ = ["ProcessSettings", "main", "run_agent"]


class ProcessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything an agent process is told."""

    agent: AgentSettings
    net: NetSettings
    timeouts: Timeouts = Timeouts()
    until_stdin_closes: bool = False


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
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            Nursery(name, tasks(settings.agent), timeout_seconds=settings.timeouts.work) as nursery,
            ZenohTransport(settings.agent.name, settings.net) as transport,
            Agent(settings.agent, transport, timeouts=settings.timeouts, run_task=nursery),
        ):
            ready(transport)
            if settings.until_stdin_closes:
                sys.stdin.buffer.read()
            else:
                threading.Event().wait()
    except KeyboardInterrupt:
        logging.getLogger(__name__).info("stopped by a signal")
    finally:
        signal.signal(signal.SIGTERM, previous)


def _read(arguments: list[str]) -> ProcessSettings:
    if len(arguments) != 1:
        raise ConfigError("usage: python -m edgeweave.device SETTINGS.json")
    try:
        data = Path(arguments[0]).read_bytes()
        return msgspec.json.decode(data, type=ProcessSettings)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"the agent's settings cannot be read ({error}).") from error
