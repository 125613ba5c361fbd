"""Rate over time, read from a file. Two formats, told apart by content:

    seconds,bytes_per_second      ours: CSV with this header; the rate holds from its second on.
    0.0,1250000                   Times increase from 0. The last piece lasts as long as the one
    0.1,0                         before it.

    3                             mahimahi's (https://github.com/ravinet/mahimahi): the millisecond
    3                             of each chance to deliver 1500 bytes, in order. Counted here in
    17                            pieces of 100 ms; the last line is where the trace ends.

Either trace begins anew when it ends.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from edgeweave.core.errors import ConfigError
from edgeweave.net.link import RateTrace

__all__ = ["parse_trace", "read_trace"]

_HEADER = "seconds,bytes_per_second"
_MAHIMAHI_BYTES = 1500
_PIECE_MILLISECONDS = 100
_LARGEST_FILE_BYTES = 64 << 20
_LONGEST_MILLISECONDS = 7 * 24 * 3600 * 1000


def read_trace(path: Path) -> RateTrace:
    """The trace in a file; ``ConfigError`` with the file and the line if it is none."""
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise ConfigError(f"{path}: a trace has at most 64 MiB. Cut it.")
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: a trace is a text file that can be read ({error}). Check the path."
        ) from error
    try:
        return parse_trace(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_trace(content: str) -> RateTrace:
    """The trace that a text says.

    >>> parse_trace("seconds,bytes_per_second\\n0,1000\\n2,500\\n").duration_seconds
    4.0
    """
    lines = [line.strip() for line in content.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ConfigError(f"a trace has at least one line (got none). Begin it with {_HEADER}.")
    if "".join(lines[0].split()).lower() == _HEADER:
        return _pieces(lines[1:])
    return _opportunities(lines)


def _pieces(lines: list[str]) -> RateTrace:
    seconds: list[float] = []
    rates: list[float] = []
    for number, line in enumerate(lines, start=2):
        try:
            second, rate = (float(part) for part in line.split(","))
        except ValueError:
            raise ConfigError(
                f"line {number} is seconds,bytes_per_second (got {line[:40]!r}). Write two numbers."
            ) from None
        later = not seconds or second > seconds[-1]
        if not later or not (math.isfinite(second) and math.isfinite(rate)) or rate < 0:
            raise ConfigError(
                f"line {number}: seconds increase and a rate is 0 or more (got {line[:40]!r}). "
                "Correct it."
            )
        seconds.append(second)
        rates.append(rate)
    if not seconds or seconds[0] != 0:
        raise ConfigError("a trace begins at second 0. Subtract the first time from all.")
    last = seconds[-1] - seconds[-2] if len(seconds) > 1 else 1.0
    return _trace(seconds, rates, seconds[-1] + last)


def _opportunities(lines: list[str]) -> RateTrace:
    counts: Counter[int] = Counter()
    before = 0
    for number, line in enumerate(lines, start=1):
        if not (line.isascii() and line.isdigit()) or len(line) > 12:
            raise ConfigError(
                f"line {number} is a whole millisecond (got {line[:40]!r}). Begin the file with "
                f"{_HEADER} if it is no mahimahi trace."
            )
        millisecond = int(line)
        if not before <= millisecond <= _LONGEST_MILLISECONDS:
            raise ConfigError(
                f"line {number}: milliseconds do not decrease and end within a week "
                f"(got {millisecond} after {before}). Correct it."
            )
        # The chance at the very end of a piece belongs to it: the trace has no time after it.
        counts[max(millisecond - 1, 0) // _PIECE_MILLISECONDS] += 1
        before = millisecond
    if before == 0:
        raise ConfigError("a trace ends after millisecond 0 (got only zeros). Correct it.")
    n_pieces = -(-before // _PIECE_MILLISECONDS)
    ends = [min((n + 1) * _PIECE_MILLISECONDS, before) for n in range(n_pieces)]
    begins = [n * _PIECE_MILLISECONDS for n in range(n_pieces)]
    rates = [counts[n] * _MAHIMAHI_BYTES / (ends[n] - begins[n]) * 1000.0 for n in range(n_pieces)]
    return _trace([begin / 1000 for begin in begins], rates, before / 1000)


def _trace(seconds: list[float], rates: list[float], duration_seconds: float) -> RateTrace:
    if not any(rates):
        raise ConfigError(
            "a trace has a rate above 0 somewhere (all are 0). For a link that is down write "
            "up = false."
        )
    return RateTrace(tuple(seconds), tuple(rates), duration_seconds)
