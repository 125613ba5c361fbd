"""An endpoint as an ASGI application: the Open Inference Protocol (v2) over HTTP.

    GET  /v2                              what the server is and which extensions it has
    GET  /v2/health/live, /v2/health/ready
    GET  /v2/models/NAME[/versions/1]     names, types and shapes; .../ready: whether it answers
    POST /v2/models/NAME[/versions/1]/infer
    GET  /metrics                         where somebody makes them

    400  what the request holds        413  more than any request needs     429  the queue is full
    404  another model, another path   408  not whole by the deadline       504  no answer by then
    503  nobody can: not ready (health), closing, a device without memory   500  a bug of ours

Every error is ``{"error": "..."}``. Needs the ``serve`` extra (starlette).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from edgeweave.core.errors import (
    ConfigError,
    DeviceError,
    EdgeweaveError,
    QueueFull,
    RequestError,
    RequestTimeout,
)
from edgeweave.core.version import __version__
from edgeweave.serving.endpoint import Endpoint
from edgeweave.serving.protocol import body_limit_bytes, decode_inquiry, encode_answer, metadata
from edgeweave.serving.requests import EndpointClosed

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["MetricsText", "application"]

_log = logging.getLogger(__name__)

_VERSION = "1"
_HEADER_LENGTH = "Inference-Header-Content-Length"

MetricsText = Callable[[], tuple[bytes, str]]
"""Makes the text of ``/metrics`` and its media type. May take a while: it runs on a thread."""


class _TooLarge(RequestError):
    """The body of a request is larger than any that the model can take."""


class _Unfinished(RequestError):
    """The body of a request did not come whole in time."""


class _Unknown(RequestError):
    """There is no such model, or no such version of it."""


_STATUS: dict[type[EdgeweaveError], int] = {
    _TooLarge: 413,
    _Unfinished: 408,
    _Unknown: 404,
    QueueFull: 429,
    EndpointClosed: 503,
    RequestTimeout: 504,
    RequestError: 400,
    DeviceError: 503,
}


def application(
    endpoint: Endpoint, *, name: str = "model", metrics: MetricsText | None = None
) -> Starlette:
    """The application that serves an open endpoint under a model's name.

    ``ConfigError`` without starlette. Whoever runs it closes the endpoint after it.
    """
    try:
        from starlette.applications import Starlette  # noqa: PLC0415
        from starlette.exceptions import HTTPException  # noqa: PLC0415
        from starlette.routing import Route  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"serving over HTTP needs starlette ({error}). Run: pip install 'edgeweave[serve]'"
        ) from error
    server = _Server(endpoint, name, metrics)
    model = "/v2/models/{model}"
    routes = [
        Route("/v2", server.about, methods=["GET"]),
        Route("/v2/health/live", server.live, methods=["GET"]),
        Route("/v2/health/ready", server.ready, methods=["GET"]),
        Route("/metrics", server.metrics, methods=["GET"]),
    ]
    for base in (model, model + "/versions/{version}"):
        routes += [
            Route(base, server.describe, methods=["GET"]),
            Route(base + "/ready", server.model_ready, methods=["GET"]),
            Route(base + "/infer", server.infer, methods=["POST"]),
        ]
    return Starlette(
        routes=routes,
        exception_handlers={
            EdgeweaveError: _refused,
            HTTPException: _http_error,
            Exception: _failed,
        },
    )


class _Server:
    """What is answered on each path."""

    def __init__(self, endpoint: Endpoint, name: str, metrics: MetricsText | None) -> None:
        self._endpoint = endpoint
        self._name = name
        self._metrics = metrics
        self._limit_bytes = body_limit_bytes(endpoint.signature, endpoint.max_samples)

    async def about(self, _request: Request) -> Response:
        return _json(
            {
                "name": "edgeweave",
                "version": __version__,
                "extensions": ["binary_tensor_data"],
            }
        )

    async def live(self, _request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _request: Request) -> Response:
        is_ready = self._endpoint.is_ready
        return _json({"ready": is_ready}, status=200 if is_ready else 503)

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        is_ready = self._endpoint.is_ready
        document = {"name": self._name, "ready": is_ready}
        return _json(document, status=200 if is_ready else 503)

    async def describe(self, request: Request) -> Response:
        self._check_model(request)
        return _json(metadata(self._name, _VERSION, self._endpoint.signature))

    async def metrics(self, _request: Request) -> Response:
        from starlette.responses import Response  # noqa: PLC0415

        if self._metrics is None:
            raise _Unknown("this server makes no metrics. Run: pip install 'edgeweave[metrics]'")
        text, media_type = await asyncio.to_thread(self._metrics)
        return Response(text, media_type=media_type)

    async def infer(self, request: Request) -> Response:
        from starlette.responses import Response  # noqa: PLC0415

        self._check_model(request)
        header_bytes = _header_bytes(request)
        body = await self._body(request)
        inquiry = decode_inquiry(body, header_bytes, self._endpoint.signature)
        answer = await asyncio.wrap_future(self._endpoint.submit(inquiry.tensors))
        outputs = self._endpoint.signature.named(answer)
        content, n_json = encode_answer(self._name, _VERSION, inquiry, outputs)
        if n_json is None:
            return Response(content, media_type="application/json")
        headers = {_HEADER_LENGTH: str(n_json)}
        return Response(content, media_type="application/octet-stream", headers=headers)

    def _check_model(self, request: Request) -> None:
        model = request.path_params["model"]
        version = request.path_params.get("version", _VERSION)
        if (model, version) != (self._name, _VERSION):
            raise _Unknown(
                f"this server has version {_VERSION} of the model {self._name} (asked for version "
                f"{version[:40]} of {model[:80]})."
            )

    async def _body(self, request: Request) -> bytes:
        """The body, as long as it is not larger than any request needs to be, and in time."""
        from starlette.requests import ClientDisconnect  # noqa: PLC0415

        parts, size = [], 0
        try:
            async with asyncio.timeout(self._endpoint.timeout_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > self._limit_bytes:
                        raise _TooLarge(
                            f"a request for {self._name} has at most {self._limit_bytes} bytes, "
                            f"for {self._endpoint.max_samples} samples. Send fewer at once."
                        )
                    parts.append(part)
        except TimeoutError as error:
            raise _Unfinished(
                f"a request comes whole within {self._endpoint.timeout_seconds:.1f} s (got {size} "
                "bytes). Send it faster, or serve with a larger timeout_seconds."
            ) from error
        except ClientDisconnect as error:
            raise _Unfinished(f"the client left after {size} bytes of its request.") from error
        return b"".join(parts)


def _header_bytes(request: Request) -> int | None:
    text = request.headers.get(_HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise RequestError(f"{_HEADER_LENGTH} is a number of bytes (got {text[:40]!r}).")
    return int(text)


async def _refused(_request: Request, error: Exception) -> Response:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
    if status == 500:
        _log.error("a request failed: %s", error)
    headers = {"Retry-After": "1"} if isinstance(error, QueueFull) else None
    return _json({"error": str(error)}, status=status, headers=headers)


async def _http_error(_request: Request, error: Exception) -> Response:
    """Another path, another method: what starlette says of it, as the protocol has errors."""
    status = getattr(error, "status_code", 500)
    text = f"{getattr(error, 'detail', error)}. Paths begin with /v2; see /v2/models/NAME."
    return _json({"error": text}, status=status, headers=getattr(error, "headers", None))


async def _failed(_request: Request, _error: Exception) -> Response:
    """Who runs the application logs what happened, with its traceback."""
    return _json({"error": "the server failed on this request. Its log says why."}, status=500)


def _json(
    document: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    from starlette.responses import Response  # noqa: PLC0415

    return Response(
        msgspec.json.encode(document),
        status_code=status,
        media_type="application/json",
        headers=headers,
    )
