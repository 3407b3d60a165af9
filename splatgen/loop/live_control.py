"""What a loop does for whoever watches it: commands before a step, a snapshot after it.

Nothing here changes what a run computes but the changes that a user makes, and those are written down.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from splatgen.loop.snapshot import Channel, Command, SavedFile, Snapshot, ViewRequest
from splatgen.runs import run_folder, steering
from splatgen.runs.run_folder import Run
from splatgen.runs.steering import SettingChange

LOOKS_SHARE = 0.02  # of the loop's time, at most, for pictures from the browser's camera
NAP = 0.02  # seconds, while a run is paused

_log = logging.getLogger(__name__)


class State(Protocol):
    """Where a subject is."""

    step: int  # done so far
    failures: Tensor | int  # steps in a row without a finite gradient


class Steerable(Protocol):
    """What can be watched and steered."""

    @property
    def begun(self) -> int:
        """The step from which its present settings hold, but for what a user changed."""
        return 0

    def prepare(self) -> bool:
        """Make ready for the next step, before a user's changes; returns whether another stage began."""
        return False

    @property
    def state(self) -> State:
        """Of this moment: going back may make another."""

    def steer(self, setting: str, value: float) -> None:
        """Change a setting; raises ValueError for one that cannot be."""

    def save(self) -> None:
        """Write a checkpoint."""

    def file(self) -> bytes:
        """The present state as a file for the user."""

    def snapshot(self, row: Any, look: ViewRequest | None) -> dict[str, Any]:
        """The fields of a Snapshot that only the subject knows."""


class LiveControl:
    """Carries out commands and changes, and shows snapshots; without a channel, only earlier changes."""

    def __init__(self, subject: Steerable, run: Run, steps: int, channel: Channel | None) -> None:
        self.subject, self.run, self.steps, self.channel = subject, run, steps, channel
        self.path = run.folder / steering.FILE
        self.changes = steering.read(self.path)
        self.name = run_folder.slug(str(run_folder.read(run).get("prompt") or ""))  # of files for the user
        self.begin = time.monotonic()
        self.rows: list[Mapping[str, float]] = []
        self.look: ViewRequest | None = None
        self.looked = 0.0  # seconds spent on it
        self.paused = self.stopped = False
        for change in self.changes:  # of before a resume
            if subject.begun <= change.step < subject.state.step:
                subject.steer(change.setting, change.value)

    def before(self, should_stop: Callable[[], bool]) -> bool:
        """Changes and commands before a step, waiting while paused; returns whether to stop."""
        if self.subject.prepare() and self.channel is not None:
            self.channel.messages.put("another stage began: what was changed live is now as its settings say")
        for change in self.changes:
            if change.step == self.subject.state.step:
                self.subject.steer(change.setting, change.value)
        self._obey()
        while self.paused and not self.stopped and not should_stop():
            time.sleep(NAP)
            self._obey()
        return self.stopped

    def after(self, row: Any, values: Mapping[str, float] | None) -> None:
        """A snapshot after a step, if somebody would look at it."""
        if self.channel is None:
            return
        if values is not None:
            self.rows.append(values)
        if self.channel.wants():
            self._show(self.channel, row, "running")

    def end(self, status: str) -> None:
        """A snapshot after the last step, whether or not the one before was taken."""
        if self.channel is not None:
            self._show(self.channel, None, status)

    def _show(self, channel: Channel, row: Any, status: str) -> None:
        """A viewer's trouble stays its own."""
        try:
            self._put(channel, row, status)
        except Exception:  # noqa: BLE001 - whatever it is, the run goes on
            _log.warning("a snapshot for the viewer failed", exc_info=True)

    def _put(self, channel: Channel, row: Any, status: str) -> None:
        began = time.monotonic()
        spent = began - self.begin
        look = self.look if self.looked <= LOOKS_SHARE * spent or self.paused or row is None else None
        fields = self.subject.snapshot(row, look)
        if look is not None:
            self.looked += time.monotonic() - began
        channel.put(
            Snapshot(
                step=self.subject.state.step,
                steps=self.steps,
                seconds=spent,
                status=status,
                rows=tuple(self.rows),
                memory_mb=run_folder.peak_memory_mb(),
                gpu_memory_mb=run_folder.peak_gpu_memory_mb(),
                **fields,
            )
        )
        self.rows = []

    def _obey(self) -> None:
        if self.channel is None:
            return
        while True:
            try:
                command = self.channel.commands.get_nowait()
            except queue.Empty:
                return
            self._carry_out(command, self.channel)

    def _carry_out(self, command: Command, channel: Channel) -> None:
        match command.kind:
            case "pause":
                self.paused = True
                self._show(channel, None, "paused")
            case "continue":
                self.paused = False
            case "stop":
                self.stopped = True
            case "checkpoint":
                self.subject.save()
                channel.messages.put(f"checkpoint of step {self.subject.state.step} written")
            case "save":
                self._hand_over(channel)
            case "look":
                self.look = command.look
                if self.paused:
                    self._show(channel, None, "paused")
            case "set":
                self._set(command, channel)

    def _hand_over(self, channel: Channel) -> None:
        try:
            content = self.subject.file()
        except Exception as error:  # noqa: BLE001 - the run goes on without this file
            channel.messages.put(f"no file: {error}")
            return
        name = f"{self.name}-step-{self.subject.state.step:06d}.ply"
        channel.files.put(SavedFile(name=name, content=content))

    def _set(self, command: Command, channel: Channel) -> None:
        change = SettingChange(step=self.subject.state.step, setting=command.setting, value=command.value)
        try:
            self.subject.steer(change.setting, change.value)
        except ValueError as error:
            channel.messages.put(str(error))
            return
        later = [c for c in self.changes if c.step > change.step]  # of an earlier life of this run
        self.changes = [c for c in self.changes if c.step <= change.step] + [change, *later]
        steering.write(self.path, self.changes)
        channel.messages.put(f"{change.setting} is {change.value:g} from step {change.step + 1:,} on")


def show_end(subject: Steerable, channel: Channel, steps: int, status: str) -> None:
    """The last snapshot of a run, when its files are written; how it ended is its status."""
    try:
        step = subject.state.step
        channel.put(
            Snapshot(
                step=step, steps=steps, seconds=0.0, status=status, rows=(), **subject.snapshot(None, None)
            )
        )
    except Exception:  # noqa: BLE001 - of a GPU that is lost, say: the run has ended already
        _log.warning("the last snapshot for the viewer failed", exc_info=True)
