"""What a device keeps of a run's states: the last two of each kind, as far as there is room."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import FleetError, WireError
from edgeweave.device.stages.snapshots import Snapshots, State, of_parameter, received_state
from edgeweave.program import encode_state

LONG = 30.0


def state(value: float, *names: str, size: int = 1) -> dict[str, torch.Tensor]:
    """Each name with a momentum; 8 bytes a name and element."""
    tensors = {name: torch.full((size,), float(value)) for name in names}
    momenta = {f"{name}|momentum": torch.full((size,), -float(value)) for name in names}
    return tensors | momenta


def equal(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(tensor, expected[name]) for name, tensor in found.items()
    )


def test_the_last_two_steps_of_each_kind_are_kept() -> None:
    kept = Snapshots("pi-b")
    for step in (2, 4, 6, 8):
        kept.add(step, state(step, "w"))
        kept.add_replica(step - 2, state(step - 2, "v"))
    assert kept.held() == {4: ("v",), 6: ("v", "w"), 8: ("w",)}
    assert equal(kept.take(6, ("v", "w")), state(6, "v", "w"))
    assert equal(kept.take(6, ("v",)), state(6, "v"))
    assert equal(kept.own(8, timeout_seconds=0), state(8, "w"))


def test_what_is_added_to_a_step_joins_what_is_known_of_it() -> None:
    kept = Snapshots("pi-b")
    kept.add(4, state(4, "w"))
    kept.add(4, state(4, "x"))
    kept.add_replica(4, state(4, "v"))
    assert kept.held() == {4: ("v", "w", "x")}
    assert equal(kept.own(4, timeout_seconds=0), state(4, "w", "x"))


def test_what_never_changes_is_part_of_every_step_and_of_none() -> None:
    kept = Snapshots("pi-b")
    kept.fixed = {"mask": torch.ones(3)}
    kept.add(4, state(4, "w"))
    assert kept.held() == {4: ("w",)}
    assert equal(kept.take(4, ("mask", "w")), {"mask": torch.ones(3)} | state(4, "w"))
    assert equal(kept.take(99, ("mask",)), {"mask": torch.ones(3)})


def test_what_is_not_kept_is_refused_by_name() -> None:
    kept = Snapshots("pi-b")
    kept.add(4, state(4, "w"))
    with pytest.raises(FleetError) as missing:
        kept.take(4, ("w", "z", "y", "x", "a"))
    assert str(missing.value) == (
        "pi-b does not keep the state of a, x, y after step 4. Ask who holds it."
    )
    with pytest.raises(FleetError, match=r"^pi-b does not keep the state of w after step 2\."):
        kept.take(2, ("w",))


def test_later_steps_are_forgotten_and_earlier_ones_stay() -> None:
    kept = Snapshots("pi-b")
    for step in (4, 6):
        kept.add(step, state(step, "w"))
        kept.add_replica(step, state(step, "v"))
    kept.forget_after(4)
    assert kept.held() == {4: ("v", "w")}
    kept.forget_after(4)
    assert kept.held() == {4: ("v", "w")}
    kept.forget_after(3)
    assert kept.held() == {}


def test_no_more_is_kept_than_there_is_room_for(caplog: pytest.LogCaptureFixture) -> None:
    kept = Snapshots("pi-b")
    kept.room_bytes = 20  # two states of one name, each with its momentum, and not three
    kept.add(2, state(2, "w"))
    kept.add(4, state(4, "w"))
    assert kept.held() == {2: ("w",), 4: ("w",)}
    kept.add_replica(4, state(4, "v"))
    assert kept.held() == {2: ("w",), 4: ("w",)}
    assert caplog.records[-1].levelno == logging.WARNING
    assert caplog.records[-1].message == (
        "pi-b does not keep the state after step 4: snapshots would take 24 B, there is room for "
        "20 B. After a failure the run goes back to the newest state that is whole."
    )
    kept.add(6, state(6, "w"))  # the oldest of its kind goes for it
    assert kept.held() == {4: ("w",), 6: ("w",)}


def test_a_state_that_fits_only_alone_takes_the_place_of_those_before() -> None:
    kept = Snapshots("pi-b")
    kept.room_bytes = 12
    for step in (2, 4, 6):
        kept.add(step, state(step, "w"))
        assert kept.held() == {step: ("w",)}


def test_without_room_nothing_is_kept() -> None:
    kept = Snapshots("pi-b")
    kept.room_bytes = 7
    kept.add(2, state(2, "w"))
    assert kept.held() == {}


@given(
    st.integers(0, 120),
    st.lists(st.tuples(st.booleans(), st.integers(1, 4), st.integers(0, 6)), max_size=20),
)
def test_kept_states_never_exceed_the_room_and_are_the_newest(
    room_bytes: int, added: list[tuple[bool, int, int]]
) -> None:
    kept = Snapshots("pi-b")
    kept.room_bytes = room_bytes
    for step, (is_replica, later, size) in enumerate(added):
        number = 10 * step + later
        name = "v" if is_replica else "w"
        add = kept.add_replica if is_replica else kept.add
        add(number, state(number, name, size=size))
        held = kept.held()
        taken = sum(
            tensor.nbytes for at, names in held.items() for tensor in kept.take(at, names).values()
        )
        assert taken <= room_bytes
        for each in ("v", "w"):
            steps = [at for at, names in held.items() if each in names]
            assert len(steps) <= 2
        if 8 * size <= room_bytes - max((8 * s for other, _, s in added), default=0) * 2:
            assert name in held[number]


def test_who_waits_for_a_step_gets_it_when_it_comes() -> None:
    kept = Snapshots("pi-b")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(kept.own, 4, timeout_seconds=LONG)
        kept.add(2, state(2, "w"))
        assert not waiting.done()
        kept.add_replica(4, state(4, "v"))
        assert not waiting.done()
        kept.add(4, state(4, "w"))
        assert equal(waiting.result(LONG), state(4, "w"))


def test_the_end_wakes_who_waits_and_a_reopened_one_waits_again() -> None:
    kept = Snapshots("pi-b")
    kept.add(2, state(2, "w"))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(kept.own, 4, timeout_seconds=LONG)
        kept.end()
        with pytest.raises(FleetError) as ended:
            waiting.result(LONG)
        assert str(ended.value) == (
            "pi-b does not keep its state after step 4 (it keeps those after [2]). "
            "Ask for one of these."
        )
        with pytest.raises(FleetError):
            kept.own(4, timeout_seconds=LONG)  # at once
        assert equal(kept.own(2, timeout_seconds=0), state(2, "w"))
        kept.reopen()
        waiting = pool.submit(kept.own, 4, timeout_seconds=LONG)
        kept.add(4, state(4, "w"))
        assert equal(waiting.result(LONG), state(4, "w"))


def test_a_deadline_ends_the_wait() -> None:
    with pytest.raises(FleetError, match=r"^pi-b does not keep its state after step 4 \(.* none\)"):
        Snapshots("pi-b").own(4, timeout_seconds=0.01)


def test_nobody_waits_for_a_step_that_will_not_be_kept_any_more() -> None:
    """It was passed, or there was no room for it: no deadline has to be waited for."""
    kept = Snapshots("pi-b")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(kept.own, 4, timeout_seconds=1000.0)
        kept.add(6, state(6, "w"))
        with pytest.raises(FleetError):
            waiting.result(LONG)
        kept.room_bytes = 0
        waiting = pool.submit(kept.own, 8, timeout_seconds=1000.0)
        kept.add(8, state(8, "w"))
        with pytest.raises(FleetError):
            waiting.result(LONG)
        kept.room_bytes = None
        kept.forget_after(4)  # those steps are computed anew
        waiting = pool.submit(kept.own, 8, timeout_seconds=LONG)
        kept.add(6, state(6, "w"))
        assert not waiting.done()
        kept.add(8, state(8, "w"))
        assert equal(waiting.result(LONG), state(8, "w"))


def test_writers_and_readers_on_many_threads_see_whole_states() -> None:
    kept = Snapshots("pi-b")
    n_steps, names = 300, ("a", "b", "c")
    done = threading.Event()

    def write(replica: bool) -> None:
        add = kept.add_replica if replica else kept.add
        for step in range(n_steps):
            add(step, state(step, *(f"{name}{int(replica)}" for name in names)))

    def read() -> int:
        n_seen = 0
        while not done.is_set():
            for step, held in kept.held().items():
                try:
                    found = kept.take(step, held)
                except FleetError:
                    continue  # it has gone meanwhile
                assert {abs(tensor.item()) for tensor in found.values()} == {step}
                assert len(found) == 2 * len(held)
                assert len(held) in (3, 6)
                n_seen += 1
        return n_seen

    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(read) for _ in range(2)]
        writers = [pool.submit(write, replica) for replica in (False, True)]
        for writer in writers:
            writer.result(LONG)
        done.set()
        for reader in readers:
            reader.result(LONG)
    assert kept.held().keys() == {n_steps - 2, n_steps - 1}


def test_a_state_travels_as_safetensors_and_nothing_else_is_taken() -> None:
    sent = state(3, "w")
    assert equal(received_state(encode_state(sent), "b"), sent)
    with pytest.raises(WireError, match=r"^the state that b sent is not safetensors \("):
        received_state(b"pickle", "b")


def test_an_entry_of_the_optimizer_belongs_to_its_parameter() -> None:
    assert [of_parameter(name) for name in ("a.w", "a.w|exp_avg", "a.w|step")] == ["a.w"] * 3
