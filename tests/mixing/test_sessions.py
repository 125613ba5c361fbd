"""Both ends open an edge once, in whatever order hellos arrive, and old messages count no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import WireError
from edgeweave.mixing.sessions import Sessions


class Pair:
    """Two ends and the hellos under way between them."""

    def __init__(self) -> None:
        self.ends = {"a": Sessions(1), "b": Sessions(2)}
        self.ways: dict[str, list[dict[str, float]]] = {"a": [], "b": []}

    def greet(self, end: str) -> None:
        other = "b" if end == "a" else "a"
        self.ways[other].append(self.ends[end].greet(other))

    def deliver(self, end: str) -> None:
        other = "b" if end == "a" else "a"
        if self.ways[end]:
            heard = self.ends[end].hello(other, self.ways[end].pop(0))
            if heard.answers:
                self.ways[other].append(self.ends[end].stamp(other))

    def settle(self) -> None:
        for _ in range(50):
            self.deliver("a")
            self.deliver("b")
        assert self.ways == {"a": [], "b": []}

    def agrees(self) -> bool:
        a, b = self.ends["a"], self.ends["b"]
        return (
            a.is_open("b")
            and b.is_open("a")
            and b.is_current("a", a.stamp("b"))
            and a.is_current("b", b.stamp("a"))
        )


@given(
    st.lists(st.sampled_from(["greet a", "greet b", "take a", "take b", "close a"]), max_size=20)
)
def test_after_any_history_one_greeting_opens_the_edge_at_both_ends(history: list[str]) -> None:
    pair = Pair()
    for what in history:
        act, end = what.split()
        if act == "greet":
            pair.greet(end)
        elif act == "take":
            pair.deliver(end)
        else:
            pair.ends["a"].close("b")
    pair.settle()
    pair.greet("a")
    pair.settle()
    assert pair.agrees()


def test_a_greeting_that_crosses_an_answer_closes_nothing() -> None:
    """Bug: the edge that b had opened was closed again, and their iterations met one apart."""
    pair = Pair()
    pair.greet("b")
    pair.deliver("a")  # which answers
    pair.greet("a")  # and then learns that b is there
    pair.deliver("b")
    assert pair.ends["b"].is_open("a")
    heard = pair.ends["b"].hello("a", pair.ways["b"].pop(0))
    assert not heard.closes
    assert heard.answers
    pair.ways["a"].append(pair.ends["b"].stamp("a"))
    pair.settle()
    assert pair.agrees()


def test_a_lost_message_is_noticed_by_the_next() -> None:
    pair = Pair()
    pair.greet("a")
    pair.settle()
    first, _lost, third = (pair.ends["a"].number("b") for _ in range(3))
    assert pair.ends["b"].follows("a", first)
    assert not pair.ends["b"].follows("a", third)
    pair.ends["b"].close("a")
    pair.greet("b")
    pair.settle()
    assert pair.agrees()
    assert pair.ends["b"].follows("a", pair.ends["a"].number("b"))


def test_messages_of_an_older_session_are_not_current() -> None:
    pair = Pair()
    pair.greet("a")
    pair.settle()
    old = pair.ends["a"].stamp("b")
    pair.greet("a")
    pair.settle()
    assert pair.agrees()
    assert not pair.ends["b"].is_current("a", old)


def test_a_process_that_returns_is_told_from_the_one_before() -> None:
    pair = Pair()
    pair.greet("a")
    pair.settle()
    assert pair.ends["b"].incarnation_of("a") == 1
    pair.ends["a"] = Sessions(77)
    pair.greet("a")
    pair.settle()
    assert pair.agrees()
    assert pair.ends["b"].incarnation_of("a") == 77


def test_a_hello_without_its_session_is_refused() -> None:
    with pytest.raises(WireError, match="a hello names its session"):
        Sessions(1).hello("b", {})
