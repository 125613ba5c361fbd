"""``edgeweave serve``: a job's model over HTTP, with the weights it was trained to."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from edgeweave.cli.app import main
from edgeweave.cli.serving import load_weights
from edgeweave.core.errors import ConfigError
from edgeweave.train.checkpoint import latest, load
from edgeweave.train.models import digits_cnn
from edgeweave.train.service_job import load_service

JOB = """
[model]
factory = "digits-cnn"
[fleet]
devices = [{name = "pi-a"}, {name = "pi-b"}]
[serve]
name = "digits"
port = 0
"""
EXAMPLE = 'example = [{shape = [1, 1, 8, 8], datatype = "FP32"}]\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def test_a_model_is_served_without_data_or_optimizer(tmp_path: Path) -> None:
    job = load_service(written(tmp_path, JOB + EXAMPLE), environment={}, overrides={})
    assert job.data is None
    assert [(each.shape, each.datatype) for each in job.serve.example] == [((1, 1, 8, 8), "FP32")]


def test_an_example_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="serving needs an example of a request"):
        load_service(written(tmp_path, JOB), environment={}, overrides={})


def test_file_under_environment_under_command_line(tmp_path: Path) -> None:
    job = load_service(
        written(tmp_path, JOB + EXAMPLE),
        environment={"EDGEWEAVE_SERVE_PORT": "1", "EDGEWEAVE_SERVE_QUEUE_SIZE": "9"},
        overrides={"serve.port": "2"},
    )
    assert (job.serve.port, job.serve.queue_size, job.serve.name) == (2, 9, "digits")


REFUSED: dict[str, tuple[str, list[str], int, str]] = {
    "another address without TLS": (
        EXAMPLE,
        ["--host", "0.0.0.0"],
        2,
        "requests from other machines come over TLS",
    ),
    "weights that are not there": (EXAMPLE, ["--weights", "none.st"], 2, "is a file that can be"),
    "no checkpoint": (
        EXAMPLE + '[train]\ncheckpoint_directory = "nowhere"\n',
        [],
        5,
        "holds no checkpoint",
    ),
    "names for some tensors": (
        'example = [{shape = [1, 1, 8, 8]}, {shape = [1], name = "x"}]\n',
        [],
        2,
        "tensors of serve.example all have different names",
    ),
    "a setting that is none": (EXAMPLE + "quick = true\n", [], 2, "quick"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_said_before_any_device_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text, arguments, code, message = REFUSED[name]
    job = written(tmp_path, JOB + text)
    assert main(["serve", str(job), *arguments]) == code
    assert message in capsys.readouterr().err


def test_weights_of_another_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"0.weight": torch.zeros(3)}, other)
    job = written(tmp_path, JOB + EXAMPLE)
    assert main(["serve", str(job), "--weights", str(other)]) == 2
    assert "0.weight differ" in capsys.readouterr().err


def test_weights_as_train_saves_them_are_put_into_the_model(tmp_path: Path) -> None:
    torch.manual_seed(7)
    trained, path = digits_cnn(), tmp_path / "w.safetensors"
    path.write_bytes(safetensors.torch.save(trained.state_dict()))
    told = {"serve.weights": str(path)}
    job = load_service(written(tmp_path, JOB + EXAMPLE), environment={}, overrides=told)
    model = digits_cnn()
    assert load_weights(model, job) == str(path)
    found = model.state_dict()
    assert all(torch.equal(found[name], t) for name, t in trained.state_dict().items())


TRAINED = (
    JOB.replace(
        "[serve]", "[data]\nsource = 'digits'\n[optimizer]\nname = 'SGD'\nlr = 0.05\n[serve]"
    )
    + "[train]\nbatch_size = 256\nn_microbatches = 2\ncheckpoint_directory = 'kept'\n"
)


@pytest.mark.slow
@pytest.mark.wire
def test_a_model_just_trained_is_served_from_its_checkpoint(tmp_path: Path) -> None:
    job = written(tmp_path, TRAINED)
    assert main(["train", str(job)]) == 0
    model = digits_cnn()
    model.load_state_dict(load(latest(tmp_path / "kept")).state)
    picture = torch.rand(1, 1, 8, 8)
    with subprocess.Popen(
        [sys.executable, "-m", "edgeweave", "serve", str(job), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        found = (re.search(r"http://\S+/infer", line) for line in server.stderr)
        url = next(match[0] for match in found if match)
        answer = _asked(url, picture)
        server.send_signal(signal.SIGTERM)
        out, _ = server.communicate(timeout=60)
        assert server.returncode == 0
    with torch.inference_mode():
        assert torch.equal(answer, model.eval()(picture))
    report = json.loads(out)["report"]
    assert (report["answered"], report["expired"]) == (1, 0)
    assert all(device["cpu_seconds"] > 0 for device in report["devices"])


def _asked(url: str, picture: torch.Tensor) -> torch.Tensor:
    tensor: dict[str, Any] = {
        "name": "input",
        "shape": list(picture.shape),
        "datatype": "FP32",
        "data": picture.flatten().tolist(),
    }
    body = json.dumps({"inputs": [tensor]}).encode()
    with urllib.request.urlopen(url, data=body, timeout=60) as reply:
        (output,) = json.load(reply)["outputs"]
    return torch.tensor(output["data"]).reshape(output["shape"])
