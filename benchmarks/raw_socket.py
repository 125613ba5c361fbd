"""The least a message can cost: a TCP socket, or TLS on one, between two processes.

    sender -> receiver   kind, count, size        one head for a burst
                         count times size bytes
    receiver -> sender   one byte when a burst is complete; each message again for an echo

The receiver reads every message into memory of its own and views it as a tensor.
"""

from __future__ import annotations

import socket
import ssl
import struct

import numpy as np
import torch

from edgeweave.net import TlsFiles

__all__ = ["RawSender", "client_context", "serve", "server_context"]

_HEAD = struct.Struct("<BIQ")
_BURST, _ECHO = 0, 1
_DEADLINE_SECONDS = 60.0


def server_context(files: TlsFiles | None) -> ssl.SSLContext | None:
    """Mutual TLS, as Edgeweave uses it; None stays None, which is plain TCP."""
    return None if files is None else _context(ssl.PROTOCOL_TLS_SERVER, files)


def client_context(files: TlsFiles | None) -> ssl.SSLContext | None:
    return None if files is None else _context(ssl.PROTOCOL_TLS_CLIENT, files)


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class RawSender:
    """The sending side. Connects on construction."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=_DEADLINE_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = (
            plain if context is None else context.wrap_socket(plain, server_hostname="127.0.0.1")
        )

    def burst(self, tensor: torch.Tensor, count: int) -> None:
        """Send a tensor ``count`` times; returns when the receiver has all of them."""
        view = tensor.numpy().data
        self._socket.sendall(_HEAD.pack(_BURST, count, view.nbytes))
        for _ in range(count):
            self._socket.sendall(view)
        _receive(self._socket, 1)

    def echo(self, tensor: torch.Tensor) -> None:
        """Send a tensor and receive it back."""
        view = tensor.numpy().data
        self._socket.sendall(_HEAD.pack(_ECHO, 1, view.nbytes))
        self._socket.sendall(view)
        _receive(self._socket, view.nbytes)

    def close(self) -> None:
        self._socket.close()


def serve(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """Receive from one sender until it closes."""
    plain, _ = listener.accept()
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with plain if context is None else context.wrap_socket(plain, server_side=True) as connection:
        while head := connection.recv(_HEAD.size, *_wait_all(connection)):
            kind, count, size = _HEAD.unpack(head)
            for _ in range(count):
                tensor = _receive(connection, size)
                if kind == _ECHO:
                    connection.sendall(tensor.numpy().data)
            if kind == _BURST:
                connection.sendall(b"\0")


def _wait_all(connection: socket.socket) -> tuple[int, ...]:
    # A TLS socket knows no flags; its records hold a head whole.
    return () if isinstance(connection, ssl.SSLSocket) else (socket.MSG_WAITALL,)


def _receive(connection: socket.socket, size: int) -> torch.Tensor:
    """Exactly ``size`` bytes into memory of their own; ``ConnectionError`` if the sender ends."""
    memory = np.empty(size, dtype=np.uint8)
    view = memory.data
    filled = 0
    while filled < size:
        n_bytes = connection.recv_into(view[filled:])
        if not n_bytes:
            raise ConnectionError(f"the sender ended after {filled} of {size} bytes")
        filled += n_bytes
    return torch.from_numpy(memory)
