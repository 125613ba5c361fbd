"""How a command ends: exit codes, messages for people, documents for programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from edgeweave.cli.boundary import guarded
from edgeweave.core import errors


def _raise(error: BaseException) -> Callable[[], object]:
    def run() -> object:
        raise error

    return run


def _edgeweave(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeweave", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    "kind", [errors.ConfigError, errors.CaptureError, errors.PlanError, errors.CheckpointError]
)
def test_an_error_ends_with_its_exit_code_and_message(
    kind: type[errors.EdgeweaveError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(_raise(kind("the rule (the facts). The fix.")), ["plan"]) == kind.exit_code
    captured = capsys.readouterr()
    assert captured.err == "edgeweave: the rule (the facts). The fix.\n"
    assert captured.out == ""


def test_with_json_stdout_has_the_error_as_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.DeviceLost("pi-3 is gone.", device="pi-3", stage=2)
    assert guarded(_raise(error), ["train", "job.toml", "--json"]) == 11
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "train"
    assert document["error"] == {
        "type": "DeviceLost",
        "message": "pi-3 is gone.",
        "exit_code": 11,
        "device": "pi-3",
        "stage": 2,
    }


def test_notes_on_an_error_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.PlanError("does not fit.")
    error.add_note("reported by stage 1 on pi-b")
    guarded(_raise(error), [])
    assert capsys.readouterr().err == "edgeweave: does not fit.\nreported by stage 1 on pi-b\n"


def test_a_devices_traceback_is_shown_only_when_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = errors.DeviceFailed("it failed.", device="pi-1", remote_traceback="Traceback: deep")
    assert guarded(_raise(error), []) == 13
    assert "deep" not in (shown := capsys.readouterr().err)
    assert "--debug" in shown
    assert guarded(_raise(error), ["--debug"]) == 13
    assert "Traceback: deep" in capsys.readouterr().err


def test_debug_shows_our_own_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    guarded(_raise(errors.PlanError("does not fit.")), ["plan", "--debug"])
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_the_environment_can_ask_for_tracebacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWEAVE_DEBUG", "1")
    guarded(_raise(errors.PlanError("does not fit.")), [])
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(_raise(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr() == ("", "")


def test_a_bug_shows_its_traceback_and_asks_for_a_report(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert guarded(_raise(ZeroDivisionError("ours")), ["--json"]) == 1
    captured = capsys.readouterr()
    assert "ZeroDivisionError: ours" in captured.err
    assert "bug in Edgeweave" in captured.err
    assert json.loads(captured.out)["error"]["type"] == "ZeroDivisionError"


def test_a_command_that_returns_nothing_succeeds() -> None:
    assert guarded(lambda: None, []) == 0


def test_an_exit_code_that_is_returned_is_kept() -> None:
    assert guarded(lambda: 7, []) == 7


def _fails(*arguments: str) -> tuple[int, str, dict[str, Any]]:
    ended = _edgeweave(*arguments, "--json")
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr, json.loads(ended.stdout)["error"]


def test_an_unknown_option_is_wrong_usage() -> None:
    code, shown, error = _fails("join", "--nmae", "x")
    assert code == error["exit_code"] == 2
    assert "--nmae" in error["message"]
    assert "edgeweave join --help" in shown


def test_an_unknown_command_is_wrong_usage() -> None:
    code, _shown, error = _fails("trian")
    assert code == 2
    assert "trian" in error["message"]


def test_a_job_file_that_is_missing_is_a_config_error(tmp_path: object) -> None:
    code, shown, error = _fails("plan", f"{tmp_path}/none.toml")
    assert (code, error["type"]) == (2, "ConfigError")
    assert "none.toml: a job file is TOML" in error["message"]
    assert error["message"] in shown


def test_a_tcp_address_of_the_network_is_refused_without_a_word_about_safety() -> None:
    code, _shown, error = _fails("status", "--connect", "tcp/192.0.2.1:7447")
    assert code == 2
    assert "--insecure" in error["message"]


def test_nobody_at_an_address_ends_with_the_code_of_the_fleet() -> None:
    code, _shown, error = _fails("join", "--connect", "tcp/127.0.0.1:1", "--wait", "1")
    assert (code, error["type"]) == (9, "FleetError")
    assert "nobody answers at tcp/127.0.0.1:1" in error["message"]


def test_the_version_is_told() -> None:
    assert _edgeweave("--version").stdout.startswith("edgeweave 0.")
