"""Who has what: the newest whole state, and from whom each device gets its part, by brute force."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import FleetError
from edgeweave.device import Holdings
from edgeweave.program import Program, capture, cut, without_outputs
from edgeweave.train.failures.holders import Holders, Origin, Term
from tests.train.trained_models import CNN

DEVICES = ("a", "b", "c", "d")
STEPS = (2, 4, 6)
BOUNDARIES = (1, 2)


@functools.cache
def whole() -> Program:
    """A model with BatchNorm, whose buffers train along and whose counters do too."""
    return without_outputs(capture(CNN.model(), CNN.loss, *CNN.batch(4)).program)


@functools.cache
def cnn_stages() -> tuple[Program, ...]:
    return cut(whole(), BOUNDARIES)


def fixed_of(stage: Program) -> set[str]:
    return {spec.name for spec in stage.state} - set(stage.trained)


@st.composite
def holdings(draw: st.DrawFn) -> Holders:
    """Any device may keep any stage's state of any step, or a few names of it, or be lost."""
    stages = cnn_stages()
    devices = {}
    for device in draw(st.sets(st.sampled_from(DEVICES))):
        steps: dict[int, tuple[str, ...]] = {}
        for step in draw(st.sets(st.sampled_from(STEPS))):
            kept = draw(st.sets(st.sampled_from(range(len(stages)))))
            names = {name for number in kept for name in stages[number].trained}
            names -= draw(st.sets(st.sampled_from(sorted(whole().trained)), max_size=1))
            steps[step] = tuple(sorted(names))
        fixed = draw(st.sets(st.sampled_from([s.name for s in whole().state])))
        devices[device] = Holdings(steps, tuple(sorted(fixed)))
    return Holders(devices, draw(st.sampled_from([0, 1, 3, 5])))


@given(holdings(), st.sets(st.sampled_from(DEVICES)))
def test_the_newest_step_is_the_latest_of_which_everything_is_somewhere(
    held: Holders, lost: set[str]
) -> None:
    left = Holders({d: h for d, h in held.devices.items() if d not in lost}, held.here)
    whole_steps = [held.here]
    for step in range(10):
        found: set[str] = set()
        for each in left.devices.values():
            found |= set(each.steps.get(step, ()))
        if all(name in found for name in whole().trained):
            whole_steps.append(step)
    assert left.newest_step(whole().trained) == max(whole_steps)
    for of in ([], [2], [4, 6], range(100)):
        some = [step for step in whole_steps if step in of or step == held.here]
        assert left.newest_step(whole().trained, of=of) == max(some)


@given(
    holdings(),
    st.sampled_from(range(len(BOUNDARIES) + 1)),
    st.sampled_from(DEVICES),
    st.permutations(DEVICES),
)
def test_each_name_has_one_origin_the_nearest_and_nothing_travels_that_is_there(
    held: Holders, number: int, device: str, near: list[str]
) -> None:
    stage, step = cnn_stages()[number], held.newest_step(whole().trained)
    origin = held.origin(stage, device, step, seconds=near.index)
    assert origin.step == step
    fetched = [(name, d) for d, names in origin.elsewhere.items() for name in names]
    named = [*origin.own, *(name for name, _ in fetched)]
    assert len(named) == len(set(named))
    assert origin.absent == set(named)
    mine = held.devices.get(device, Holdings({}, ()))
    here = set(mine.steps.get(step, ()))
    assert set(origin.own) == (set(stage.trained) & here) | (fixed_of(stage) & set(mine.fixed))
    for name, source in fetched:
        who = [d for d in held.devices if name in held.devices[d].steps.get(step, ())]
        assert name in stage.trained
        assert name not in here
        assert source == min(who, key=near.index) != device
    along = {spec.name for spec in stage.state} - origin.absent
    for name in along & set(stage.trained):  # only what no device has comes from here
        assert step == held.here
        assert not any(name in each.steps.get(step, ()) for each in held.devices.values())


@given(holdings(), st.sampled_from(range(len(BOUNDARIES) + 1)), st.sampled_from(STEPS))
def test_a_state_is_lost_only_if_nobody_has_it(held: Holders, number: int, step: int) -> None:
    stage = cnn_stages()[number]
    found = {name for each in held.devices.values() for name in each.steps.get(step, ())}
    missing = sorted(set(stage.trained) - found)
    if not missing:
        held.origin(stage, "a", step, seconds=DEVICES.index)
        return
    with pytest.raises(FleetError) as lost:
        held.origin(stage, "a", step, seconds=DEVICES.index)
    assert str(lost.value) == (
        f"the state of {missing[0]} after step {step} is lost (nobody keeps it). "
        "Resume from the last checkpoint."
    )


@pytest.mark.parametrize("victims", ["", "a", "b", "c"])
def test_any_one_device_of_a_chain_may_vanish(victims: str) -> None:
    """Each keeps its own stage and a replica of the one before."""
    stages = cnn_stages()
    devices = {
        device: Holdings({6: (*stages[n].trained, *stages[n - 1].trained)}, ())
        for n, device in enumerate("abc")
        if device not in victims
    }
    assert Holders(devices, 0).newest_step(whole().trained) == 6


@pytest.mark.parametrize("victims", ["ab", "bc", "ca", "abc"])
def test_neighbours_that_vanish_leave_the_state_that_is_here(victims: str) -> None:
    stages = cnn_stages()
    devices = {
        device: Holdings({6: (*stages[n].trained, *stages[n - 1].trained)}, ())
        for n, device in enumerate("abc")
        if device not in victims
    }
    assert Holders(devices, 3).newest_step(whole().trained) == 3


def test_a_term_looks_for_the_nearest_from_each_devices_side() -> None:
    stages = cnn_stages()
    held = Holders({d: Holdings({6: stages[0].trained}, ()) for d in ("b", "c")}, 0)
    seconds = {("b", "a"): 2.0, ("c", "a"): 1.0, ("b", "d"): 1.0, ("c", "d"): 2.0}
    term = Term("run-1", 3, 6, held, lambda source, target: seconds[source, target])
    assert set(term.origin(stages[0], "a").elsewhere) == {"c"}
    assert set(term.origin(stages[0], "d").elsewhere) == {"b"}
    assert term.origin(stages[0], "c").own == tuple(sorted(stages[0].trained))


def test_an_origin_of_nothing_leaves_everything_to_come_along() -> None:
    assert Origin().absent == frozenset()
