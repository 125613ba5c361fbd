"""``edgeweave join``: this machine becomes a device of a fleet, until Ctrl-C."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass, replace

from edgeweave.cli.cache import cache_directory
from edgeweave.cli.network import Network
from edgeweave.cli.output import Output
from edgeweave.core.timeouts import Timeouts
from edgeweave.core.units import format_bytes
from edgeweave.device import AgentSettings, Greeting, decode_message
from edgeweave.device.process import ProcessSettings, run_agent
from edgeweave.fleet import Device
from edgeweave.net import ZenohTransport, check_device_name, control_key

__all__ = ["JoinOptions", "join"]

_ANY_PORT = ":0"


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """What the command line says about this device."""

    network: Network
    name: str | None = None
    speed: float | None = None
    memory: str | None = None
    device: str = "cpu"
    threads: int | None = None
    wait_seconds: float = 60.0


def join(options: JoinOptions, output: Output) -> None:
    """Serve until told to stop. One line, or the document, when the device can be used."""
    name, name_reason = _name(options)
    listen, listen_reason = options.network.listens(0)
    output.say(f"name={name} ({name_reason})")
    output.say(f"listen={', '.join(map(_place, listen))} ({listen_reason})")
    logging.basicConfig(
        level=os.environ.get("EDGEWEAVE_LOG", "WARNING"),
        format=f"{name}: %(levelname)s %(message)s",
    )
    timeouts = Timeouts()
    patient = replace(timeouts, connect=max(options.wait_seconds, 1.0))
    settings = ProcessSettings(
        agent=_agent(options, name),
        net=options.network.settings(timeouts=patient),
        timeouts=timeouts,
    )
    run_agent(settings, ready=lambda transport: _tell_ready(transport, options, output))
    output.say(f"{name} has left the fleet.")


def _place(endpoint: str) -> str:
    """Where to listen, for people."""
    if not endpoint.endswith(_ANY_PORT):
        return endpoint
    return f"{endpoint.removesuffix(_ANY_PORT)}, any free port"


def _name(options: JoinOptions) -> tuple[str, str]:
    if options.name is not None:
        return check_device_name(options.name), "as asked"
    return check_device_name(socket.gethostname()), "the host's name"


def _agent(options: JoinOptions, name: str) -> AgentSettings:
    # A device of a local fleet obeys the same rules.
    checked = Device(name, options.speed or 1.0, options.memory)
    return AgentSettings(
        name=name,
        fleet=options.network.fleet,
        speed=options.speed,
        memory_limit_bytes=checked.memory_bytes,
        device=options.device,
        threads=options.threads,
        cache_directory=_cache_directory(options.speed),
    )


def _cache_directory(speed: float | None) -> str | None:
    """Where probes are kept; those of an emulated device go with its process, as its speed does."""
    directory = cache_directory()
    return None if speed is not None or directory is None else str(directory)


def _tell_ready(transport: ZenohTransport, options: JoinOptions, output: Output) -> None:
    greeting = _greeting(transport)
    limit = greeting.memory_limit_bytes
    memory = "all" if limit is None else format_bytes(limit)
    endpoints = transport.endpoints()
    output.say(
        f"{transport.name} is ready in the fleet {transport.fleet}: {', '.join(endpoints)}, "
        f"computes on {greeting.device}, {greeting.threads}, memory {memory}. Ctrl-C ends it."
    )
    if not options.network.connect and not options.network.scout:
        output.say(f"It knows nobody yet. Others reach it with: --connect {endpoints[0]}")
        if any(place.endswith(_ANY_PORT) for place in options.network.listens(0)[0]):
            output.say("That port is a new one at every start: --listen ENDPOINT keeps one.")
    output.finish(
        {
            "name": transport.name,
            "fleet": transport.fleet,
            "endpoints": list(endpoints),
            "machine": greeting.machine,
            "cores": greeting.cores,
            "threads": greeting.threads,
            "device": greeting.device,
            "speed": greeting.speed,
            "memory_bytes": greeting.memory_bytes,
            "memory_limit_bytes": limit,
        }
    )


def _greeting(transport: ZenohTransport) -> Greeting:
    """Ask the agent of this process what everybody may ask it."""
    answer = transport.request(
        control_key(transport.fleet, transport.name, "hello"),
        b"",
        device=transport.name,
        timeout_seconds=Timeouts().request,
    )
    return decode_message(answer, Greeting)
