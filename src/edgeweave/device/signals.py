"""SIGTERM and Ctrl-C, for a process that serves until it is told to stop."""

from __future__ import annotations

import logging
import os
import select
import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

__all__ = ["StopSignals"]

_READ_BYTES = 4096
_TOLD = 0


class StopSignals:
    """SIGTERM and Ctrl-C as bytes in a pipe, which no moment at which they come can lose: the
    interpreter writes them itself, also where its own handlers would run only after the wait.

    An exception raised by a handler is lost where Python drops exceptions: in a finalizer, or a
    callback from another library. Until ``hold``, signals raise ``KeyboardInterrupt`` all the same,
    because starting may take long; from then on nothing interrupts a process that is ending in
    order. To be entered on the main thread.
    """

    def __enter__(self) -> Self:
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        self._are_held = False
        self._wakeup_before = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, self._came) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reads)
        os.close(self._writes)

    def hold(self) -> None:
        """Let signals raise nothing from now on, but be waited for."""
        self._are_held = True

    def wait_until_told(self, stdin: int | None = None) -> frozenset[int]:
        """Until a signal has come, ``tell`` was called or ``stdin`` is closed; the signals that
        came, since this was last waited for.
        """
        self.hold()
        while True:
            ready, _, _ = select.select([self._reads, *([] if stdin is None else [stdin])], [], [])
            if self._reads in ready:
                came = frozenset(os.read(self._reads, _READ_BYTES)) & {_TOLD, *self._before}
                if came - {_TOLD}:
                    logging.getLogger(__name__).info("stopped by a signal")
                if came:
                    return came - {_TOLD}
                continue  # a signal of somebody else's
            if not os.read(ready[0], _READ_BYTES):
                return frozenset()

    def tell(self) -> None:
        """End the wait as a signal does, from any thread."""
        with suppress(BlockingIOError):  # full of signals already
            os.write(self._writes, bytes([_TOLD]))

    def _came(self, _number: int, _frame: FrameType | None) -> None:
        if not self._are_held:
            raise KeyboardInterrupt
