"""The comparison of codecs: our contestants keep their word, and the table shows it."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from benchmarks.codec_peers import Row, compared, contestants, table


def test_a_row_has_what_a_contestant_made_of_a_tensor() -> None:
    tensors = {"x": torch.randn(2, 3, 16, 16), "zeros": torch.randn(2, 3, 16, 16).relu()}
    ours = [rival for rival in contestants() if rival.name in ("ours, none", "ours, uniform(8)")]
    rows = {(row.contestant, row.tensor): row for row in compared(tensors, ours, n_turns=1)}
    assert rows["ours, none", "x"].error == 0
    assert rows["ours, none", "x"].bits == pytest.approx(32, abs=0.3)
    assert rows["ours, none", "zeros"].bits < 20
    assert 0 < rows["ours, uniform(8)", "x"].error < 0.02
    assert rows["ours, uniform(8)", "x"].encode_mb_per_second > 0


def test_the_table_has_a_column_for_each_tensor_and_the_slowest_speeds() -> None:
    rows = [
        Row("ours", "a", 8.25, 0.0123, 900.0, 700.0),
        Row("ours", "b", 5.0, 0.0, 500.0, 800.0),
    ]
    shown = table([asdict(row) for row in rows])
    assert "| | a | b | MB/s in | MB/s out |" in shown
    assert "| ours | 8.25, 1.2 % | 5.00, exact | 500 | 700 |" in shown
