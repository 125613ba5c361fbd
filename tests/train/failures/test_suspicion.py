"""Who is lost and who is only slow, decided at moments that the test makes up."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.device import Pulse
from edgeweave.train.failures.device_watch import lost_error
from edgeweave.train.failures.suspicion import Suspicion, Verdict

PATIENCE = 2.0
WAITS = Pulse("run-1", doing="waits", what="the activation of microbatch 0 from stage 0 on a")

Says = Callable[[str, float], Pulse | None]


def computing(seconds: float, *, usual: float | None = 0.01, action: int = 7) -> Pulse:
    what = "the forward of microbatch 2"
    return Pulse("run-1", 3, "computes", what, seconds, action, usual)


def suspect(says: Says, until: float, look_every: float | None = None) -> tuple[float, Verdict]:
    """Ask ``a``, ``b`` and ``c``, who answer at once what ``says`` says, until a verdict."""
    suspicion = Suspicion(0.0, PATIENCE, dict.fromkeys("abc", 0.1))
    now = 0.0
    while now < until:
        verdict = suspicion.look(now)
        if verdict is not None:
            return now, verdict
        for ask in suspicion.due(now):
            reached = ask.via is None or says(ask.via, now) is not None
            pulse = says(ask.device, now)
            if pulse is not None and reached:
                suspicion.answered(ask.device, pulse, now)
        now += look_every or suspicion.look_seconds
    return now, Verdict("nobody", "silent", 0.0, 0)


def test_who_answers_nothing_is_lost_when_patience_is_over() -> None:
    at, verdict = suspect(lambda device, _now: None if device == "b" else WAITS, 100.0)
    assert (verdict.device, verdict.why, verdict.pulse) == ("b", "silent", None)
    assert PATIENCE <= at <= 1.1 * PATIENCE
    assert verdict.n_pulses >= 4


@given(st.floats(0.0, 50.0))
def test_who_falls_silent_later_is_lost_within_its_patience_and_the_time_between_pulses(
    stops: float,
) -> None:
    at, verdict = suspect(lambda device, now: None if device == "c" and now > stops else WAITS, 99)
    assert verdict.device == "c"
    assert stops + PATIENCE * 0.99 <= at <= stops + 1.4 * PATIENCE


def test_who_answers_is_never_lost_however_long_the_wait() -> None:
    assert suspect(lambda _device, _now: WAITS, 3600.0)[1].device == "nobody"


def test_a_silence_shorter_than_the_patience_is_forgiven() -> None:
    silent = lambda now: now % 4.0 < 0.85 * PATIENCE  # noqa: E731
    says: Says = lambda device, now: None if device == "a" and silent(now) else WAITS  # noqa: E731
    assert suspect(says, 600.0)[1].device == "nobody"


def test_time_in_which_nobody_looked_proves_nothing() -> None:
    """Whoever asks sleeps for a minute; the answers of before come right after it wakes up."""
    suspicion = Suspicion(0.0, PATIENCE, {"a": 0.1})
    assert [ask.device for ask in suspicion.due(0.0)] == ["a"]
    assert suspicion.look(60.0) is None
    suspicion.answered("a", WAITS, 60.0)
    assert suspicion.look(60.1) is None


def test_who_is_not_reached_directly_is_asked_over_those_that_answer() -> None:
    suspicion = Suspicion(0.0, PATIENCE, dict.fromkeys("abc", 0.1))
    assert [(ask.device, ask.via) for ask in suspicion.due(0.0)] == [
        ("a", None),
        ("b", None),
        ("c", None),
    ]
    suspicion.answered("b", WAITS, 0.01)
    asks = suspicion.due(0.11)
    assert [(ask.device, ask.via) for ask in asks] == [
        ("a", None),
        ("a", "b"),
        ("c", None),
        ("c", "b"),
    ]
    assert all(0 < ask.timeout_seconds <= PATIENCE for ask in asks)


def test_a_thread_that_computes_one_action_for_ever_is_stuck() -> None:
    at, verdict = suspect(lambda d, now: computing(now) if d == "b" else WAITS, 100.0)
    assert (verdict.device, verdict.why) == ("b", "stuck")
    assert 3.0 < at < 4.0


def test_the_stage_that_is_stuck_is_named_and_not_those_that_wait_for_it() -> None:
    idle = Pulse("run-1", doing="idles")
    says = {"a": WAITS, "b": idle, "c": computing(9.0)}
    assert suspect(lambda device, _now: says[device], 100.0)[1].device == "c"


@pytest.mark.parametrize("slowness", [1.0, 3.0, 9.0])
def test_a_device_that_is_slow_is_not_stuck(slowness: float) -> None:
    """Its actions take half a second, and up to nine times that: each one ends."""
    action = 0.5 * slowness
    says: Says = lambda d, now: (  # noqa: E731
        computing(now % action, usual=0.5, action=int(now / action)) if d == "b" else WAITS
    )
    assert suspect(says, 600.0)[1].device == "nobody"


def test_ten_times_what_the_action_took_before_is_allowed() -> None:
    at, verdict = suspect(lambda d, now: computing(now, usual=2.0) if d == "b" else WAITS, 100.0)
    assert verdict.why == "stuck"
    assert 20.0 < at < 22.0


def test_an_action_that_was_never_done_before_is_not_judged() -> None:
    says: Says = lambda d, now: computing(now, usual=None) if d == "b" else WAITS  # noqa: E731
    assert suspect(says, 600.0)[1].device == "nobody"


def test_nobody_is_stuck_while_another_one_works() -> None:
    says: Says = lambda d, now: (  # noqa: E731
        WAITS if d == "a" else computing(now, action=7 if d == "b" else int(now))
    )
    assert suspect(says, 600.0)[1].device == "nobody"


def test_a_device_that_stood_still_says_a_long_time_and_is_not_stuck() -> None:
    """It was stopped in the middle of an action, and counts the seconds in which it was."""
    says: Says = lambda d, now: (  # noqa: E731
        WAITS if d != "b" else None if 0.1 < now < 1.5 else computing(60.0 + now)
    )
    at, verdict = suspect(says, 2.9)
    assert verdict.device == "nobody", at


def test_errors_say_who_what_how_long_and_what_to_do() -> None:
    silent = lost_error(
        Verdict("b", "silent", 1.25, 4), 1, round=7, what="the result of microbatch 2"
    )
    assert (silent.device, silent.stage) == ("b", 1)
    assert str(silent) == (
        "stage 1 on b was lost in round 7 (it answered none of 4 pulses for 1.25 s, while the "
        "result of microbatch 2 was waited for). Bring it back or leave it out, and resume from "
        "the last checkpoint; for links with longer holes, raise Timeouts.silence."
    )
    stuck = lost_error(
        Verdict("b", "stuck", 4.0, 9, computing(4.1, usual=0.25)),
        1,
        round=7,
        what="the result of microbatch 2",
    )
    assert str(stuck) == (
        "stage 1 on b was lost in round 7 (it computes the forward of microbatch 2 for 4 s and "
        "more, which took 250 ms before, while the result of microbatch 2 is waited for). "
        "Restart its agent or leave it out, and resume from the last checkpoint."
    )


LINK_SECONDS = 10.0


def suspect_links(
    names: str, dead: Callable[[str, float], bool], says: Says, until: float
) -> tuple[float, Verdict]:
    """A pipeline of ``names``, of whose links those are ``dead`` that say so, as "ab"."""
    links = [(a, b) for a, b in pairwise(names)]
    suspicion = Suspicion(
        0.0, PATIENCE, dict.fromkeys(names, 0.1), links=links, link_seconds=LINK_SECONDS
    )
    now = 0.0
    while now < until:
        verdict = suspicion.look(now)
        if verdict is not None:
            return now, verdict
        for ask in suspicion.due(now):
            ends = "".join(sorted((ask.via or "", ask.device)))
            pulse = says(ask.device, now)
            if pulse is not None and not dead(ends, now):
                suspicion.answered(ask.device, pulse, now, via=ask.via)
        now += suspicion.look_seconds
    return now, Verdict("nobody", "silent", 0.0, 0)


def all_wait(_device: str, _now: float) -> Pulse:
    return WAITS


@pytest.mark.parametrize(
    ("names", "dead", "lost", "peer"),
    [
        ("ab", ["ab"], "b", "a"),  # the later one
        ("abc", ["ab"], "a", "b"),  # b reaches c
        ("abc", ["bc"], "c", "b"),
        ("abcd", ["bc"], "c", "b"),  # both reach another
        ("abc", ["ab", "bc"], "b", "a"),
        ("abcd", ["ab", "bc"], "b", "a"),
    ],
)
def test_of_two_that_cannot_reach_each_other_the_one_that_fewer_reach_is_cut_off(
    names: str, dead: list[str], lost: str, peer: str
) -> None:
    at, verdict = suspect_links(names, lambda ends, _now: ends in dead, all_wait, 100.0)
    assert (verdict.device, verdict.why, verdict.peer) == (lost, "cut off", peer)
    assert LINK_SECONDS < at < LINK_SECONDS + 3 * PATIENCE
    assert verdict.n_pulses >= 3


def test_a_link_over_which_a_pulse_comes_now_and_then_is_not_dead() -> None:
    _, verdict = suspect_links("abc", lambda _ends, now: now % 9 > 1, all_wait, 600.0)
    assert verdict.why != "cut off"


def test_no_link_is_judged_while_a_stage_computes() -> None:
    def says(device: str, now: float) -> Pulse:
        return computing(now, usual=1.0 * now) if device == "c" and now < 50 else WAITS

    at, verdict = suspect_links("abc", lambda ends, _now: ends == "ab", says, 100.0)
    assert verdict.why == "cut off"
    assert at >= 50


def test_who_is_silent_is_lost_for_that_and_not_for_its_links() -> None:
    def says(device: str, _now: float) -> Pulse | None:
        return None if device == "b" else WAITS

    at, verdict = suspect_links("abc", lambda ends, _now: "b" in ends, says, 100.0)
    assert (verdict.device, verdict.why) == ("b", "silent")
    assert at < 2 * PATIENCE


def test_of_one_that_is_cut_off_the_link_is_named() -> None:
    error = lost_error(
        Verdict("b", "cut off", 10.2, 8, WAITS, "a"),
        1,
        round=12,
        what="the result of microbatch 0",
    )
    assert (error.device, error.stage) == ("b", 1)
    assert str(error) == (
        "stage 1 on b was lost in round 12 (nothing passes between it and a, although both answer: "
        "10.2 s and 8 pulses, while the result of microbatch 0 was waited for). Look at the link "
        "between them, or leave one out, and resume from the last checkpoint."
    )
