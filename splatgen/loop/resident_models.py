"""A thread that makes one run at a time, with models that stay loaded from one to the next.

request -> checks -> models (kept or loaded) -> run
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from splatgen.config import Config
from splatgen.config.stages import stages
from splatgen.loop import object_run
from splatgen.loop.loop import Progress, Result
from splatgen.loop.model_cache import ResidentModels, collect
from splatgen.loop.snapshot import Channel, Command
from splatgen.loop.step import Models

State = Literal["idle", "loading", "running", "paused", "writing", "done", "stopped", "failed"]
BUSY = ("loading", "running", "paused", "writing")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that somebody asks for."""

    config: Config
    out: Path
    command: Sequence[str]
    folder: Path | None = None  # of a run that was stopped and goes on
    load: bool = False  # the models, and make no run


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a session is."""

    state: State
    number: int = 0  # of jobs so far
    job: Job | None = None  # the last one
    message: str = ""  # what went wrong
    folder: Path | None = None  # of the run, once it has ended
    channel: Channel = field(default_factory=Channel)  # of the run

    @property
    def busy(self) -> bool:
        return self.state in BUSY


class Session:
    """A thread that makes one run at a time, each with the models of the one before where it can.

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
        self._next: Job | None = None
        self._halt = threading.Event()  # asks the run at work to stop
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="session", daemon=True)
        self._thread.start()

    @property
    def status(self) -> Status:
        """As of now; one object, so that its parts belong together."""
        return self._status

    def prepare(self, config: Config) -> None:
        """Load the models of a config while nothing is at work, so that its first run finds them."""
        with self._changed:
            if self._next is None and not self._status.busy and not self._closed:
                self._next = Job(config=config, out=Path(), command=(), load=True)
                self._changed.notify_all()

    def start(self, job: Job) -> Job:
        """Make a run as soon as the one at work has stopped; returns the job as it was checked.

        One that waited already is forgotten. Raises what check does, and RuntimeError once closed.
        """
        job = replace(job, config=self._check(job.config))
        with self._changed:
            if self._closed:
                raise RuntimeError("the session has ended: start the program again")
            self._next = job
            self._halt.set()
            self._changed.notify_all()
        return job

    def send(self, command: Command) -> None:
        """A command for the run at work, and nothing without one."""
        with self._changed:
            if not self._status.busy:
                return
            self._status.channel.send(command)
            if command.kind == "stop" and self._status.state == "loading":
                self._halt.set()  # there is no loop yet that reads commands
            if command.kind in ("pause", "continue") and self._status.state in ("running", "paused"):
                self._status = replace(self._status, state="paused" if command.kind == "pause" else "running")

    def stop(self) -> None:
        """Ask the run at work to stop, with a checkpoint, and forget the one that waits."""
        with self._changed:
            self._next = None
            self._halt.set()
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> Status:
        """Until nothing is at work and nothing waits, or that many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._next is None and not self._status.busy, timeout)
            return self._status

    def close(self, timeout: float | None = None) -> Status:
        """Stop and end the thread; the run at work leaves a checkpoint."""
        with self._changed:
            self._closed, self._next = True, None
            self._halt.set()
            self._changed.notify_all()
        self._thread.join(timeout)
        return self._status

    def _work(self) -> None:
        while (job := self._take()) is not None:
            self._make(job)
            if self._status.state == "failed":
                with contextlib.suppress(RuntimeError):  # a GPU that is gone gives nothing back
                    collect()  # its tensors went with the error

    def _take(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._next is not None or self._closed)
            job, self._next = self._next, None
            if job is not None:
                self._halt = threading.Event()
                loading = replace(self._status, state="loading", message="")
                made = Status(state="loading", number=self._status.number + 1, job=job)
                self._status = loading if job.load else made
            return job

    def _make(self, job: Job) -> None:
        try:
            result = self._run(job)
        except Exception as error:  # noqa: BLE001 - it becomes words for the user, and the thread lives on
            message = self._describe(error)
            if message is None:
                _log.exception("a run of the studio failed")
                message = f"this is a bug: {type(error).__name__}: {error}"
            where = [str(note) for note in getattr(error, "__notes__", ())]  # the folder, where there is one
            self._set(state="failed", message="; ".join([message, *where]))
        else:
            if result is None:
                self._set(state="idle" if job.load else "stopped")
            else:
                self._set(state="done" if result.status == "done" else "stopped", folder=result.run.folder)

    def _run(self, job: Job) -> Result | None:
        """None when there is none to make, or it was asked to stop before it began."""
        models = self._models(job)
        if job.load or self._halt.is_set():
            return None
        self._set(state="running")
        given: dict[str, Any] = {
            "command": job.command,
            "models": models,
            "load": self._resident.models,
            "report": self._report,
            "should_stop": self._halt.is_set,
            "channel": self._status.channel,
        }
        if job.folder is not None:
            return object_run.resume(job.folder, **given)
        return object_run.generate(job.config, out=job.out, **given)

    def _models(self, job: Job) -> Models | None:
        """None where the run has to load them: it knows when, and those of each of its stages."""
        if job.config.init == "shap-e":  # it needs the room, and comes before the models
            self._resident.clear()
            return None
        if job.config.stages and not job.load:
            return None
        return self._resident.models(stages(job.config)[0].config)

    def _report(self, progress: Progress) -> None:
        if progress.step >= progress.steps:
            self._set(state="writing")

    def _set(self, **fields: Any) -> None:
        with self._changed:
            self._status = replace(self._status, **fields)
            self._changed.notify_all()
