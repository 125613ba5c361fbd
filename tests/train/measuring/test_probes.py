"""Probing a fleet: every device answers for itself. Emulated ones are probed in the CLI's tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec
import pytest

from edgeweave.core.errors import FormatError
from edgeweave.device import Agent, AgentSettings, decode_message, encode_message
from edgeweave.device.probes.messages import ProbeWork
from edgeweave.fleet import Fleet
from edgeweave.net import MemoryFabric, NetSettings
from edgeweave.predict.probe import Probe
from edgeweave.train import probe_devices
from tests.fleet.worlds import QUICK
from tests.predict.probes import made_up_probe


@contextlib.contextmanager
def fleet_that_takes(**probes: Probe) -> Iterator[Fleet]:
    """Agents in this process, each of which finds the probe given."""
    with contextlib.ExitStack() as stack:
        fabric = stack.enter_context(MemoryFabric(timeouts=QUICK))
        for name, probe in probes.items():
            settings = AgentSettings(name, threads=1)
            agent = Agent(settings, fabric.join(name), timeouts=QUICK, run_task=answering(probe))
            stack.enter_context(agent)
        net = NetSettings(timeouts=QUICK)
        yield stack.enter_context(Fleet.over(fabric.join, net, devices=tuple(probes)))


def answering(probe: Probe) -> Callable[[str, bytes], bytes]:
    def run(name: str, data: bytes) -> bytes:
        assert name == "probe"
        facts = decode_message(data, ProbeWork).facts
        return encode_message(msgspec.structs.replace(probe, facts=facts))

    return run


def test_every_device_tells_what_it_takes_itself() -> None:
    with fleet_that_takes(a=made_up_probe(), b=made_up_probe().stretched(3.0)) as fleet:
        found = probe_devices(fleet)
    assert list(found) == ["a", "b"]
    assert found["b"].networks == found["a"].stretched(3.0).networks
    assert found["a"].facts.threads == 1


def test_only_those_who_are_named_are_probed() -> None:
    with fleet_that_takes(a=made_up_probe(), b=made_up_probe()) as fleet:
        assert list(probe_devices(fleet, ["b"])) == ["b"]


def test_a_device_with_other_networks_is_refused() -> None:
    other = msgspec.structs.replace(made_up_probe(), digest="0123456789")
    with fleet_that_takes(a=other) as fleet, pytest.raises(FormatError) as refused:
        probe_devices(fleet)
    assert "digest '01234567'" in str(refused.value)
    assert str(refused.value).startswith("a: ")
