"""The page of benchmarks says what the kept results say."""

from __future__ import annotations

import pytest

from benchmarks.claims import CLAIMS
from benchmarks.harness import read
from benchmarks.page import PAGE, page

UNMEASURED: set[str] = set()
"""Their whole runs are still to come; the page says so."""
MEASURED = [name for name in CLAIMS if name not in UNMEASURED]


def test_results_are_kept_of_all_claims_but_those_known_to_be_unmeasured() -> None:
    assert {name for name in CLAIMS if read(name) is None} == UNMEASURED


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m benchmarks --page"


@pytest.mark.parametrize("name", MEASURED)
def test_a_kept_result_was_not_quick_and_has_every_metric_of_its_claim(name: str) -> None:
    document = read(name)
    assert document is not None
    assert not document["quick"]
    assert document["metrics"].keys() == {metric.key for metric in CLAIMS[name].metrics}


@pytest.mark.parametrize("name", MEASURED)
def test_a_kept_result_tells_where_and_how_it_was_measured(name: str) -> None:
    document = read(name)
    assert document is not None
    assert {"commit", "processor", "cores", "torch", "load_before"} <= document["machine"].keys()
    assert "seed" in document["settings"]
    assert all(series["samples"] for series in document["series"].values())


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_drawn_has_raw_samples_whose_median_is_the_metric(name: str) -> None:
    document = read(name)
    assert document is not None
    for key in CLAIMS[name].drawn:
        assert document["series"][key]["median"] == pytest.approx(document["metrics"][key])
