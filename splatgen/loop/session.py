"""A thread that makes one job at a time out of a queue, with the models of the job before where it can.

request -> checks -> queue -> models (kept or loaded) -> run, or several runs in turns
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from splatgen.config import Config
from splatgen.config.stages import selections, stages
from splatgen.loop import object_run
from splatgen.loop.jobs import BUSY, Entry, Job, Lane, State, Status, together
from splatgen.loop.loop import Progress, Result
from splatgen.loop.resident_models import ResidentModels, collect
from splatgen.loop.snapshot import Command
from splatgen.loop.step import Models
from splatgen.loop.turns import Turns

REMEMBERED = 20  # jobs that ended

_log = logging.getLogger(__name__)


class Session:
    """A thread that makes one job at a time, each with the models of the one before where it can.

    check raises for a config that can't be run, or returns the one to run; describe puts an error into
    words, or returns None for a bug.
    """

    def __init__(
        self,
        resident: ResidentModels,
        *,
        check: Callable[[Config], Config],
        describe: Callable[[BaseException], str | None],
    ) -> None:
        self._resident, self._check, self._describe = resident, check, describe
        self._status = Status(state="idle")
        self._waiting: tuple[Entry, ...] = ()
        self._ended: tuple[Entry, ...] = ()
        self._ahead: Job | None = None
        self._count = 0
        self._halt = threading.Event()  # asks the job at work to stop
        self._dropped: set[int] = set()  # runs of it that are not to begin
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="session", daemon=True)
        self._thread.start()

    @property
    def status(self) -> Status:
        """As of now; one object, so that its parts belong together."""
        return self._status

    @property
    def waiting(self) -> tuple[Entry, ...]:
        """Jobs that are to be made, in order."""
        return self._waiting

    @property
    def ended(self) -> tuple[Entry, ...]:
        """Jobs that were made, the last first."""
        return self._ended

    def prepare(self, config: Config) -> None:
        """Load the models of a config while nothing is at work, so that its first run finds them."""
        with self._changed:
            if not self._waiting and not self._status.busy and not self._closed:
                self._ahead = Job(config=config, out=Path(), command=(), load=True)
                self._changed.notify_all()

    def add(self, job: Job) -> int:
        """Make a job after those that wait; returns its number.

        Raises what check does, and RuntimeError once closed.
        """
        variants = tuple((name, self._check(config)) for name, config in job.variants)
        config = variants[0][1] if variants else self._check(job.config)
        job = replace(job, config=config, variants=variants)
        with self._changed:
            if self._closed:
                raise RuntimeError("the session has ended: start the program again")
            self._count += 1
            self._waiting = (*self._waiting, Entry(number=self._count, job=job))
            self._changed.notify_all()
            return self._count

    def cancel(self, number: int) -> None:
        """Take a job that waits out of the queue; one that is gone already is no error."""
        with self._changed:
            self._waiting = tuple(entry for entry in self._waiting if entry.number != number)
            self._changed.notify_all()

    def move(self, number: int, by: int) -> None:
        """Move a job that waits by so many places, toward the end for positive ones."""
        with self._changed:
            found = [entry for entry in self._waiting if entry.number == number]
            if not found:
                return
            place = self._waiting.index(found[0]) + by
            rest = [entry for entry in self._waiting if entry.number != number]
            rest.insert(max(place, 0), found[0])
            self._waiting = tuple(rest)

    def send(self, command: Command, lane: int | None = None) -> None:
        """A command for the job at work, or one of its runs, and nothing without one."""
        with self._changed:
            if not self._status.busy:
                return
            lanes = list(self._status.lanes)
            for n, one in enumerate(lanes):
                if lane in (None, n) and one.state in BUSY:
                    one.channel.send(command)
                    if command.kind == "stop" and one.state == "loading":
                        self._dropped.add(n)  # there is no loop yet that reads commands
                    if command.kind in ("pause", "continue") and one.state in ("running", "paused"):
                        lanes[n] = replace(one, state="paused" if command.kind == "pause" else "running")
            self._status = replace(self._status, lanes=tuple(lanes), state=together(lanes))

    def stop(self) -> None:
        """Ask the job at work to stop, with a checkpoint; the next one in the queue begins."""
        with self._changed:
            self._halt.set()
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> Status:
        """Until nothing is at work and nothing waits, or that many seconds."""
        with self._changed:
            self._changed.wait_for(self._idle, timeout)
            return self._status

    def _idle(self) -> bool:
        return not self._waiting and self._ahead is None and not self._status.busy

    def close(self, timeout: float | None = None) -> Status:
        """Stop and end the thread, without what waits; the job at work leaves checkpoints."""
        with self._changed:
            self._closed, self._waiting, self._ahead = True, (), None
            self._halt.set()
            self._changed.notify_all()
        self._thread.join(timeout)
        return self._status

    def _work(self) -> None:
        while (job := self._take()) is not None:
            self._ahead_of(job) if job.load else self._make(job)
            self._remember()
            if self._status.state == "failed":
                with contextlib.suppress(RuntimeError):  # a GPU that is gone gives nothing back
                    collect()  # its tensors went with the error

    def _take(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ahead or self._closed)
            if self._closed:
                return None
            self._halt, self._dropped = threading.Event(), set()
            ahead, self._ahead = self._ahead, None
            if not self._waiting:
                self._status = replace(self._status, state="loading", message="")
                return ahead
            entry, self._waiting = self._waiting[0], self._waiting[1:]
            lanes = tuple(Lane(name=name, config=config) for name, config in entry.job.runs)
            self._status = Status(state="loading", number=entry.number, job=entry.job, lanes=lanes)
            return entry.job

    def _remember(self) -> None:
        with self._changed:
            status = self._status
            if status.job is not None and (not self._ended or self._ended[0].number != status.number):
                entry = Entry(number=status.number, job=status.job, status=status)
                self._ended = (entry, *self._ended)[:REMEMBERED]

    def _ahead_of(self, job: Job) -> None:
        try:
            self._models(stages(job.config)[0].config)
        except Exception as error:  # noqa: BLE001 - it becomes words for the user, and the thread lives on
            self._set(state="failed", message=self._words(error))
        else:
            self._set(state="idle")

    def _make(self, job: Job) -> None:
        """Every run of a job, in turns where there are several."""
        # a copy that VSD trains lives inside the prior, which has room for one
        whole = sum("vsd" in selections(config) for _, config in job.runs) > 1
        turns, halt = Turns(len(job.runs), whole=whole), self._halt
        others = [
            threading.Thread(target=self._lane, args=(n, job, turns, halt), name=f"run-{n}", daemon=True)
            for n in range(1, len(job.runs))
        ]
        for thread in others:
            thread.start()
        self._lane(0, job, turns, halt)
        for thread in others:
            thread.join()

    def _lane(self, n: int, job: Job, turns: Turns, halt: threading.Event) -> None:
        turns.wait(n)
        try:
            result = self._run(n, job, turns, halt)
        except Exception as error:  # noqa: BLE001 - it becomes words for the user, and the thread lives on
            where = [str(note) for note in getattr(error, "__notes__", ())]  # the folder, where there is one
            message = "; ".join([self._words(error), *where])
            self._set_lane(n, state="failed", message=message)
        else:
            if result is None:
                self._set_lane(n, state="stopped")
            else:
                state: State = "done" if result.status == "done" else "stopped"
                self._set_lane(n, state=state, folder=result.run.folder)
        finally:
            turns.leave(n)

    def _words(self, error: Exception) -> str:
        message = self._describe(error)
        if message is None:
            _log.error("a run of the studio failed", exc_info=error)
            message = f"this is a bug: {type(error).__name__}: {error}"
        return message

    def _run(self, n: int, job: Job, turns: Turns, halt: threading.Event) -> Result | None:
        """None where it was asked to stop before it began."""

        def should_stop() -> bool:
            turns.hand_on(n)
            return halt.is_set()

        def dropped() -> bool:
            return halt.is_set() or n in self._dropped

        if dropped():
            return None
        config = job.runs[n][1]
        models = None if config.stages else self._models(config)  # it knows which of its stages it is in
        if dropped():
            return None
        self._set_lane(n, state="running")
        given: dict[str, Any] = {
            "command": job.command,
            "models": models,
            **({} if job.source is not None else {"load": self._resident.models}),
            "report": lambda progress: self._report(n, progress),
            "should_stop": should_stop,
            "channel": self._status.lanes[n].channel,
        }
        if job.folder is not None:
            return object_run.resume(job.folder, **given)
        if job.source is not None:
            return object_run.edit(config, job.source, out=job.out, **given)
        return object_run.generate(config, out=job.out, **given)

    def _models(self, config: Config) -> Models | None:
        if config.init == "shap-e":  # it needs the room, and comes before the models
            self._resident.clear()
            return None
        return self._resident.models(config)

    def _report(self, n: int, progress: Progress) -> None:
        if progress.step >= progress.steps:
            self._set_lane(n, state="writing")

    def _set_lane(self, n: int, **fields: Any) -> None:
        with self._changed:
            lanes = list(self._status.lanes)
            lanes[n] = replace(lanes[n], **fields)
            message = next((lane.message for lane in lanes if lane.message), "")
            self._status = replace(self._status, lanes=tuple(lanes), state=together(lanes), message=message)
            self._changed.notify_all()

    def _set(self, **fields: Any) -> None:
        with self._changed:
            self._status = replace(self._status, **fields)
            self._changed.notify_all()
