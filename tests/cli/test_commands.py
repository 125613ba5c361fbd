"""Whole commands over real agents: local fleets, and one that joined."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
import safetensors.torch

from edgeweave.cli import main
from edgeweave.train.models import mlp

pytestmark = pytest.mark.wire

JOB = """
[model]
factory = "mlp"
args = {n_inputs = 64, n_classes = 10, hidden = [16]}

[data]
source = "digits"

[metrics]
accuracy = "accuracy"

[optimizer]
name = "SGD"
lr = 0.1

[train]
batch_size = 512
n_microbatches = 2

[fleet]
devices = [{name = "one", memory = "256MiB"}]
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """A command that succeeds: its document, and what people saw."""
    code = main([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    document: dict[str, Any] = json.loads(captured.out)
    assert document["command"] == arguments[0]
    return document, captured.err


def test_a_plan_is_shown_saved_and_trained_with(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, weights = tmp_path / "made" / "plan.json", tmp_path / "weights.safetensors"
    auto = ["--set", "train.n_microbatches=auto"]
    planned, shown = _run(capsys, "plan", str(job), "--save", str(saved), *auto)
    assert {"plan", "explanation", "microbatches", "saved"} <= planned.keys()
    tried = {each["microbatch_size"]: each["step_seconds"] for each in planned["microbatches"]}
    assert list(tried) == [512, 256, 128, 64]
    assert planned["plan"]["step_seconds"] <= 1.03 * min(tried.values())
    assert "Microbatches, and the step they are predicted to take: 1 of 512: " in shown
    assert planned["plan"]["stages"][0]["device"] == "one"
    assert "Plan: 1f1b" in shown
    assert "one alone takes" in shown

    with_plan = ["--plan", str(saved), "--save", str(weights)]
    trained, shown = _run(capsys, "train", str(job), *with_plan, *auto)
    report = trained["report"]
    assert trained["explanation"] is None
    assert trained["plan"] == planned["plan"]
    assert report["n_samples"] == 1438
    assert report["epochs"][0]["validation"]["n_samples"] == 359
    assert "Where each device's time went" in shown
    model = mlp(64, 10, hidden=[16])
    model.load_state_dict(safetensors.torch.load_file(weights))


@pytest.mark.slow
def test_a_plan_from_the_probe_has_intervals_and_is_drawn(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, picture = tmp_path / "fleet.toml", tmp_path / "made" / "plan.svg"
    fleet.write_text('[[devices]]\nname = "half"\nspeed = 0.3\n[[devices]]\nname = "whole"\n')
    asked = ["--from-probe", "--fleet", str(fleet), "--plot", str(picture)]
    planned, shown = _run(capsys, "plan", str(job), *asked)
    explanation = planned["explanation"]
    interval = explanation["step_interval"]
    assert interval["low"] < explanation["step_seconds"] < interval["high"]
    assert 0 < explanation["bottleneck_chance"] <= 1
    assert "Times were predicted, not measured" in shown
    root = Xml.parse(picture).getroot()
    rows = [group.get("id") for group in root.iter("{http://www.w3.org/2000/svg}g")]
    assert rows == [
        "device:coordinator",
        *(f"device:{s['device']}" for s in planned["plan"]["stages"]),
    ]
    assert planned["plot"] == str(picture)


@pytest.mark.slow
def test_a_profile_has_every_unit_on_every_device(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, shown = _run(capsys, "profile", str(job), "--set", "train.n_microbatches=1")
    costs = document["costs"]
    assert [device["device"] for device in costs["devices"]] == ["one"]
    assert len(costs["devices"][0]["backward_seconds"]) == len(costs["units"])
    assert "forward / backward for each microbatch" in shown
    predicted = document["predicted"]["one"]
    assert predicted["mean_error"] > 0
    assert 0 <= predicted["within_interval"] <= 1
    assert "Predicted before this profile" in shown


@pytest.mark.slow
def test_a_probe_needs_no_model_and_one_device_of_a_host_measures_for_all(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[[devices]]\nname = "half"\nspeed = 0.5\n[[devices]]\nname = "whole"\n')
    job.write_text(JOB.replace('factory = "mlp"', 'factory = "nowhere:model"'))
    document, shown = _run(capsys, "profile", str(job), "--probe", "--fleet", str(fleet))
    half, whole = (document["probes"][name] for name in ("half", "whole"))
    first, slower = whole["networks"][0], half["networks"][0]
    assert slower["forward_seconds"] == [2 * seconds for seconds in first["forward_seconds"]]
    assert half["facts"] == whole["facts"]
    assert whole["facts"]["threads"] == 1
    assert whole["rates"]["convolution_macs_per_second"] > 0
    assert "GMAC/s" in shown


@pytest.mark.slow
def test_a_device_with_too_little_memory_ends_with_the_code_of_plans(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job.write_text(JOB.replace("256MiB", "256"))
    assert main(["profile", str(job)]) == 8
    assert "limit: 256 B" in capsys.readouterr().err


FLEET = """
[[devices]]
name = "small"
speed = 0.9

[links.default]
rate = "100Mbit/s"
delay = "1ms"

[[chaos]]
event = "slow"
device = "small"
speed = 0.5
at_step = 1
"""


@pytest.mark.slow
def test_a_job_trains_on_the_fleet_of_a_file_and_its_chaos_is_reported(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(FLEET)
    trained, shown = _run(capsys, "train", str(job), "--fleet", str(fleet))
    assert "devices: small" in shown
    assert trained["plan"]["stages"][0]["device"] == "small"
    (event,) = trained["report"]["chaos"]
    assert (event["what"], event["step"]) == ("slow small to 0.5", 1)


@pytest.mark.slow
def test_a_job_is_planned_on_a_preset(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned, shown = _run(capsys, "plan", str(job), "--fleet", "equal-lan")
    assert "devices: fast-1, fast-2, slow" in shown
    assert "slow" not in {stage["device"] for stage in planned["plan"]["stages"]}


def test_a_fleet_nobody_knows_is_refused_before_anything_starts(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(job), "--fleet", "raspberry"]) == 2
    assert "--fleet takes local, lan, a file that ends in .toml" in capsys.readouterr().err
    assert main(["demo", "--fleet", "raspberry"]) == 2
    assert "--fleet takes a file that ends in .toml, or a preset" in capsys.readouterr().err
    assert main(["plan", str(job), "--fleet", "lan", "--kernel"]) == 2
    assert "--kernel shapes the links of emulated devices" in capsys.readouterr().err


@pytest.mark.slow
def test_training_resumes_from_a_checkpoint(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job.write_text(JOB.replace("[fleet]", f'checkpoint_directory = "{tmp_path / "kept"}"\n[fleet]'))
    _run(capsys, "train", str(job))
    document, _shown = _run(capsys, "train", str(job), "--resume", "--set", "train.epochs=2")
    assert [epoch["epoch"] for epoch in document["report"]["epochs"]] == [0, 1]
    assert document["report"]["n_samples"] == 1438


def test_a_factory_that_fails_ends_before_a_device_starts(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(job), "--set", "model.args.n_classes=many"]) == 2
    assert "model.factory" in capsys.readouterr().err


@pytest.fixture
def joined() -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """An agent in a process of its own, and what it said when it was ready."""
    command = [sys.executable, "-m", "edgeweave", "join", "--name", "pi-t", "--json"]
    options = ["--fleet", "tests", "--threads", "1", "--memory", "1GiB"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads("".join(_until_closed(process.stdout)))
        finally:
            process.kill()


def _until_closed(lines: Iterator[str]) -> Iterator[str]:
    """The lines of the first document."""
    for line in lines:
        yield line
        if line == "}\n":
            return


@pytest.mark.slow
def test_an_agent_joins_is_seen_trains_and_leaves(
    joined: tuple[subprocess.Popen[str], dict[str, Any]],
    job: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    process, ready = joined
    assert (ready["name"], ready["fleet"]) == ("pi-t", "tests")
    assert ready["threads"] == "threads=1 (as asked)"
    there = ["--connect", ready["endpoints"][0]]

    seen, shown = _run(capsys, "status", *there, "--fleet", "tests")
    assert [device["name"] for device in seen["devices"]] == ["pi-t"]
    assert seen["devices"][0]["memory_limit_bytes"] == 1 << 30
    assert seen["devices"][0]["run"] is None
    assert "pi-t" in shown

    lan = ["--fleet", "lan", "--devices", "1", "--set", "fleet.namespace=tests"]
    trained, shown = _run(capsys, "train", str(job), *lan, *there)
    assert trained["plan"]["stages"][0]["device"] == "pi-t"
    assert "edgeweave join --connect tcp/127.0.0.1:" in shown
    assert "pi-t has joined (1 of 1)" in shown

    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_nobody_there_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    document, shown = _run(capsys, "status", "--wait", "0", "--fleet", "nobody-is-in-here")
    assert document["devices"] == []
    assert "Say where to look: --connect ENDPOINT, or --scout." in shown


def test_devices_that_do_not_come_end_the_wait(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--fleet", "lan", "--listen", "tcp/127.0.0.1:0", "--wait", "0"]
    assert main(["plan", str(job), *wanted]) == 9
    captured = capsys.readouterr()
    assert "edgeweave join --connect tcp/127.0.0.1:" in captured.out
    assert "--name one" in captured.out
    assert "lacks one after 0 s (there: none)" in captured.err


@pytest.mark.slow
def test_the_demo_shows_its_comparison_and_keeps_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, shown = _run(capsys, "demo", "--quick", "--out", str(tmp_path / "demo"))
    assert set(document["alone_samples_per_second"]) == {"pi-b", "old-laptop"}
    assert document["best_single_device"] in document["alone_samples_per_second"]
    assert 0 < document["validation_accuracy"] <= 1
    assert "The fleet against its devices alone" in shown
    kept = {path.name for path in (tmp_path / "demo").iterdir()}
    assert kept == {"timeline.png", "trace.json", "report.json"}
    assert json.loads((tmp_path / "demo" / "report.json").read_text())["plan"] == document["plan"]
