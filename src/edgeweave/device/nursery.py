"""Do heavy, rare work in a process of its own, so that the agent stays small and alive.

Checking a program imports the parts of torch that infer shapes, profiling one fills caches with
kernels: 60 to 90 MB each that an agent would keep for ever. And a hostile graph that crashes or
hangs such work must not take the agent along. So the agent forks a *nursery* while it still has
one thread, and the nursery forks a child per task:

    agent --task--> nursery --fork--> child: work, answer, exit
          <-----------answer-----------'

The nursery shares the agent's memory pages and ends when the agent does (its socket closes). What
it loads itself, before it forks, all later children share, and none of them can change for another.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import NoReturn, Self

from edgeweave.core.errors import FleetError, WireError
from edgeweave.net.remote import decode_error, encode_error

__all__ = ["Nursery", "Task"]

Task = Callable[[bytes], bytes]

_LENGTH = struct.Struct("!Q")
_OK, _ERROR = b"+", b"-"


class Nursery:
    """Runs named tasks, bytes in and bytes out, each in a fresh fork of this process.

    Enter it before the process starts any thread. Calling it raises what the task raised, or
    ``WireError`` if the task crashed or outlasted ``timeout_seconds``: its input is then not to be
    used. One task at a time; further callers wait.
    """

    def __init__(
        self,
        name: str,
        tasks: Mapping[str, Task],
        *,
        timeout_seconds: float,
        prepare: Callable[[str], None] = lambda _task: None,
    ) -> None:
        """``prepare(task)`` is called in the nursery, before a child is forked for that task. It
        sees no input, and starts no thread.
        """
        self._name = name
        self._tasks = tasks
        self._timeout_seconds = timeout_seconds
        self._prepare = prepare
        self._lock = threading.Lock()
        self._pid = 0
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        mine, theirs = socket.socketpair()
        gc.freeze()  # or collecting garbage writes to every page that both share
        self._pid = os.fork()
        if self._pid == 0:
            mine.close()
            _leave_after(lambda: self._serve(theirs))
        theirs.close()
        # The nursery answers or gives up in time; a little more covers its own work.
        mine.settimeout(self._timeout_seconds + 5.0)
        self._socket = mine
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            # Closing alone would not reach the nursery while another thread waits for its answer.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
            os.waitpid(self._pid, 0)

    def __call__(self, task: str, data: bytes) -> bytes:
        """Run a task on ``data`` and return its answer."""
        with self._lock:
            if self._socket is None:
                raise FleetError(f"{self._name} is shutting down and does no {task} any more.")
            try:
                _send(self._socket, task.encode() + b"\0" + data)
                answer = _receive(self._socket)
            except OSError as error:
                self._socket.close()  # an answer that comes late must not answer what comes next
                raise FleetError(
                    f"{self._name} lost the process for {task} ({error}). Join it again."
                ) from error
        if answer is None:
            raise FleetError(f"{self._name} lost the process for {task}. Join it again.")
        if answer[:1] == _ERROR:
            raise decode_error(answer[1:], self._name)
        return answer[1:]

    def _serve(self, requests: socket.socket) -> None:
        """The nursery's life: until the agent's end of the socket closes."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while (request := _receive(requests)) is not None:
            task, _, data = request.partition(b"\0")
            with suppress(Exception):  # the task itself, which needs the same, says what is wrong
                self._prepare(task.decode())
            _send(requests, self._in_child(task.decode(), data, requests))

    def _in_child(self, task: str, data: bytes, requests: socket.socket) -> bytes:
        reader, writer = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            reader.close()
            _leave_after(lambda: _send(writer, self._work(task, data)))
        writer.close()
        answer = None
        with reader:
            # The agent asks nothing while it waits: from there only its end can come.
            ready, _, _ = select.select([reader, requests], [], [], self._timeout_seconds)
            if reader in ready:
                answer = _receive(reader)
        os.kill(pid, signal.SIGKILL)  # harmless if it has ended: it is not waited for yet
        os.waitpid(pid, 0)
        return answer if answer is not None else _ERROR + encode_error(self._unfinished(task))

    def _work(self, task: str, data: bytes) -> bytes:
        try:
            return _OK + self._tasks[task](data)
        except BaseException as error:  # noqa: BLE001 - a process's boundary: the agent gets it
            return _ERROR + encode_error(error)

    def _unfinished(self, task: str) -> WireError:
        return WireError(
            f"the {task} on {self._name} crashed or took more than {self._timeout_seconds:.0f} s, "
            "so what it was asked about is refused."
        )


def _leave_after(work: Callable[[], None]) -> NoReturn:
    """End a forked process after ``work``, whatever happens: the rest is its parent's business."""
    try:
        work()
    finally:
        os._exit(0)


def _send(to: socket.socket, data: bytes) -> None:
    to.sendall(_LENGTH.pack(len(data)) + data)


def _receive(source: socket.socket) -> bytes | None:
    """One message, or None if the other end closed."""
    head = _exactly(source, _LENGTH.size)
    return None if head is None else _exactly(source, _LENGTH.unpack(head)[0])


def _exactly(source: socket.socket, n_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < n_bytes:
        chunk = source.recv(min(n_bytes - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)
