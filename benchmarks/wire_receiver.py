"""The receiving process of the wire benchmark: a raw socket and a transport, side by side.

starts  ->  {"port": p, "endpoint": "tcp/127.0.0.1:7001"}
{}      ->  {"cpu_seconds": s}      of this process so far
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.children import reply
from benchmarks.raw_socket import serve, server_context
from benchmarks.wire_frames import net_settings, serve_frames
from edgeweave.net import TlsFiles, ZenohTransport

__all__ = ["main"]


def main(settings: dict[str, Any]) -> None:
    """Serve until standard input closes; the raw sender closes its socket before that."""
    torch.set_num_threads(1)
    files = None
    if settings["tls"]:
        authority, certificate, key = (Path(path) for path in settings["tls"])
        files = TlsFiles(authority, certificate, key)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ZenohTransport("receiver", net_settings(files)) as transport,
    ):
        raw = threading.Thread(target=serve, args=(listener, server_context(files)))
        raw.start()
        frames = serve_frames(transport)
        (endpoint,) = transport.endpoints()
        reply({"port": listener.getsockname()[1], "endpoint": endpoint})
        for _ in sys.stdin:
            reply({"cpu_seconds": time.process_time()})
        frames.close()
        raw.join()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
