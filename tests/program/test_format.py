"""Programs and states as bytes and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import msgspec
import pytest
import safetensors.torch
import torch

from edgeweave.core.errors import FormatError
from edgeweave.program import (
    Captured,
    cut,
    decode,
    decode_program,
    decode_state,
    encode,
    encode_state,
    without_outputs,
)
from edgeweave.program.format import FORMAT_VERSION
from tests.models import ZOO
from tests.program.graphs import state_of, two_layers
from tests.program.running import Pipeline, assert_same_training, differing, microbatches

Capture = Callable[[str], Captured]


def _small() -> tuple[bytes, bytes]:
    return encode(two_layers(), state_of(two_layers()))


def _changed(graph: bytes, **fields: object) -> bytes:
    return json.dumps(json.loads(graph) | fields, separators=(",", ":")).encode()


def _refused(graph: bytes, tensors: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        decode(graph, tensors)
    return str(caught.value)


@pytest.mark.parametrize("name", ZOO)
def test_a_model_of_the_zoo_comes_back_equal(captured: Capture, name: str) -> None:
    original = captured(name)
    decoded = decode(*encode(original.program, original.state))
    assert decoded.program == original.program
    assert differing(decoded.state, original.state) == []


@pytest.mark.parametrize("name", ZOO)
def test_decoded_stages_train_bit_for_bit_like_the_original(captured: Capture, name: str) -> None:
    original = captured(name)
    parts = microbatches(ZOO[name].batch(4), (2, 2))
    middle = original.program.unit_numbers[2]
    pipeline = Pipeline(original, (middle,))
    expected = pipeline.train(parts)
    again = Pipeline(original, (middle,))
    fresh = Pipeline(original, (middle,))
    for index, stage in enumerate(again.stages):
        state = fresh.stages[index]._state
        decoded = decode(*encode(stage.program, state))
        again.stages[index] = type(stage)(decoded.program, decoded.state)
    assert_same_training(again.train(parts), expected)


def test_encoding_is_deterministic() -> None:
    assert _small() == _small()


def test_the_graph_alone_is_read_without_the_tensors() -> None:
    assert decode_program(_small()[0]) == two_layers()


def test_a_stage_travels_like_a_whole_program() -> None:
    stage = cut(without_outputs(two_layers()), (1,))[0]
    assert decode(*encode(stage, state_of(two_layers()))).program == stage


def test_encoding_writes_only_the_state_that_the_program_declares() -> None:
    state = {**state_of(two_layers()), "stranger": torch.ones(3)}
    assert decode(*encode(two_layers(), state)).state.keys() == {"w", "v"}


def test_the_file_names_its_format_and_version() -> None:
    envelope = json.loads(_small()[0])
    assert (envelope["format"], envelope["version"]) == ("edgeweave/program", FORMAT_VERSION)


def test_views_and_tied_tensors_are_written_out_in_full() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    written = safetensors.torch.load(encode_state({"a": whole.T, "b": whole, "c": whole[1:]}))
    assert torch.equal(written["a"], whole.T)
    assert torch.equal(written["c"], whole[1:])


def test_parameters_are_written_without_their_gradients() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not safetensors.torch.load(encode_state({"p": parameter}))["p"].requires_grad


def test_what_is_no_json_is_refused() -> None:
    assert _refused(b"\x80\x04pickle", b"").startswith("the graph is not of the program schema (")


@pytest.mark.parametrize("graph", [b"", b"[]", b"null", b'{"format": 3}', b"\xff\xfe"])
def test_what_is_no_envelope_is_refused(graph: bytes) -> None:
    assert _refused(graph, b"").startswith("the graph is not of the program schema (")


def test_a_foreign_format_is_refused() -> None:
    graph, tensors = _small()
    assert _refused(_changed(graph, format="onnx"), tensors) == (
        "not a program of Edgeweave (format: 'onnx')."
    )


def test_another_version_is_refused_with_the_way_out() -> None:
    graph, tensors = _small()
    assert _refused(_changed(graph, version=99), tensors) == (
        f"this package reads version {FORMAT_VERSION} of the program format "
        "(the file has version 99). Use the package that wrote it."
    )


def test_a_damaged_graph_is_refused() -> None:
    graph, tensors = _small()
    assert _refused(graph.replace(b'"loss":"loss"', b'"loss":"y"   '), tensors) == (
        "the graph is damaged (its SHA-256 differs). Fetch or write it again."
    )


def test_damaged_tensors_are_refused() -> None:
    graph, tensors = _small()
    assert _refused(graph, tensors[:-1] + b"\x00") == (
        "the tensors are damaged (SHA-256 differs). Fetch or write them again."
    )


def test_tensors_of_another_program_are_refused_by_name() -> None:
    graph, _ = _small()
    other = encode_state({"w": torch.zeros(3, 4), "v": torch.zeros(2, 2)})
    digest = hashlib.sha256(other).hexdigest()
    assert _refused(_changed(graph, state_sha256=digest), other) == (
        "the tensors are not those of the program (v differ)."
    )


def test_what_is_no_safetensors_is_refused() -> None:
    graph, _ = _small()
    digest = hashlib.sha256(b"junk").hexdigest()
    assert _refused(_changed(graph, state_sha256=digest), b"junk").startswith(
        "the tensors are not safetensors ("
    )


@pytest.mark.parametrize(
    "header",
    [
        b'{"w":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,9999999999999]}}',
        b'{"w":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}',
        b'{"w":{"dtype":"XX","shape":[1],"data_offsets":[0,4]}}',
        b"{" * 1000,
        b"",
    ],
)
def test_tensors_that_lie_about_their_size_are_refused(header: bytes) -> None:
    for length in (len(header), 2**63):
        data = length.to_bytes(8, "little") + header + b"\x00" * 8
        with pytest.raises(FormatError):
            decode_state(data, two_layers().state)


def test_a_graph_larger_than_any_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgeweave.program.format._MAX_GRAPH_BYTES", 100)
    graph, tensors = _small()
    assert _refused(graph, tensors).startswith("a graph has at most 100 B (got ")


@pytest.mark.parametrize("depth", [10, 300, 700, 100_000])
def test_deep_nesting_is_refused_and_overflows_nothing(depth: int) -> None:
    graph, tensors = _small()
    nested = b'{"type":"items","items":[' * depth + b"]}" * depth
    program = json.loads(graph)["program"]
    program["nodes"][0]["args"] = "HERE"
    inner = json.dumps(program).encode().replace(b'"HERE"', b"[" + nested + b"]")
    digest = hashlib.sha256(inner).hexdigest()
    fields = json.loads(graph) | {"program_sha256": digest, "program": "HERE"}
    _refused(json.dumps(fields).encode().replace(b'"HERE"', inner), tensors)


def test_programs_compare_equal_only_if_all_of_them_is() -> None:
    assert two_layers() == two_layers()
    assert two_layers() != msgspec.structs.replace(two_layers(), loss=None)
