"""A client of an ASGI application in this process: no socket, no server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Reply:
    """What an application answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert set(self.document) == {"error"}
        text = self.document["error"]
        assert isinstance(text, str)
        return text


def ask(
    app: Any,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    then: Literal["waits", "leaves", "stalls"] = "waits",
) -> Reply:
    """One request, on an event loop of its own. Who ``leaves`` or ``stalls`` has sent a part."""
    return asyncio.run(_ask(app, method, path, body, headers or {}, then))


async def _ask(
    app: Any, method: str, path: str, body: bytes, headers: Mapping[str, str], then: str
) -> Reply:
    parts = [body[i : i + 4096] for i in range(0, len(body), 4096)] or [b""]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            if then == "stalls":
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts) or then != "waits"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    whole = b"".join(message.get("body", b"") for message in sent[1:])
    return Reply(sent[0]["status"], found, whole)
