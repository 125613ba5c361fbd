"""Suggestions for mistyped words."""

from __future__ import annotations

from edgeweave.core.words import suggest


def test_a_near_word_is_suggested_and_else_all_are_named() -> None:
    assert suggest("dealy", ["rate", "delay"]) == "Did you mean delay?"
    assert suggest("zzz", (word for word in ("rate", "delay"))) == "Known: rate, delay."
