"""Scripted trouble in real local fleets: every kind of event, and what a run makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.fleet import FleetDescription
from edgeweave.net import ShapedTransport, ZenohTransport
from tests.fleet.worlds import assert_gone, family_of, plan_of, wait_until
from tests.train.trained_models import MLP, n_units

pytestmark = [pytest.mark.wire, pytest.mark.timeout(180)]

DEVICES = (ew.Device("a", speed=0.9), ew.Device("b"))
FAST = ew.Links(default=ew.LinkShape(bytes_per_second=50e6, delay_seconds=0.0005), seed=3)


def fit(fleet: ew.Fleet, *, steps: int, recover: bool = True) -> ew.Report:
    trainer = ew.PipelineTrainer(
        MLP.model(),
        MLP.loss,
        optimizer=ew.Optimizer("SGD", lr=0.05),
        fleet=fleet,
        plan=plan_of(("a", "b"), (1,), n_units(MLP)),
        n_microbatches=2,
        recover=recover,
    )
    data = TensorDataset(*MLP.batch(4 * steps))
    return trainer.fit(data, batch_size=4, epochs=1, progress=False)


def log_of(fleet: ew.Fleet) -> list[tuple[str, int]]:
    return [(record.what, record.step) for record in fleet.chaos_log]


SCRIPT = (
    ew.Chaos()
    .slow("a", 0.5, at_step=1)
    .stop("b", at_step=2, for_seconds=0.2)
    .link_down("a", "b", both=True, at_step=3, for_seconds=0.2)
    .drop("coordinator", "a", 0.05, at_step=3, for_steps=1)
    .rate("b", "coordinator", 1e6, at_step=4, for_steps=1)
)


@pytest.fixture(scope="module")
def survived() -> Iterator[tuple[ew.Fleet, ew.Report]]:
    """A fleet that trained through everything that a run survives."""
    with ew.Fleet.local(DEVICES, links=FAST, chaos=SCRIPT) as fleet:
        yield fleet, fit(fleet, steps=7)


def test_a_run_completes_through_all_that_passes(
    survived: tuple[ew.Fleet, ew.Report],
) -> None:
    _fleet, report = survived
    assert len(report.step_losses) == 7


def test_what_happened_is_in_the_log_and_in_the_report(
    survived: tuple[ew.Fleet, ew.Report],
) -> None:
    fleet, report = survived
    wait_until(lambda: len(fleet.chaos_log) == 9, "what ends on the clock has ended")
    whats = [what for what, _step in log_of(fleet)]
    assert whats.count("stop b") == whats.count("end of stop b") == 1
    on_steps = [each for each in log_of(fleet) if "stop b" not in each[0] and "down" not in each[0]]
    assert on_steps == [
        ("slow a to 0.5", 1),
        ("drop coordinator -> a 0.05", 3),
        ("end of drop coordinator -> a 0.05", 4),
        ("rate b -> coordinator 976.6 KiB/s", 4),
        ("end of rate b -> coordinator 976.6 KiB/s", 5),
    ]
    assert report.chaos == fleet.chaos_log[: len(report.chaos)]
    assert len(report.chaos) >= 7


def test_a_device_that_was_slowed_says_its_new_speed(
    survived: tuple[ew.Fleet, ew.Report],
) -> None:
    fleet, _report = survived
    assert (fleet.greet("a").speed, fleet.greet("b").speed) == (0.5, 1.0)


def test_a_second_run_of_the_same_fleet_sees_no_event_again(
    survived: tuple[ew.Fleet, ew.Report],
) -> None:
    fleet, _report = survived
    wait_until(lambda: len(fleet.chaos_log) == 9, "what ends on the clock has ended")
    assert fit(fleet, steps=3).chaos == ()


@pytest.mark.slow
def test_the_same_seed_and_script_give_the_same_losses_and_the_same_chaos(
    survived: tuple[ew.Fleet, ew.Report],
) -> None:
    first, report = survived
    with ew.Fleet.local(DEVICES, links=FAST, chaos=SCRIPT) as second:
        again = fit(second, steps=7)
        wait_until(lambda: len(second.chaos_log) == 9, "what ends on the clock has ended")
    wait_until(lambda: len(first.chaos_log) == 9, "what ends on the clock has ended")
    assert again.step_losses == report.step_losses
    begun = [each for each in log_of(first) if not each[0].startswith("end of")]
    assert [each for each in log_of(second) if not each[0].startswith("end of")] == begun


@pytest.mark.slow
def test_a_killed_device_ends_the_run_by_its_name_and_leaves_nothing_behind() -> None:
    family: list[psutil.Process] = []

    def kill_and_fail() -> None:
        with ew.Fleet.local(DEVICES, chaos=ew.Chaos().kill("b", at_step=2)) as fleet:
            for name in fleet.devices:
                family.extend(family_of(fleet.pid(name)))
            try:
                fit(fleet, steps=50, recover=False)
            finally:
                assert log_of(fleet) == [("kill b", 2)]

    with pytest.raises(ew.DeviceLost) as lost:
        kill_and_fail()
    assert (lost.value.device, lost.value.stage) == ("b", 1)
    assert_gone(family)


def test_a_fleet_ends_though_a_device_stands_still() -> None:
    with ew.Fleet.local(DEVICES[:1], chaos=ew.Chaos().stop("a")) as fleet:
        family = family_of(fleet.pid("a"))
        fleet.step_begins(0)
        wait_until(lambda: family[0].status() == psutil.STATUS_STOPPED, "the agent stands still")
    assert_gone(family)


def test_a_restarted_device_comes_back_as_another_process_and_hears_what_it_missed() -> None:
    chaos = ew.Chaos().restart("a", for_seconds=0.1).slow("a", 0.25, at_step=1)
    with ew.Fleet.local(DEVICES[:1], chaos=chaos) as fleet:
        before = family_of(fleet.pid("a"))
        fleet.step_begins(0)
        wait_until(lambda: len(fleet.chaos_log) == 2, "it was killed and started again")
        fleet.step_begins(1)  # torch takes seconds to load: nobody can be told anything yet
        wait_until(lambda: fleet.present() == ("a",), "it is there")
        wait_until(lambda: fleet.greet("a").speed == 0.25, "it was told")
        after = family_of(fleet.pid("a"))
        assert {each.pid for each in before}.isdisjoint(each.pid for each in after)
        assert log_of(fleet) == [("restart a", 0), ("end of restart a", 0), ("slow a to 0.25", 1)]
    assert_gone(before)
    assert_gone(after)


def test_a_fleet_ends_though_a_device_is_just_being_started() -> None:
    with ew.Fleet.local(DEVICES[:1], chaos=ew.Chaos().restart("a", for_steps=1)) as fleet:
        fleet.step_begins(0)
        fleet.step_begins(1)
        family = family_of(fleet.pid("a"))
    assert_gone(family)


def test_without_links_and_chaos_nothing_stands_before_the_network() -> None:
    with ew.Fleet.described(FleetDescription(DEVICES[:1])) as fleet:
        assert isinstance(fleet.transport, ZenohTransport)


def test_a_fleet_file_is_started_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(
        '[[devices]]\nname = "a"\nspeed = 0.25\nmemory = "64MiB"\n'
        '[links.default]\nrate = "10Mbit/s"\ndelay = "1ms"\n'
    )
    with ew.Fleet.described(ew.load_fleet(path)) as fleet:
        assert isinstance(fleet.transport, ShapedTransport)
        found = fleet.greet("a")
        assert (found.speed, found.memory_limit_bytes) == (0.25, 64 << 20)


# Refused before anything starts.


def test_trouble_and_links_of_somebody_else_are_refused() -> None:
    with pytest.raises(ew.ConfigError, match=r"kill c: 'c' is not in the fleet \(a, b\)"):
        ew.Fleet.local(DEVICES, chaos=ew.Chaos().kill("c"))
    with pytest.raises(ew.ConfigError, match=r"\(a -> c: 'c' is not one of coordinator, a, b\)"):
        ew.Fleet.local(DEVICES, links=ew.Links.of({("a", "c"): ew.LinkShape()}))
