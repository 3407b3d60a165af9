"""Ctrl-C and TERM ask a run to stop after its step; a second Ctrl-C leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

_NOTE = b"\nsplatgen: stopping after this step, with a checkpoint; Ctrl-C again leaves at once\n"


@dataclass
class Stop:
    """The first signal that asked to stop, if any."""

    signal: int | None = None

    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal ended: 130 for INT, 143 for TERM."""
        return 0 if self.signal is None else 128 + self.signal


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
    """Within, INT and TERM are remembered; a second INT raises KeyboardInterrupt, a third kills.

    Only the main thread can be asked so; in another, nobody asks.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.signal is None:
            stop.signal = number
            if number == signal.SIGINT:
                os.write(2, _NOTE)  # not print(): the signal may have come in the middle of one
        elif number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
