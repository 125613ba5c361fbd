"""The Open Inference Protocol over HTTP: what it answers, and how it refuses."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeweave.core.errors import RequestTimeout
from edgeweave.observe.serving_metrics import metrics_text
from edgeweave.serving import Endpoint, ServeOptions, serve
from edgeweave.serving.http import application
from tests.fleet.worlds import memory_fleet, wait_until
from tests.serving.asgi import Reply, ask

INFER = "/v2/models/toy/infer"


class Toy(nn.Module):
    """Looks rows up and adds: an index out of range is refused by the operator itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(10, 3)
        self.last = nn.Linear(3, 2)

    def forward(self, *, which: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.rows(which) + shift
        return {"sums": self.last(found), "is_large": found.sum(1) > 0}


EXAMPLE = {"which": torch.tensor([3, 4]), "shift": torch.zeros(2, 3)}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    options = ServeOptions(use="all", max_samples=4, timeout_seconds=20.0)
    with (
        memory_fleet("a", "b") as world,
        serve(Toy(), world.fleet, EXAMPLE, options=options) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def app(endpoint: Endpoint) -> Any:
    return application(endpoint, name="toy")


def document(**changes: Any) -> dict[str, Any]:
    """A good request, with changes to its second input."""
    shift = {"name": "shift", "shape": [2, 3], "datatype": "FP32", "data": [0, 1, 2, 0.5, 0, 0]}
    return {
        "id": "7",
        "inputs": [
            {"name": "which", "shape": [2], "datatype": "INT64", "data": [1, 2]},
            shift | changes,
        ],
    }


def infer(app: Any, content: Any, **headers: str) -> Reply:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return ask(app, "POST", INFER, body, headers)


def expected() -> dict[str, torch.Tensor]:
    shift = torch.tensor([[0, 1, 2], [0.5, 0, 0]])
    with torch.inference_mode():
        found: dict[str, torch.Tensor] = Toy().eval()(which=torch.tensor([1, 2]), shift=shift)
    return found


def test_it_says_what_it_is(app: Any) -> None:
    about = ask(app, "GET", "/v2").document
    assert (about["name"], about["extensions"]) == ("edgeweave", ["binary_tensor_data"])
    assert ask(app, "GET", "/v2/health/live").document == {"live": True}
    assert ask(app, "GET", "/v2/health/ready").document == {"ready": True}
    assert ask(app, "GET", "/v2/models/toy/versions/1/ready").document["ready"] is True
    assert ask(app, "GET", "/v2/models/toy").document == {
        "name": "toy",
        "versions": ["1"],
        "platform": "edgeweave_pytorch",
        "inputs": [
            {"name": "shift", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "which", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [
            {"name": "sums", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "is_large", "datatype": "BOOL", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("data", [[0, 1, 2, 0.5, 0, 0], [[0, 1, 2], [0.5, 0, 0]]])
def test_json_in_and_out(app: Any, data: list[Any]) -> None:
    reply = infer(app, document(data=data))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    found, wanted = reply.document, expected()
    assert (found["model_name"], found["model_version"], found["id"]) == ("toy", "1", "7")
    sums, is_large = found["outputs"]
    assert (sums["name"], sums["datatype"], sums["shape"]) == ("sums", "FP32", [2, 2])
    assert torch.equal(torch.tensor(sums["data"]).reshape(2, 2), wanted["sums"])
    assert is_large["data"] == wanted["is_large"].tolist()


def test_binary_tensors_in_and_out(app: Any) -> None:
    tensor = struct.pack("<6f", 0, 1, 2, 0.5, 0, 0)
    asked = document()
    del asked["inputs"][1]["data"]
    asked["inputs"][1]["parameters"] = {"binary_data_size": len(tensor)}
    asked["outputs"] = [{"name": "sums", "parameters": {"binary_data": True}}]
    text = json.dumps(asked).encode()
    reply = infer(app, text + tensor, **{"Inference-Header-Content-Length": str(len(text))})
    assert (reply.status, reply.headers["content-type"]) == (200, "application/octet-stream")
    n_json = int(reply.headers["inference-header-content-length"])
    (sums,) = json.loads(reply.body[:n_json])["outputs"]
    assert sums["parameters"]["binary_data_size"] == len(reply.body) - n_json
    found = torch.frombuffer(bytearray(reply.body[n_json:]), dtype=torch.float32).reshape(2, 2)
    assert torch.equal(found, expected()["sums"])


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "the request is JSON of an inference request"),
    "no bytes": (b"", "the request is JSON of an inference request"),
    "a list": ([], "Expected `object`, got `array`"),
    "no inputs": ({"inputs": []}, "the inputs are shift, which, each once (got none)"),
    "a name": (document(name="other"), "each once (got which, other)"),
    "a type": (document(datatype="FP64"), "shift is FP32 [-1, 3], -1 for any number (got FP64"),
    "a shape": (document(shape=[2, 4]), "(got FP32 [2, 4])"),
    "a rank": (document(shape=[6]), "(got FP32 [6])"),
    "a size below zero": (document(shape=[-2, -3]), "Expected `int` >= 0"),
    "too few numbers": (document(data=[1.0]), "shift of shape [2, 3] has 6 numbers (got 1)"),
    "words": (document(data=["1"] * 6), "(FP32) has a list of float as data"),
    "no data": (document(data=None), "(FP32) has a list of float as data"),
    "truth for numbers": (document(data=[True] * 6), "(FP32) has a list of float as data"),
    "too large a number": (document(data=[1e300] * 6), "a number too large for FP32"),
    "a number beyond floats": (document(data=[10**400] * 6), "shift"),
    "other samples": (
        {"inputs": [document()["inputs"][0], document(shape=[1, 3], data=[0] * 3)["inputs"][1]]},
        "which of a request with 1 samples",
    ),
    "no samples": (
        {
            "inputs": [
                {**each, "shape": [0, *each["shape"][1:]], "data": []}
                for each in document()["inputs"]
            ]
        },
        "a request has 1 to 4 samples",
    ),
    "bytes left over": (json.dumps(document()).encode() + b" \0", "JSON"),
    "binary without bytes": (
        document(data=None, parameters={"binary_data_size": 24}),
        "binary_data_size 24",
    ),
    "an output": ({**document(), "outputs": [{"name": "no"}]}, "outputs are sums, is_large"),
    "deep lists": (b'{"inputs":' + b"[" * 5000, "the request is JSON"),
    "an index out of range": (
        {"inputs": [{**document()["inputs"][0], "data": [1, 99]}, document()["inputs"][1]]},
        "the model cannot compute this request",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_message(app: Any, name: str) -> None:
    content, message = BAD[name]
    reply = infer(app, content)
    assert (reply.status, reply.headers["content-type"]) == (400, "application/json")
    assert message in reply.error
    assert infer(app, document()).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/toy/versions/2", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/metrics", 404),
    ],
)
def test_another_path_or_method_is_refused_with_a_message(
    app: Any, method: str, path: str, status: int
) -> None:
    reply = ask(app, method, path)
    assert reply.status == status
    assert reply.error


@pytest.mark.parametrize("length", ["-1", "0", "x", "99999999999999", "\u0661"])
def test_a_header_length_that_is_none_is_refused(app: Any, length: str) -> None:
    header = {"Inference-Header-Content-Length": length.encode().decode("latin-1")}
    assert infer(app, document(), **header).status == 400


def test_a_body_that_no_request_needs_is_not_read_to_its_end(app: Any) -> None:
    reply = infer(app, b" " * (1 << 20))
    assert reply.status == 413
    assert "a request for toy has at most" in reply.error


def test_a_client_that_leaves_amid_its_request_is_no_fault_of_ours(app: Any) -> None:
    reply = ask(app, "POST", INFER, b"{", then="leaves")
    assert (reply.status, "the client left after 1 bytes" in reply.error) == (408, True)


def test_a_bug_of_ours_is_an_error_as_all_others(
    app: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(_inputs: Any) -> Any:
        raise ZeroDivisionError

    async def survived(scope: Any, receive: Any, send: Any) -> None:
        with suppress(ZeroDivisionError):  # whoever runs the application logs it
            await app(scope, receive, send)

    monkeypatch.setattr(endpoint, "submit", submit)
    reply = infer(survived, document())
    assert (reply.status, "the server failed" in reply.error) == (500, True)


def test_more_samples_than_are_served_at_once_are_refused(app: Any) -> None:
    content = {
        "inputs": [
            {"name": "which", "shape": [5], "datatype": "INT64", "data": [1] * 5},
            {"name": "shift", "shape": [5, 3], "datatype": "FP32", "data": [0] * 15},
        ]
    }
    assert "a request has 1 to 4 samples, its first dimension (got 5)" in infer(app, content).error


def test_a_full_queue_is_said_with_when_to_come_back() -> None:
    options = ServeOptions(queue_size=1, timeout_seconds=0.5)
    with (
        memory_fleet("a") as world,
        serve(Toy(), world.fleet, EXAMPLE, options=options) as endpoint,
    ):
        app = application(endpoint, name="toy")
        world.fabric.kill("a")
        wait_until(lambda: not endpoint.is_ready, "nobody can serve")
        assert ask(app, "GET", "/v2/health/ready").status == 503
        assert ask(app, "GET", "/v2/models/toy/ready").status == 503
        waiting = endpoint.submit(EXAMPLE)
        reply = infer(app, document())
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        assert "1 requests are unanswered already" in reply.error
        assert isinstance(waiting.exception(timeout=20), RequestTimeout)
        late = infer(app, document())
        assert (late.status, "no answer came" in late.error) == (504, True)
        part = ask(app, "POST", INFER, b"{", then="stalls")
        assert (part.status, "comes whole within 0.5 s (got 1 bytes)" in part.error) == (408, True)


def test_an_endpoint_that_was_closed_does_not_call_the_request_bad() -> None:
    with memory_fleet("a") as world:
        with serve(Toy(), world.fleet, EXAMPLE) as endpoint:
            app = application(endpoint, name="toy")
            assert infer(app, document()).status == 200
        reply = infer(app, document())
    assert (reply.status, "the endpoint" in reply.error) == (503, True)


def test_metrics_count_requests_by_outcome_and_what_devices_did(endpoint: Endpoint) -> None:
    app = application(endpoint, name="toy", metrics=metrics_text(endpoint))
    infer(app, document())
    reply = ask(app, "GET", "/metrics")
    assert (reply.status, reply.headers["content-type"].split(";")[0]) == (200, "text/plain")
    found = dict(line.rsplit(" ", 1) for line in reply.body.decode().splitlines() if line[0] != "#")
    statistics = endpoint.statistics()
    assert float(found['edgeweave_requests_total{outcome="answered"}']) == statistics.answered
    assert float(found['edgeweave_requests_total{outcome="turned_away"}']) == 0
    assert float(found["edgeweave_request_seconds_count"]) == statistics.answered
    assert float(found["edgeweave_ready"]) == 1
    assert float(found['edgeweave_device_requests_total{device="a"}']) >= statistics.answered
    for what in ("cpu_seconds", "compute_seconds", "joules"):
        assert all(float(found[f'edgeweave_device_{what}_total{{device="{d}"}}']) > 0 for d in "ab")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "datatype", "data", "parameters", "inputs", "id", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
_BODIES = (
    st.binary(max_size=200)
    | _JSON.map(lambda value: json.dumps(value).encode())
    | st.builds(
        lambda key, value: json.dumps(document(**{key: value})).encode(),
        st.sampled_from(["name", "shape", "datatype", "data", "parameters"]),
        _JSON,
    )
)


@settings(max_examples=150, deadline=None)
@given(body=_BODIES, length=st.none() | st.integers(-2, 300))
def test_whatever_comes_is_answered_or_refused(app: Any, body: bytes, length: int | None) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    reply = infer(app, body, **headers)
    assert reply.status in (200, 400)
    assert reply.status == 200 or reply.error


_FLOATS = st.floats(-1e3, 1e3, width=32)


@st.composite
def _good_requests(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, bool]]:
    """Tensors as the model takes them, and which of all travel in binary."""
    n = draw(st.integers(1, 4))
    rows = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    shift = draw(st.lists(st.lists(_FLOATS, min_size=3, max_size=3), min_size=n, max_size=n))
    binary = {name: draw(st.booleans()) for name in ("which", "shift", "sums", "is_large")}
    return {"which": torch.tensor(rows), "shift": torch.tensor(shift)}, binary


@settings(max_examples=60, deadline=None)
@given(request=_good_requests())
def test_every_well_formed_request_gets_the_models_answer(
    app: Any, request: tuple[dict[str, torch.Tensor], dict[str, bool]]
) -> None:
    tensors, binary = request
    inputs, parts = [], []
    for name, tensor in tensors.items():
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(tensor.shape),
            "datatype": "INT64" if name == "which" else "FP32",
        }
        if binary[name]:
            parts.append(tensor.numpy().tobytes())
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = tensor.tolist()
        inputs.append(entry)
    wanted = [
        {"name": name, "parameters": {"binary_data": binary[name]}} for name in ("sums", "is_large")
    ]
    text = json.dumps({"inputs": inputs, "outputs": wanted}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))} if parts else {}
    reply = infer(app, b"".join([text, *parts]), **headers)
    assert reply.status == 200
    with torch.inference_mode():
        model = Toy().eval()(**tensors)
    n_json = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    rest = reply.body[n_json:]
    for entry in json.loads(reply.body[:n_json])["outputs"]:
        right = model[entry["name"]]
        if binary[entry["name"]]:
            size = entry["parameters"]["binary_data_size"]
            found = torch.frombuffer(bytearray(rest[:size]), dtype=right.dtype).reshape(right.shape)
            rest = rest[size:]
        else:
            found = torch.tensor(entry["data"], dtype=right.dtype).reshape(right.shape)
        assert torch.equal(found, right)
    assert rest == b""
