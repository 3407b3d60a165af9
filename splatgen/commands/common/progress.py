"""Progress on stderr: one live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from splatgen.loop.loop import Progress

LIVE_SECONDS = 0.1
PLAIN_SECONDS = 5.0
BAR_LENGTH = 12  # characters
NAME_LENGTH = 16  # of a reward's name, on a live line


class Reporter:
    """Shows each Progress it is called with, when it is time, and keeps the last one."""

    def __init__(self, stream: TextIO, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.last: Progress | None = None
        self._first: Progress | None = None
        self._stream = stream
        self._quiet = quiet
        self._clock = clock
        self._live = stream.isatty()
        self._bar: Bar | None = None  # on the screen
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
        try:
            if self._live:
                self._draw(progress, self._first)
            else:
                print(line(progress, self._first), file=self._stream, flush=True)
        except OSError:  # nobody reads it, or its disk is full: no reason to end the run
            self._quiet, self._bar = True, None

    def close(self) -> None:
        """Leave the live line on the screen and go below it."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
            self._bar = None

    def _draw(self, progress: Progress, first: Progress) -> None:
        if self._bar is None:
            self._bar = live_line(self._stream, progress.steps)
            self._bar.start()
        room = self._bar.console.width - BAR_LENGTH - 2
        text = line(progress, first, room)
        self._bar.update(self._bar.task_ids[0], completed=progress.step, description=text, refresh=True)


def live_line(stream: TextIO, steps: int) -> Bar:
    """A bar and a text in one line, cut where the terminal ends; drawn when told, so without a thread."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="crop"))
    bar = BarColumn(BAR_LENGTH, table_column=Column(no_wrap=True))
    made = Bar(bar, text, console=Console(file=stream, highlight=False), auto_refresh=False)
    made.add_task("", total=steps)
    return made


def line(progress: Progress, first: Progress, room: int | None = None) -> str:
    """`30%  step 120/400  1:22 left  toybox 0.610  3.4 it/s  loss 0.0123  1,532 splats`.

    room is the most characters there are: what comes later is left out first, and a reward's name cut.
    """
    done, seconds = progress.step - first.step, progress.seconds - first.seconds
    percent = 100 * progress.step // max(progress.steps, 1)
    parts = [f"{percent:>3}%", f"step {progress.step}/{progress.steps}"]
    moves = done > 0 and seconds > 0
    parts += [f"{duration((progress.steps - progress.step) * seconds / done)} left"] if moves else []
    short = None if room is None else NAME_LENGTH
    parts += [
        f"{key.partition('/')[2][:short] or key} {value:.3f}" for key, value in progress.rewards.items()
    ]
    parts += [f"{done / seconds:.1f} it/s"] if moves else []
    parts += [] if math.isnan(progress.loss) else [f"loss {progress.loss:.4g}"]
    parts += [f"{progress.splats:,} splats"] if progress.splats else []  # images have none
    while room is not None and len(parts) > 2 and len("  ".join(parts)) > room:
        parts.pop()
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
