"""What is said of how a run stood failures."""

from __future__ import annotations

from edgeweave.device import ServiceLevel
from edgeweave.train.failures.service import Recovery, Service
from tests.fleet.worlds import plan_of


def recovery(*, lost: tuple[str, ...], step: int, resumed: int, seconds: float) -> Recovery:
    plan = plan_of(("c",), (), 4)
    return Recovery(step, lost, ("c",), plan, resumed, seconds / 10, seconds)


def test_of_several_losses_the_longest_and_the_sum_is_told() -> None:
    service = Service(replicates=True)
    service.recovered(recovery(lost=("a",), step=12, resumed=10, seconds=3.0))
    service.recovered(recovery(lost=("b", "d"), step=30, resumed=27, seconds=2.0))
    assert service.level() == ServiceLevel(3, 0.3, 3.0, 5, 0, 0)
    assert [each.step for each in service.recoveries] == [12, 30]


def test_copies_are_as_old_as_the_oldest_replica() -> None:
    service = Service(replicates=True)
    for done, told in [(1, {}), (2, {"a": 0, "b": 0}), (3, {"a": 2}), (4, {"b": 2}), (5, {})]:
        service.step_ended(done, ("a", "b"), told, here=0)
        level = service.level()
        assert level.replica_age_steps == {1: 1, 2: 2, 3: 3, 4: 2, 5: 3}[done]
    assert level.oldest_replica_steps == 3


def test_the_copy_here_counts_where_it_is_newer_or_a_device_keeps_none() -> None:
    service = Service(replicates=True)
    service.step_ended(9, ("a", "b"), {"a": 8}, here=4)
    assert service.level().replica_age_steps == 5
    service.step_ended(10, ("a", "b"), {"b": 6}, here=8)
    assert service.level().replica_age_steps == 2
    service.step_ended(11, ("a",), {}, here=8)
    assert service.level() == ServiceLevel(replica_age_steps=3, oldest_replica_steps=5)


def test_replicas_of_a_term_that_is_over_do_not_count() -> None:
    service = Service(replicates=True)
    service.step_ended(9, ("a", "b"), {"a": 8, "b": 8}, here=0)
    service.term_begins()
    service.step_ended(10, ("b", "a"), {"a": 9}, here=0)
    assert service.level().replica_age_steps == 10
    service.step_ended(11, ("b", "a"), {"b": 10}, here=0)
    assert service.level().replica_age_steps == 2


def test_where_no_state_is_copied_no_age_is_told() -> None:
    service = Service(replicates=False)
    service.step_ended(9, ("a", "b"), {}, here=0)
    assert service.level() == ServiceLevel()


def test_a_person_reads_it_as_sentences() -> None:
    assert ServiceLevel().line() == "No device was lost. No states are copied."
    assert ServiceLevel(1, 0.024, 1.679, 3, 2, 11).line() == (
        "A device was lost once, noticed after 0.02 s and made good 1.68 s later at most; 3 steps "
        "were computed again. Copies of all states are 2 steps old, 11 at most so far."
    )
    assert ServiceLevel(2, 1.0, 2.0, 0).line().startswith("A device was lost 2 times, noticed")
