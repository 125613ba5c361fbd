"""The Open Inference Protocol (v2), requests and answers as bytes: JSON, and tensors behind it.

    body = JSON                                         every tensor as a list of numbers
    body = JSON | tensor | tensor | ...                 with Inference-Header-Content-Length: the
                                                        JSON's size; little-endian, row-major

Knows no HTTP and no endpoint. Whatever is wrong with a request is a ``RequestError`` that says what
and how to mend it. FP16 and BF16, and numbers that are not finite, travel in binary only: JSON has
no word for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import torch

from edgeweave.core.errors import RequestError
from edgeweave.serving.signature import Port, Signature

__all__ = ["Inquiry", "body_limit_bytes", "decode_inquiry", "encode_answer", "metadata"]

_JSON_BYTES_PER_NUMBER = 32
_HEADER_BYTES = 1 << 16
_DEEPEST = 16
_BINARY_ONLY = ("FP16", "BF16")


class _Input(msgspec.Struct):
    name: str
    shape: Annotated[
        list[Annotated[int, msgspec.Meta(ge=0, le=2**40)]], msgspec.Meta(max_length=16)
    ]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: Annotated[list[_Input], msgspec.Meta(max_length=1024)]
    id: Annotated[str, msgspec.Meta(max_length=1024)] | None = None
    parameters: dict[str, Any] = {}
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=1024)] | None = None


_decoder = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A request that was read: its tensors in the model's order, and how to answer it."""

    id: str | None
    tensors: tuple[torch.Tensor, ...]
    outputs: tuple[tuple[Port, bool], ...]
    """Those asked for; whether in binary."""


def body_limit_bytes(signature: Signature, most_samples: int) -> int:
    """The most that the body of a request needs, however it is written."""
    numbers = sum(_numel(port, most_samples) for port in signature.inputs)
    return _HEADER_BYTES + _JSON_BYTES_PER_NUMBER * numbers


def metadata(name: str, version: str, signature: Signature) -> dict[str, object]:
    """What a model takes and answers, as the protocol describes it."""

    def described(ports: Sequence[Port]) -> list[dict[str, object]]:
        return [{"name": p.name, "datatype": p.datatype, "shape": list(p.shape)} for p in ports]

    return {
        "name": name,
        "versions": [version],
        "platform": "edgeweave_pytorch",
        "inputs": described(signature.inputs),
        "outputs": described(signature.outputs),
    }


def decode_inquiry(body: bytes, header_bytes: int | None, signature: Signature) -> Inquiry:
    """Read a request; ``header_bytes`` is how much of it is JSON, all if None."""
    if header_bytes is not None and not 0 < header_bytes <= len(body):
        raise RequestError(
            f"Inference-Header-Content-Length is 1 to the body's size (got {header_bytes}, the "
            f"body has {len(body)} bytes)."
        )
    text = body if header_bytes is None else body[:header_bytes]
    try:
        request = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request is JSON of an inference request ({error}).") from error
    tensors = _tensors(request.inputs, memoryview(body)[len(text) :], signature)
    return Inquiry(request.id, tensors, _wanted(request, signature))


def encode_answer(
    name: str, version: str, inquiry: Inquiry, outputs: Mapping[str, torch.Tensor]
) -> tuple[bytes, int | None]:
    """The answer, and how much of it is JSON if tensors follow."""
    described: list[dict[str, object]] = []
    parts: list[bytes] = []
    for port, is_binary in inquiry.outputs:
        tensor = outputs[port.name].contiguous()
        entry: dict[str, object] = {
            "name": port.name,
            "datatype": port.datatype,
            "shape": list(tensor.shape),
        }
        if is_binary:
            data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            entry["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            entry["data"] = _as_numbers(port, tensor)
        described.append(entry)
    document: dict[str, object] = {"model_name": name, "model_version": version}
    if inquiry.id is not None:
        document["id"] = inquiry.id
    document["outputs"] = described
    text = msgspec.json.encode(document)
    return b"".join([text, *parts]), len(text) if parts else None


def _tensors(
    inputs: Sequence[_Input], binary: memoryview, signature: Signature
) -> tuple[torch.Tensor, ...]:
    ports = {port.name: port for port in signature.inputs}
    names = [each.name for each in inputs]
    if sorted(names) != sorted(ports):
        raise RequestError(
            f"the inputs are {', '.join(ports)}, each once "
            f"(got {', '.join(names)[:200] or 'none'})."
        )
    found: dict[str, torch.Tensor] = {}
    for each in inputs:
        port = ports[each.name]
        _check(each, port)
        size = each.parameters.get("binary_data_size")
        if size is None:
            found[each.name] = _from_json(each, port)
        else:
            found[each.name] = _from_bytes(each, port, size, binary)
            binary = binary[size:]
    if len(binary):
        raise RequestError(
            f"{len(binary)} bytes follow the last tensor. Say binary_data_size of each that is "
            "sent in binary, and Inference-Header-Content-Length."
        )
    return tuple(found[port.name] for port in signature.inputs)


def _check(given: _Input, port: Port) -> None:
    fits = len(given.shape) == len(port.shape) and all(
        there in (size, -1) for size, there in zip(given.shape, port.shape, strict=True)
    )
    if given.datatype != port.datatype or not fits:
        raise RequestError(
            f"{port.name} is {port.datatype} {list(port.shape)}, -1 for any number (got "
            f"{given.datatype[:20]} {given.shape})."
        )


def _from_bytes(given: _Input, port: Port, size: object, binary: memoryview) -> torch.Tensor:
    needed = math.prod(given.shape) * port.dtype.itemsize
    if given.data or size != needed or isinstance(size, bool) or needed > len(binary):
        raise RequestError(
            f"{port.name} of shape {given.shape} has binary_data_size {needed}, so many bytes of "
            f"the body, and no data (got {size!r}, {len(binary)} bytes are left)."
        )
    if needed == 0:
        return torch.empty(given.shape, dtype=port.dtype)
    flat = torch.frombuffer(bytearray(binary[:needed]), dtype=port.dtype)
    if port.dtype == torch.bool:  # other bytes than 0 and 1 are no truth values
        flat = flat.view(torch.uint8) != 0
    return flat.reshape(given.shape)


def _from_json(given: _Input, port: Port) -> torch.Tensor:
    if port.datatype in _BINARY_ONLY:
        raise RequestError(
            f"{port.name} is {port.datatype}, which JSON cannot hold. Send it with "
            "binary_data_size."
        )
    numbers = _numbers(given, port)
    n_needed = math.prod(given.shape)
    if len(numbers) != n_needed:
        raise RequestError(
            f"{port.name} of shape {given.shape} has {n_needed} numbers (got {len(numbers)})."
        )
    if not port.dtype.is_floating_point and port.dtype != torch.bool and numbers:
        limits = torch.iinfo(port.dtype)
        if min(numbers) < limits.min or max(numbers) > limits.max:
            raise RequestError(
                f"{port.name} has numbers from {limits.min} to {limits.max} ({port.datatype})."
            )
    try:
        tensor = torch.tensor(numbers, dtype=port.dtype).reshape(given.shape)
    except (RuntimeError, OverflowError, ValueError) as error:  # whole numbers beyond all floats
        raise RequestError(f"{port.name} holds no {port.datatype} ({error}).") from error
    if port.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        raise RequestError(f"{port.name} has a number too large for {port.datatype}.")
    return tensor


def _numbers(given: _Input, port: Port) -> list[Any]:
    """The data, flat; ``RequestError`` unless all of it is of the port's kind."""
    kind: type = float if port.dtype.is_floating_point else int
    kind = bool if port.dtype == torch.bool else kind
    try:
        flat: list[Any] = msgspec.json.decode(given.data, type=list[kind])  # type: ignore[valid-type]
    except msgspec.MsgspecError:
        pass  # perhaps nested
    else:
        return flat
    try:
        nested = msgspec.json.decode(given.data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RequestError(f"{port.name} has data, a list of numbers ({error}).") from error
    return list(_flattened(nested, kind, port, _DEEPEST))


def _flattened(data: object, kind: type, port: Port, depth: int) -> Iterator[Any]:
    if isinstance(data, list) and depth:
        for item in data:
            yield from _flattened(item, kind, port, depth - 1)
    elif type(data) is kind or (kind is float and type(data) is int):
        yield data
    else:
        raise RequestError(
            f"{port.name} ({port.datatype}) has a list of {kind.__name__} as data, flat or nested "
            f"(it holds {str(data)[:40]!r})."
        )


def _wanted(request: _Request, signature: Signature) -> tuple[tuple[Port, bool], ...]:
    usual = request.parameters.get("binary_data_output", False)
    ports = {port.name: port for port in signature.outputs}
    asked = request.outputs
    if not asked:
        asked = [_Output(name) for name in ports]
    found = []
    for each in asked:
        is_binary = each.parameters.get("binary_data", usual)
        if each.name not in ports or not isinstance(is_binary, bool):
            raise RequestError(
                f"outputs are {', '.join(ports)}, binary_data true or false (got "
                f"{each.name[:40]!r}, {str(is_binary)[:20]})."
            )
        found.append((ports[each.name], is_binary))
    return tuple(found)


def _as_numbers(port: Port, tensor: torch.Tensor) -> list[Any]:
    is_float = tensor.is_floating_point()
    if port.datatype in _BINARY_ONLY or (is_float and not bool(torch.isfinite(tensor).all())):
        raise RequestError(
            f"the output {port.name} ({port.datatype}) has values that JSON cannot hold. Ask for "
            "it with binary_data true."
        )
    numbers: list[Any] = tensor.reshape(-1).tolist()
    return numbers


def _numel(port: Port, samples: int) -> int:
    return math.prod(samples if size == -1 else size for size in port.shape)
