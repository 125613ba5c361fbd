"""Tables and documents say what the values say."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from edgeweave.cli.documents import (
    costs_document,
    explanation_document,
    plan_document,
    probes_document,
    report_document,
    tried_document,
)
from edgeweave.cli.output import encode_document
from edgeweave.cli.tables import (
    Alone,
    alone_table,
    costs_table,
    devices_table,
    explanation_table,
    fleet_table,
    plan_table,
    probes_table,
    serving_plan_table,
    serving_table,
    step_line,
    tried_line,
)
from edgeweave.device import ServiceLevel, ServingStatistics
from edgeweave.plan import Deviation, ServingPlan, Stage, TriedSize, explain, partition
from edgeweave.serving.desk import DeskStatistics
from edgeweave.serving.report import report_of
from edgeweave.train import Recovery
from tests.cli.values import costs, greeting
from tests.observe.reports import plan, three_steps
from tests.predict.probes import made_up_probe


def _rendered(shown: RenderableType) -> str:
    console = Console(width=160)
    return "\n".join(
        "".join(segment.text for segment in line) for line in console.render_lines(shown)
    )


def _row(shown: RenderableType, name: str) -> list[str]:
    line = next(line for line in _rendered(shown).splitlines() if name in line)
    return [cell.strip() for cell in line.strip().strip("│┃").split("│")]


def test_a_plan_is_a_row_for_each_stage() -> None:
    assert _row(plan_table(plan()), "pi-a") == [
        *("0", "pi-a", "0 to 2", "4.00 ms", "8.00 ms", "24.00 ms", "1.0 MiB")
    ]
    assert _row(plan_table(plan()), "pi-b")[2] == "3"


def test_an_explained_plan_has_what_each_device_does_in_a_step() -> None:
    made = partition(costs(), n_microbatches=4, extra_in_flight=0)
    row = _row(explanation_table(made, explain(made, costs())), "pi-a")
    assert row == [
        *("0", "pi-a", "0 to 2 of 4", "36 ms", "41 us", "9%", "24.0 KiB of 1.0 MiB", "96 ms")
    ]


def test_an_explained_plan_has_intervals_where_costs_were_predicted() -> None:
    deviation = Deviation((0.2,) * 4, (0.2,) * 4, 0.5)
    devices = tuple(replace(each, deviation=deviation) for each in costs().devices)
    predicted = replace(costs(), devices=devices)
    made = partition(predicted, n_microbatches=4)
    table = explanation_table(made, explain(made, predicted))
    row = _row(table, "pi-a")
    assert re.fullmatch(r"36 ms \(2\d(\.\d)? ms to 4\d(\.\d)? ms\)", row[3])
    assert re.fullmatch(r"\d+% \(\d+% to \d+%\)", row[5])
    assert re.search(r"predicted 36 ms \([\d.]+ ms to [\d.]+ ms\) a step", _rendered(table))


def test_a_plan_names_its_schedule_and_its_prediction() -> None:
    assert "1f1b, 2 microbatches a step, predicted 50 ms a step" in _rendered(plan_table(plan()))


def test_costs_are_a_column_for_each_device_and_a_sum() -> None:
    table = costs_table(costs())
    assert _row(table, " 3 ")[:3] == ["3", "1.00 ms / 2.00 ms", "2.00 ms / 4.00 ms"]
    assert _row(table, "all")[:3] == ["all", "4.00 ms / 8.00 ms", "8.00 ms / 16.00 ms"]


def test_shares_of_a_devices_time_are_of_all_its_time() -> None:
    row = _row(devices_table(three_steps()), "pi-a")
    assert row[2:5] == ["0.6 s   60 %", "0.3 s   30 %", "0.1 s   10 %"]


def test_coding_is_shown_where_there_was_any() -> None:
    report = three_steps()
    exact = tuple(replace(device, coding_seconds=0.0) for device in report.devices)
    coded = (replace(exact[0], coding_seconds=0.25), *exact[1:])
    assert "coding" not in _rendered(devices_table(replace(report, devices=exact)))
    table = devices_table(replace(report, devices=coded))
    assert "coding" in _rendered(table)
    assert "250 ms" in _row(table, coded[0].device)


def test_what_copies_of_states_cost_is_shown_where_there_were_any() -> None:
    report = three_steps()
    copied = tuple(
        replace(device, copy_bytes_out=3 << 20, snapshot_seconds=0.25) for device in report.devices
    )
    assert "copies" not in _rendered(devices_table(report))
    table = devices_table(replace(report, devices=copied))
    assert "copies of states" in _rendered(table)
    assert _row(table, copied[0].device)[-2] == "3.0 MiB, 250 ms"
    document = report_document(replace(report, devices=copied))
    assert [each["copy_bytes_out"] for each in document["devices"]] == [3 << 20] * 2  # type: ignore[attr-defined]


def test_a_reports_service_level_is_in_its_document() -> None:
    level = ServiceLevel(1, 0.25, 1.5, 3, 2, 11)
    assert report_document(replace(three_steps(), service=level))["service"] == {
        "n_lost": 1,
        "detect_seconds": 0.25,
        "recover_seconds": 1.5,
        "recomputed_steps": 3,
        "replica_age_steps": 2,
        "oldest_replica_steps": 11,
    }


def test_predicted_and_measured_stand_together() -> None:
    assert step_line(three_steps()) == "A step took 100 ms, predicted 50 ms (0.50 of it)."


def test_the_fleet_is_compared_with_each_device_fastest_first() -> None:
    text = _rendered(alone_table(80.0, [Alone("pi-b", 20.0), Alone("pi-a", 40.0)]))
    assert text.index("pi-a alone") < text.index("pi-b alone")
    assert "2.00 times as fast" in text
    assert _row(alone_table(80.0, [Alone("pi-b", 100.0)]), "summed")[1:] == [
        "100",
        "80 % of it",
    ]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (greeting(), ["4.0 GiB", "nobody"]),
        (greeting(run="run-7", limit=1 << 30), ["1.0 GiB of 4.0 GiB", "run-7"]),
    ],
)
def test_a_fleet_says_what_each_device_works_for(shown: object, expected: list[str]) -> None:
    table = fleet_table("lab", [("pi-a", shown)])  # type: ignore[list-item]
    assert _row(table, "pi-a ")[-2:] == expected
    assert "threads=3 (4 cores, 1 kept for I/O), speed 0.5" in _rendered(table)


def test_a_device_that_does_not_answer_is_shown_too() -> None:
    assert _row(fleet_table("lab", [("pi-x", "does not answer: why")]), "pi-x")[3] == (
        "does not answer: why"
    )


def test_a_report_as_a_document_has_no_events_and_all_figures() -> None:
    document = report_document(three_steps())
    assert document["predicted_over_measured"] == pytest.approx(0.5)
    assert document["samples_per_second"] == pytest.approx(80)
    assert [set(d) & {"events", "device"} for d in document["devices"]] == [{"device"}] * 2  # type: ignore[union-attr,attr-defined]


def test_a_recovery_as_a_document_has_its_sentence_and_its_figures() -> None:
    report = three_steps()
    recovery = Recovery(9, ("pi-b", "pi-c"), ("pi-a", "pi-d"), report.plan, 6, 0.25, 1.5)
    (shown,) = report_document(replace(report, recoveries=(recovery,)))["recoveries"]  # type: ignore[misc,attr-defined]
    devices = list(report.plan.devices)
    assert shown == {
        "line": "step 9: pi-b, pi-c lost (noticed after 0.25 s); goes on after step 6 with "
        f"{', '.join(devices)}, 1.50 s later.",
        "step": 9,
        "lost": ["pi-b", "pi-c"],
        "devices": devices,
        "resumed_step": 6,
        "recomputed_steps": 3,
        "silent_seconds": 0.25,
        "seconds": 1.5,
    }


def test_an_explanation_as_a_document_has_its_sentences() -> None:
    made = partition(costs(), n_microbatches=4, schedule="1f1b")
    document = explanation_document(explain(made, costs()))
    assert document["lines"][0].startswith("A step of 4 microbatches takes")  # type: ignore[index]
    assert document["best_single_device"] == "pi-a"


def test_microbatches_that_fit_nowhere_are_said_to() -> None:
    tried = (TriedSize(1, 64, None), TriedSize(2, 32, 0.1234))
    assert tried_line(tried) == (
        "Microbatches, and the step they are predicted to take: 1 of 64: nothing fits, "
        "2 of 32: 123 ms."
    )
    document = json.loads(encode_document("plan", {"microbatches": tried_document(tried)}))
    assert document["microbatches"][0] == {
        "n_microbatches": 1,
        "microbatch_size": 64,
        "step_seconds": None,
    }


def test_documents_are_json_that_says_what_made_it() -> None:
    whole = json.loads(encode_document("plan", {"plan": plan_document(plan())}))
    assert list(whole) == ["edgeweave", "command", "plan"]
    assert whole["plan"]["stages"][0]["device"] == "pi-a"


def test_numbers_that_json_does_not_have_become_null() -> None:
    assert json.loads(encode_document("train", {"loss": float("nan")}))["loss"] is None


def test_costs_as_a_document_have_seconds_by_device() -> None:
    document = costs_document(costs())
    assert document["devices"][1]["forward_seconds"] == (0.002,) * 4  # type: ignore[index]


def test_a_probe_is_shown_as_facts_and_rates() -> None:
    probe = made_up_probe(seconds_per_byte=2e-10, seconds_per_operator=5e-6)
    row = _row(probes_table({"pi-a": probe}), "pi-a")
    assert row[:3] == ["pi-a", "Cortex-A76, 4 cores", "cpu, threads=3"]
    assert row[3:8] == ["10.0 GMAC/s", "10.0 GMAC/s", "5.0 GB/s", "5.0 us", "12 of 12"]


def test_a_probe_shows_what_it_left_out_and_nothing_where_it_does_not_tell() -> None:
    probe = made_up_probe(3, seconds_per_byte=0.0)
    row = _row(probes_table({"pi-a": probe}), "pi-a")
    assert (row[5], row[7]) == ("", "3 of 12")


def test_the_document_of_probes_has_facts_times_and_rates() -> None:
    document = json.loads(encode_document("profile", probes_document({"pi-a": made_up_probe(3)})))
    found = document["pi-a"]
    assert found["facts"]["clock_hertz"] == 2_400_000_000
    assert [each["name"] for each in found["networks"]] == ["plain", "transformer", "mobile"]
    assert len(found["left_out"]) == 9
    assert found["rates"]["matmul_macs_per_second"] == pytest.approx(1e10, rel=1e-3)


def serving_plan() -> ServingPlan:
    stages = (Stage("pi-a", 0, 3, 0.04, 0.0, 1 << 20), Stage("pi-b", 3, 4, 0.02, 0.0, 1 << 20))
    return ServingPlan(stages, 1, 4, 0.04, 0.07)


def test_a_serving_plan_says_what_a_request_takes_alone_and_when_all_are_busy() -> None:
    shown = serving_plan_table(serving_plan())
    assert _row(shown, "pi-b") == ["1", "pi-b", "3", "20.00 ms", "50%", "1.0 MiB"]
    text = " ".join(_rendered(shown).split())
    assert "25.0 requests a second; a request takes 70 ms alone, p50 160 ms when all" in text


def test_what_serving_took_is_told_by_device_with_its_energy() -> None:
    desk = DeskStatistics(0, 0, 4, 0, 0, 0, 0, (0.1, 0.1, 0.1, 0.5), 0.8, 0.0, 2.0)
    did = ServingStatistics(4, 0, 0.4, 0.1, 0.2, 1024, 2048, 1 << 20)
    report = report_of(desk, serving_plan(), {"pi-a": did}, (), watts=2.0)
    shown = serving_table(report)
    assert _row(shown, "pi-a") == [
        *("pi-a", "0 to 2", "4", "100 ms", "50 ms", "100.0 mJ", "1.0 KiB", "2.0 KiB", "1.0 MiB")
    ]
    text = " ".join(_rendered(shown).split())
    assert "4 requests answered, 2.0 a second, p50 100 ms, p99" in text
    assert "all devices together 100.0 mJ" in text
