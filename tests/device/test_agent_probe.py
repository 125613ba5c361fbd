"""The verb ``probe`` of an agent: what is asked of the device, and what is known already."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgeweave.core.errors import ConfigError, DeviceBusy, WireError
from edgeweave.device import (
    AgentSettings,
    Emulate,
    ProbeRequest,
    decode_message,
    encode_message,
)
from edgeweave.device.probes.messages import ProbeWork
from edgeweave.net import control_key
from edgeweave.predict.probe import Probe
from tests.device.stages.examples import LONG
from tests.device.test_agent import Bench, bench_of, no_task
from tests.predict.probes import made_up_probe


class Prober:
    """The task ``probe`` of a device that takes ``slower`` times what a made-up one does."""

    def __init__(self) -> None:
        self.slower = 1.0
        self.asked: list[ProbeWork] = []

    def __call__(self, name: str, data: bytes) -> bytes:
        assert name == "probe"
        work = decode_message(data, ProbeWork)
        self.asked.append(work)
        found = msgspec.structs.replace(made_up_probe().stretched(self.slower), facts=work.facts)
        return encode_message(found)


def probe(bench: Bench, full_speed: Probe | None = None) -> Probe:
    return decode_message(bench.ask("probe", ProbeRequest(full_speed)), Probe)


@pytest.fixture
def prober() -> Prober:
    return Prober()


def test_a_device_remembers_its_probe_while_the_agent_lives(prober: Prober) -> None:
    with bench_of(AgentSettings("pi-a", threads=1), run_task=prober) as bench:
        first, second = probe(bench), probe(bench)
    assert [work.known for work in prober.asked] == [None, first]
    assert first == second
    assert first.facts.threads == 1
    assert first.facts == prober.asked[0].facts


def test_what_changed_is_what_is_remembered(prober: Prober) -> None:
    with bench_of(AgentSettings("pi-a", threads=1), run_task=prober) as bench:
        first = probe(bench)
        prober.slower = 2.0
        slowed = probe(bench)
        probe(bench)
    assert slowed == first.stretched(2.0)
    assert [work.known for work in prober.asked] == [None, first, slowed]


def test_an_agent_that_starts_again_knows_the_probe_of_the_last_one(
    prober: Prober, tmp_path: Path
) -> None:
    settings = AgentSettings("pi-a", threads=1, cache_directory=str(tmp_path))
    for _ in range(2):
        with bench_of(settings, run_task=prober) as bench:
            found = probe(bench)
    assert [work.known for work in prober.asked] == [None, found]


def test_a_damaged_file_is_no_error_and_is_replaced(prober: Prober, tmp_path: Path) -> None:
    settings = AgentSettings("pi-a", threads=1, cache_directory=str(tmp_path))
    for _ in range(2):
        with bench_of(settings, run_task=prober) as bench:
            probe(bench)
        (kept,) = tmp_path.iterdir()
        content = kept.read_bytes()
        kept.write_bytes(b"{")
    assert [work.known for work in prober.asked] == [None, None]
    assert msgspec.json.decode(content, type=Probe).facts == prober.asked[0].facts


def test_a_probe_after_a_change_of_speed_is_that_of_the_slower_device(prober: Prober) -> None:
    with bench_of(AgentSettings("pi-a", speed=0.8), run_task=prober) as bench:
        started = probe(bench)
        bench.ask("emulate", Emulate(speed=0.2))
        assert probe(bench) == started.stretched(4.0)
    assert prober.asked[1].known == started


def test_an_emulated_device_takes_over_the_probe_of_another_of_its_host() -> None:
    with bench_of(AgentSettings("pi-a", speed=0.25), run_task=no_task) as bench:
        assert probe(bench, made_up_probe()) == made_up_probe().stretched(4.0)


def test_a_real_device_takes_over_nothing() -> None:
    with (
        bench_of(AgentSettings("pi-a", threads=1), run_task=no_task) as bench,
        pytest.raises(ConfigError, match=r"pi-a is a real one.*Let it measure"),
    ):
        probe(bench, made_up_probe())


def test_a_device_that_works_for_a_run_is_not_probed() -> None:
    with bench_of(AgentSettings("pi-a", threads=1)) as bench:
        bench.deploy()
        with pytest.raises(DeviceBusy, match="pi-a already works for"):
            probe(bench)


def test_a_request_that_is_none_is_refused() -> None:
    with (
        bench_of(AgentSettings("pi-a", threads=1), run_task=no_task) as bench,
        pytest.raises(WireError, match=r"^not a ProbeRequest message"),
    ):
        bench.me.request(
            control_key("default", "pi-a", "probe"), b"\x00", device="pi-a", timeout_seconds=LONG
        )


def test_a_real_agent_measures_every_network() -> None:
    with bench_of(AgentSettings("pi-a", threads=1)) as bench:
        found = probe(bench)
        assert bench.greeting().run is None
    found.check()
    assert found.networks[0].name == "plain"
    rates = found.rates()
    assert rates.convolution_macs_per_second
    assert rates.convolution_macs_per_second > 1e6
