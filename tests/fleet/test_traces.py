"""Rate over time: two formats, told apart by content, and real files of both."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from edgeweave.core.errors import ConfigError
from edgeweave.fleet.traces import parse_trace, read_trace
from edgeweave.net import RateTrace

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "net_traces"
HEADER = "seconds,bytes_per_second\n"


def test_a_table_of_rates_is_taken_as_it_is() -> None:
    found = parse_trace(f"{HEADER}0,1000\n0.5,0\n2,250.5\n")
    assert found == RateTrace((0.0, 0.5, 2.0), (1000.0, 0.0, 250.5), 3.5)


def test_a_single_rate_lasts_a_second() -> None:
    assert parse_trace("Seconds, bytes_per_second\n0,1000").duration_seconds == 1.0


def test_chances_to_deliver_are_counted_in_pieces_of_a_tenth_of_a_second() -> None:
    found = parse_trace("0\n5\n5\n100\n250\n")
    assert found.seconds == (0.0, 0.1, 0.2)
    assert found.bytes_per_second == pytest.approx((4 * 15000.0, 0.0, 1500 / 0.05))
    assert found.duration_seconds == 0.25
    assert found.mean == pytest.approx(5 * 1500 / 0.25)


WRONG = [
    ("", "at least one line"),
    ("\n\n", "at least one line"),
    (HEADER, "begins at second 0"),
    (f"{HEADER}1,5", "begins at second 0"),
    (f"{HEADER}0,5\n0,6", "line 3: seconds increase"),
    (f"{HEADER}0,-5", "line 2: seconds increase and a rate is 0 or more"),
    (f"{HEADER}0,nan", "line 2: seconds increase"),
    (f"{HEADER}0,5\ninf,5", "line 3: seconds increase"),
    (f"{HEADER}0", "line 2 is seconds,bytes_per_second (got '0')"),
    (f"{HEADER}0,1,2", "line 2 is seconds,bytes_per_second"),
    (f"{HEADER}zero,1", "line 2 is seconds,bytes_per_second"),
    (f"{HEADER}0,0\n1,0", "a rate above 0 somewhere"),
    ("0,5", "line 1 is a whole millisecond"),
    ("3\n2", "line 2: milliseconds do not decrease"),
    ("3\n-4", "line 2 is a whole millisecond"),
    ("3\n\n4", "line 2 is a whole millisecond"),
    ("0\n0", "ends after millisecond 0"),
    ("3\n99999999999", "end within a week"),
    ("٣", "line 1 is a whole millisecond"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_what_is_no_trace_is_refused_with_its_file_and_line(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(ConfigError) as refused:
        read_trace(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)


def test_a_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="a text file that can be read"):
        read_trace(path)


def test_a_recorded_mahimahi_trace_keeps_its_mean_rate(tmp_path: Path) -> None:
    recorded = RECORDED / "mahimahi_raw" / "Verizon-LTE-short.down.gz"
    if not recorded.exists():
        pytest.skip(f"no recorded traces here ({recorded})")
    content = gzip.decompress(recorded.read_bytes())
    path = tmp_path / "verizon.down"
    path.write_bytes(content)
    found = read_trace(path)
    stamps = [int(line) for line in content.split()]
    assert found.duration_seconds == stamps[-1] / 1000
    assert found.mean == pytest.approx(len(stamps) * 1500 / found.duration_seconds)
    assert found.mean * 8e-6 == pytest.approx(9.4, abs=6)  # Mbit/s, as LTE is


def test_a_recorded_throughput_is_read_from_a_table(tmp_path: Path) -> None:
    recorded = RECORDED / "throughput.npz"
    if not recorded.exists():
        pytest.skip(f"no recorded traces here ({recorded})")
    with np.load(recorded) as arrays:
        name = next(key for key in sorted(arrays) if key.startswith("nyc19/"))
        mbit = arrays[name].astype(float)
    rows = (f"{0.1 * i:.1f},{rate * 125000:.1f}\n" for i, rate in enumerate(mbit))
    path = tmp_path / "nyc.csv"
    path.write_text(HEADER + "".join(rows))
    found = read_trace(path)
    assert len(found.seconds) == len(mbit)
    assert found.mean == pytest.approx(float(mbit.mean()) * 125000, rel=1e-3)
