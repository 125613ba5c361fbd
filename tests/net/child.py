"""A device in a process of its own, for the tests that kill, stop and link processes.

    child.py NAME LISTEN CONNECT [CA CERTIFICATE KEY]

Opens a transport, serves ``echo``, ``sleep`` and ``links``, announces itself, and answers lines:
``endpoints``, ``quit``.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from edgeweave.core.timeouts import Timeouts
from edgeweave.net import Frame, NetSettings, TlsFiles, ZenohTransport, control_key, frame_key


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(name: str, listen: str, connect: str, *tls: str) -> None:
    settings = NetSettings(
        listen=(listen,),
        connect=(connect,) if connect else (),
        tls=TlsFiles(*map(Path, tls)) if tls else None,
        insecure="127.0.0.1" not in listen and not tls,
        timeouts=Timeouts(send=3.0),
    )
    never = threading.Event()
    with ZenohTransport(name, settings) as transport:

        def give_back(frame: Frame) -> None:
            key = frame_key("default", "test", 1, -1, "echo")
            transport.send(key, frame, device=frame.header.device)

        def sleep(payload: bytes) -> bytes:
            say("sleeping")
            never.wait(float(payload))
            return b"slept"

        transport.subscribe(
            frame_key("default", "test", 1, 0, name),
            give_back,
            on_error=lambda error: say(f"error {error}"),
            expect=lambda header: None,
            limit_bytes=1 << 26,
        )
        echo_key = control_key("default", name, "echo")
        transport.serve(echo_key, lambda payload: payload, limit_bytes=1 << 28)
        transport.serve(control_key("default", name, "sleep"), sleep)
        transport.serve(
            control_key("default", name, "links"), lambda _: str(transport.linked()).encode()
        )
        transport.announce(control_key("default", name, "alive"))
        say("ready")
        for line in sys.stdin:
            if line.strip() == "quit":
                return
            say(" ".join(transport.endpoints()))


if __name__ == "__main__":
    main(*sys.argv[1:])
