"""What ``edgeweave gossip`` refuses, before it asks anybody; and which fleet it looks into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeweave.cli import main

from .test_processes import JOB


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--attach", "--detach"], r"one thing at a time (--attach and --detach are given)"),
        (["--admit", "pi-e", "--attach"], "one thing at a time (--attach and --admit are given)"),
        (["--run", "gossip-1"], "--run says which run to go on with (got gossip-1, and nothing"),
        (["--detach", "--save", "m"], "--save writes the model of a run that has ended (--detach"),
        (["--admit", "x", "--save", "m"], "(--admit does not wait for it). Save with --attach"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    job: Path, options: list[str], wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: ``--detach --save FILE`` saved nothing, and said nothing."""
    assert main(["gossip", str(job), *options]) == 2
    assert wrong in capsys.readouterr().err


def test_a_run_is_looked_for_in_the_fleet_that_the_job_names(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: --stop and --admit looked into the fleet ``default``, whatever its name was."""
    from edgeweave.cli import gossip  # noqa: PLC0415

    seen: list[str] = []

    def looked(network: Any, *_arguments: object, **_options: object) -> None:
        seen.append(network.fleet)
        raise KeyboardInterrupt

    monkeypatch.setattr(gossip, "_watched", looked)
    named = ["--set", "fleet.namespace=home"]
    for arguments in (["--stop", "gossip-1"], [str(job), "--admit", "x"], [str(job), "--attach"]):
        assert main(["gossip", *arguments, *named]) == 130
    monkeypatch.setenv("EDGEWEAVE_FLEET_NAMESPACE", "garden")
    for arguments in (["--stop", "gossip-1"], [str(job), "--admit", "x"], [str(job), "--attach"]):
        assert main(["gossip", *arguments]) == 130
    assert seen == ["home"] * 3 + ["garden"] * 3
