"""Progress on stderr: one live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from splatgen.loop.loop import Progress

LIVE_SECONDS = 0.1
PLAIN_SECONDS = 5.0
BAR_LENGTH = 20  # characters, at most


class Reporter:
    """Shows each Progress it is called with, when it is time, and keeps the last one."""

    def __init__(self, stream: TextIO, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.last: Progress | None = None
        self._first: Progress | None = None
        self._stream = stream
        self._quiet = quiet
        self._clock = clock
        self._live = stream.isatty()
        self._width = 0  # of the live line on the screen
        self._due = 0.0

    def __call__(self, progress: Progress) -> None:
        if math.isnan(progress.loss) and self.last is not None:  # it is not measured at every step
            progress = replace(progress, loss=self.last.loss)
        self._first = self._first or progress
        self.last = progress
        now = self._clock()
        if self._quiet or (now < self._due and progress.step < progress.steps):
            return
        self._due = now + (LIVE_SECONDS if self._live else PLAIN_SECONDS)
        text = line(progress, self._first)
        try:
            if self._live:
                self._redraw(text, progress.step / max(progress.steps, 1))
            else:
                print(text, file=self._stream, flush=True)
        except OSError:  # nobody reads it, or its disk is full: no reason to end the run
            self._quiet, self._width = True, 0

    def close(self) -> None:
        """Leave the live line on the screen and go below it."""
        if self._width:
            print(file=self._stream, flush=True)
            self._width = 0

    def _redraw(self, text: str, fraction: float) -> None:
        columns = shutil.get_terminal_size().columns - 1
        text = (_bar(fraction, columns - len(text)) + text)[:columns]  # a wrapped line can't be overwritten
        print(f"\r{text:<{self._width}}", end="", file=self._stream, flush=True)
        self._width = len(text)


def line(progress: Progress, first: Progress) -> str:
    """`step 120/400  3.4 it/s  1:22 left  loss 0.0123  1,532 splats  toybox 0.61`."""
    parts = [f"step {progress.step}/{progress.steps}"]
    done, seconds = progress.step - first.step, progress.seconds - first.seconds
    if done > 0 and seconds > 0:
        left = (progress.steps - progress.step) * seconds / done
        parts += [f"{done / seconds:.1f} it/s", f"{duration(left)} left"]
    parts += [] if math.isnan(progress.loss) else [f"loss {progress.loss:.4g}"]
    parts += [f"{progress.splats:,} splats"] if progress.splats else []  # images have none
    parts += [f"{key.removeprefix('reward/')} {value:.3f}" for key, value in progress.rewards.items()]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(fraction: float, columns: int) -> str:
    """A bar in the columns that are left; none when that is too few to show anything."""
    cells = min(BAR_LENGTH, columns - 3)
    full = round(cells * fraction)
    return f"[{'#' * full}{'.' * (cells - full)}] " if cells >= 5 else ""
