"""Ctrl-C, TERM and HUP ask a run to stop after its step; a second Ctrl-C leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
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
    def hung_up(self) -> bool:
        """Whether the terminal was closed."""
        return sys.platform != "win32" and self.signal == signal.SIGHUP

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal ended: 130 for INT, 143 for TERM, 129 for HUP."""
        return 0 if self.signal is None else 128 + self.signal


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
    """Within, INT, TERM and HUP are remembered; a second INT raises KeyboardInterrupt, a third kills.

    HUP comes when a terminal is closed; under nohup, which has it ignored, it stays so. Only the main thread
    can be asked; in another, nobody asks.
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

    heard = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
