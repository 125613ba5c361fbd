"""``edgeweave serve``: a job's model over HTTP, with the weights it was trained to."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import uvicorn

from edgeweave.cli.app import main
from edgeweave.cli.serving import _run, load_weights
from edgeweave.core.errors import ConfigError
from edgeweave.device.signals import StopSignals
from edgeweave.train.checkpoint import latest, load
from edgeweave.train.jobs.service_job import load_service
from edgeweave.train.models import digits_cnn
from tests.fleet.worlds import wait_until

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


class Slow:
    """An application that answers when it is told to, and says when it was asked."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        self.asked.set()
        while not self.go_on.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


@dataclass
class Running:
    """What is served by ``_run`` on the main thread, and one client that has asked."""

    app: Slow
    server: uvicorn.Server
    reply: Future[bytes]
    listener: socket.socket
    signals: StopSignals

    def run(self, *acts: Callable[[], object]) -> None:
        """Serve, and do these in turn once the request is there."""

        def then() -> None:
            assert self.app.asked.wait(20)
            for act in acts:
                act()

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(then)
            try:
                _run(self.server, self.listener, self.signals)
            finally:
                done.result(20)

    def wait_stopping(self) -> None:
        """Until nobody can connect any more: the signal has been heard."""
        wait_until(lambda: self.listener.fileno() == -1, "it stops listening")


@pytest.fixture
def running() -> Iterator[Running]:
    app = Slow()
    config = uvicorn.Config(app, lifespan="off", log_level="critical", timeout_graceful_shutdown=20)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def asked() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=20) as reply:
            return bytes(reply.read())

    with ThreadPoolExecutor(1) as pool, StopSignals() as signals, listener:
        yield Running(app, uvicorn.Server(config), pool.submit(asked), listener, signals)
        app.go_on.set()


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.wire
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_was_asked_be_answered_and_raises_nothing(
    running: Running, number: int
) -> None:
    again = kill(signal.SIGTERM)  # some send it twice: it hurries nobody
    running.run(kill(number), running.wait_stopping, again, again, running.app.go_on.set)
    assert running.reply.result(20) == b"done"


@pytest.mark.wire
def test_a_second_ctrl_c_waits_for_nobody(running: Running) -> None:
    ctrl_c = kill(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        running.run(ctrl_c, running.wait_stopping, ctrl_c)
    assert not running.app.go_on.is_set()


@pytest.mark.wire
def test_a_server_that_fails_is_not_waited_for(running: Running) -> None:
    def failing(sockets: list[socket.socket]) -> None:
        raise OSError(f"{len(sockets)} sockets")

    running.server.run = failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="1 sockets"):
        _run(running.server, running.listener, running.signals)


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
