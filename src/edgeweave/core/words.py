"""What somebody who mistyped a word may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["suggest"]


def suggest(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known word, or all of them if none is near.

    >>> suggest("dealy", ["rate", "delay"])
    'Did you mean delay?'
    """
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
