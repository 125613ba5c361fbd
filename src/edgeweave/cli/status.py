"""``edgeweave status``: who is in a fleet, what each works for, and how runs are doing."""

from __future__ import annotations

import logging

import msgspec

from edgeweave.cli.gossip_tables import run_lines
from edgeweave.cli.network import Network, join_lines
from edgeweave.cli.output import Output
from edgeweave.cli.tables import fleet_table
from edgeweave.core.errors import EdgeweaveError
from edgeweave.device import Greeting, RunStatus
from edgeweave.fleet import Fleet
from edgeweave.gossip import running

__all__ = ["status"]

_log = logging.getLogger(__name__)


def status(network: Network, output: Output, *, wait_seconds: float) -> None:
    """Look for ``wait_seconds``, then ask everyone who is there."""
    with Fleet.lan(network.settings(), n_devices=0) as fleet:
        with output.doing(f"looking for devices for {wait_seconds:g} s"):
            fleet.clock.sleep(wait_seconds)
        found = [(name, _greeting(fleet, name)) for name in fleet.present()]
        peers = running(fleet)
        runs = [each for name in fleet.coordinators() if (each := _run(fleet, name)) is not None]
    if found:
        output.show(fleet_table(network.fleet, found))
    else:
        output.say(f"Nobody is in the fleet {network.fleet!r} here.{_hint(network)}")
    for run in runs:
        output.say(
            f"{run.run}: {run.step} steps done, on {', '.join(run.devices)}; states were kept by "
            f"devices {run.devices_age_steps} steps ago, by the coordinator {run.here_age_steps}."
        )
        output.say(f"  {run.service.line()}")
        for line in run.recoveries:
            output.say(f"  {line}")
    for line in run_lines(peers):
        output.say(line)
    output.finish(
        {
            "fleet": network.fleet,
            "devices": [_document(name, each) for name, each in found],
            "runs": [msgspec.to_builtins(run) for run in runs],
            "gossip": {name: msgspec.to_builtins(status) for name, status in peers.items()},
        }
    )


def _greeting(fleet: Fleet, name: str) -> Greeting | str:
    """A device that cannot answer is shown too: that is what one looks for."""
    try:
        return fleet.greet(name)
    except EdgeweaveError as error:
        return f"does not answer: {error}"


def _run(fleet: Fleet, coordinator: str) -> RunStatus | None:
    """Where a run is; None from those that only look, or that have just gone."""
    try:
        return fleet.run_status(coordinator)
    except EdgeweaveError as error:
        _log.info("%s tells of no run: %s", coordinator, error)
        return None


def _hint(network: Network) -> str:
    if network.connect or network.scout:
        line = join_lines(network, network.connect[:1], [])[0]
        return f" On each device run: {line}"
    return " Say where to look: --connect ENDPOINT, or --scout."


def _document(name: str, greeting: Greeting | str) -> dict[str, object]:
    if isinstance(greeting, str):
        return {"name": name, "error": greeting}
    facts: dict[str, object] = msgspec.to_builtins(greeting)
    del facts["hello"], facts["clock_seconds"]
    versions: dict[str, object] = msgspec.to_builtins(greeting.hello)
    return {**versions, **facts, "name": name, "error": None}
