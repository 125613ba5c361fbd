"""A device that takes frames and says when each was complete, for the tests that time transfers.

    taker.py FLEET NAME LISTEN CONNECT

Ends when its standard input closes.
"""

from __future__ import annotations

import sys

import torch

from edgeweave.net import (
    Frame,
    FrameHeader,
    NetSettings,
    ZenohTransport,
    control_key,
    frame_key,
    specs_of,
)


def main(fleet: str, name: str, listen: str, connect: str) -> None:
    settings = NetSettings(fleet=fleet, listen=(listen,), connect=(connect,), insecure=True)
    with ZenohTransport(name, settings) as transport:

        def answer(frame: Frame) -> None:
            tensors = {"x": torch.zeros(1)}
            header = FrameHeader("activation", name, -1, 1, 0, 0, specs_of(tensors))
            transport.send(
                frame_key(fleet, "test", 1, -1, "done"),
                Frame(header, tuple(tensors.values())),
                device=frame.header.device,
            )

        transport.subscribe(
            frame_key(fleet, "test", 1, 0, "data"),
            answer,
            on_error=lambda error: sys.stderr.write(f"{error}\n"),
            expect=lambda header: None,
            limit_bytes=1 << 26,
        )
        transport.announce(control_key(fleet, name, "alive"))
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
