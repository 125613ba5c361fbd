"""Sizes, rates and durations, written and read by people."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.core.units import (
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_rate,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        (512, 512),
        ("512", 512),
        ("512 B", 512),
        ("2kb", 2000),
        ("2 KiB", 2048),
        (" 512MiB ", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("1.5 GiB", 3 * 2**29),
    ],
)
def test_a_size_is_read_with_or_without_its_unit(text: str | int, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e9", "3 apples", "1,5 GB", "1 MiB 2"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bytes(text)
    assert str(caught.value) == (
        f"a size is a number and a unit (got {text!r}). Write it like 512MiB or 1.5GB."
    )


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (640 * 2**20, "640.0 MiB"),
        (5 * 2**40, "5120.0 GiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_above_one(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@given(st.integers(0, 2**50))
def test_a_shown_size_reads_back_to_three_digits(size_bytes: int) -> None:
    shown = parse_bytes(format_bytes(size_bytes))
    assert abs(shown - size_bytes) <= max(0.06 * size_bytes, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 us"),
        (2.5e-6, "2.5 us"),
        (0.00123, "1.23 ms"),
        (0.25, "250 ms"),
        (1.5, "1.5 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (75, "1 min 15 s"),
        (3600, "60 min 0 s"),
    ],
)
def test_a_duration_is_shown_with_three_digits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.floats(0, 1e5))
@example(48299.5)
def test_no_duration_is_shown_with_sixty_seconds_beside_minutes(seconds: float) -> None:
    assert " 60 s" not in format_seconds(seconds)


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("8bit/s", 1.0),
        ("20Mbit/s", 2.5e6),
        (" 1.5 kbit/s ", 187.5),
        ("1Gbit/s", 1.25e8),
        ("1Kibit/s", 128.0),
        ("2.5MB/s", 2.5e6),
        ("1 MiB/s", 2.0**20),
        ("3B/s", 3.0),
    ],
)
def test_a_rate_is_read_in_bits_or_bytes(text: str, bytes_per_second: float) -> None:
    assert parse_rate(text) == bytes_per_second


@pytest.mark.parametrize(
    "text", ["", "20", "20Mbit", "20Mb/s", "20Mbps", "-1MB/s", "1e6B/s", "1,5MB/s"]
)
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rate(text)
    assert str(caught.value) == (
        f"a rate is a number and bits or bytes per second (got {text!r}). "
        "Write it like 20Mbit/s or 2.5MB/s."
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3ms", 0.003), ("250us", 0.00025), (" 1.5 s ", 1.5), ("2min", 120.0), ("0s", 0.0)],
)
def test_a_duration_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "ms", "-3ms", "3 parsec", "1h", "1e3ms"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Write it like 3ms or 1\.5s\.$"):
        parse_seconds(text)
