"""What the page of the studio asks of the program: settings out of fields, jobs, and what became of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splatgen.commands.common import known_limits, studio_files, truth
from splatgen.commands.common.embedded import VocabularyError
from splatgen.commands.common.errors import describe
from splatgen.commands.common.past_runs import History, PastRun, Trash, finished, star, thumbnail
from splatgen.commands.common.studio_settings import Settings, told, vocabulary
from splatgen.commands.common.viewer import settings
from splatgen.config import Config
from splatgen.loop.snapshot import Cloud, Command
from splatgen.runs import lock

if TYPE_CHECKING:
    from splatgen_viewer import studio_program as page

    from splatgen.loop.jobs import Entry, Job
    from splatgen.loop.session import Session

TWICE = 1.0  # seconds in which a second press is the first one's, and nothing to speak of

_log = logging.getLogger(__name__)


def in_words(error: BaseException) -> str | None:
    """What an expected error says, None for a bug."""
    found = describe(error)
    return None if found is None else found[1]


class StudioBackend:
    """The program as the page sees it: `splatgen_viewer.studio_program.Program`.

    read gives the settings of the command line as they would be with a preset, or without one for None.
    """

    def __init__(
        self, session: Session, out: Path, command: Sequence[str], read: Callable[[str | None], Config]
    ) -> None:
        from splatgen_viewer import studio_program

        self._page = studio_program
        self._session, self._out, self._command = session, out, command
        self._history, self._trash = History(out), Trash(out)
        self._runs: dict[str, PastRun] = {}
        self._truths: dict[tuple[str, int], str] = {}  # by run and step
        self._files = studio_files.OpenedFiles(out)
        self._settings = Settings(read, self._files)
        self._number, self._steered = 0, dict[str, float]()  # of the job at work
        self._asked: tuple[object, float, int] = (None, 0.0, 0)  # the last job, when, and its number
        self._added = 0  # the number of the job that was added last
        self._asking = threading.Lock()  # a second press comes in a thread of its own
        self.choices = self._settings.choices

    # The job at work and those that wait

    def work(self) -> page.Work:
        status = self._session.status
        if status.job is None:
            return self._page.Work(state=status.state, message=status.message)
        config = status.job.runs[0][1]
        if self._number != status.number:  # the page asks many times a second
            self._steered = settings(config, status.job.folder)
            self._number = status.number
        return self._page.Work(
            state=status.state,
            number=status.number,
            prompt=_prompt(config),
            message=status.message,
            advice=known_limits.advice(config),
            where="" if status.folder is None else str(status.folder),
            lanes=tuple(
                self._page.Lane(name=one.name, state=one.state, channel=one.channel, message=one.message)
                for one in status.lanes
            ),
            settings=self._steered,
        )

    def queue(self) -> list[page.QueuedJob]:
        entries = (*self._session.waiting, *self._session.ended)
        return [self._queued(entry) for entry in entries]

    def _queued(self, entry: Entry) -> page.QueuedJob:
        config, status = entry.job.runs[0][1], entry.status
        names = [name for name, _ in entry.job.variants]
        return self._page.QueuedJob(
            number=entry.number,
            prompt=_prompt(config),
            told=", ".join(names) if names else told(config),
            state="waiting" if status is None else status.state,
            message="" if status is None else status.message,
            runs=() if status is None else tuple(one.folder.name for one in status.lanes if one.folder),
        )

    def begin(self, form: page.Form) -> page.Refusal | None:
        pressed = time.monotonic()
        with self._asking:
            before, then, number = self._asked
            if form == before and self._is_to_come(number):  # it would come to the same
                words = f"{form.prompt!r} is in the list already: another seed makes another"
                return None if pressed - then < TWICE else self._page.Refusal(message=words)
            refusal = self._add(lambda: self._job(form))
            self._asked = (form, time.monotonic(), self._added if refusal is None else 0)
            return refusal

    def _is_to_come(self, number: int) -> bool:
        """Whether a job waits or is at work."""
        waits = any(entry.number == number for entry in self._session.waiting)
        status = self._session.status  # read last: a job goes from the one to the other
        return waits or (status.number == number and status.busy)

    def _job(self, form: page.Form) -> Job:
        from splatgen.loop.jobs import Job

        if not form.prompt.strip():
            raise ValueError("the prompt is empty: type what to make, as in a red cube")
        variants = self._settings.variants(form, self._runs)
        source = self._files.splats(form.opened) if form.source.strip() else None
        shown = tuple(variants) if len(variants) > 1 else ()
        return Job(config=variants[0][1], out=self._out, command=self._command, source=source, variants=shown)

    def go_on(self, name: str) -> page.Refusal | None:
        from splatgen.loop.jobs import Job

        def again() -> Job:
            past = self._run(name)
            if not isinstance(past.config, Config):
                raise ValueError(f"{name} is the run of a picture: splatgen resume continues it")
            return Job(config=past.config, out=self._out, command=self._command, folder=past.folder)

        return self._add(again)

    def _add(self, make: Callable[[], Job]) -> page.Refusal | None:
        try:
            self._added = self._session.add(make())
        except Exception as error:  # noqa: BLE001 - it becomes words on the page, which lives on
            return self._refusal(error)
        return None

    def _refusal(self, error: Exception) -> page.Refusal:
        cause = error.__cause__
        if isinstance(cause, VocabularyError):
            return self._page.Refusal(message=str(cause), nearest=cause.nearest)
        message = in_words(error)
        if message is None:
            _log.error("a request of the studio failed", exc_info=error)
            message = f"this is a bug: {type(error).__name__}: {error}"
        return self._page.Refusal(message=message)

    def cancel(self, number: int) -> None:
        self._session.cancel(number)

    def move(self, number: int, by: int) -> None:
        self._session.move(number, by)

    def send(self, command: Command, lane: int | None = None) -> None:
        self._session.send(command, lane)

    # Settings

    def form(self, base: str) -> page.Form:
        return self._settings.form(base, self._runs)

    def vocabulary(self, prior: str) -> page.Vocabulary | None:
        return vocabulary(prior)

    def advice(self, form: page.Form) -> str:
        found = [known_limits.advice(config) for _, config in self._settings.variants(form, self._runs)]
        return "; ".join(dict.fromkeys(part for part in found if part))

    def open(self, name: str, content: bytes) -> page.Opened:
        return self._files.open(name, content, self._settings, self._runs)

    # Past runs

    def past(self) -> list[page.PastRun]:
        found = self._history.read()
        self._runs = {past.name: past for past in found}
        return [self._entry(past) for past in found]

    def thumbnail(self, name: str) -> bytes | None:
        return thumbnail(self._run(name))

    def picture(self, name: str) -> bytes:
        found = self._run(name).picture
        if found is None:
            raise ValueError(f"{name} has no picture")
        return found.read_bytes()

    def cloud(self, name: str) -> Cloud:
        return finished(self._run(name))

    def file(self, name: str, suffix: str) -> tuple[str, bytes]:
        past = self._run(name)
        return studio_files.saved(past, suffix)

    def star(self, name: str) -> None:
        star(self._run(name))

    def measure(self, name: str) -> None:
        past = self._run(name)
        self._truths[name, past.step] = truth.measured(past)

    def delete(self, name: str) -> None:
        past = self._run(name)
        who = lock.holder(past.folder)
        if who is not None:
            raise ValueError(f"{past.name} is at work in {who}: stop it first")
        self._trash.put(past)

    def undo(self) -> str:
        return self._trash.undo()

    def differences(self, one: str, other: str) -> list[tuple[str, str, str]]:
        return studio_files.differences(self._run(one), self._run(other))

    def close(self) -> None:
        """What was deleted goes."""
        self._trash.empty()

    def _run(self, name: str) -> PastRun:
        if name not in self._runs:
            raise ValueError(f"there is no run {name[:100]!r} any more")
        return self._runs[name]

    def _entry(self, past: PastRun) -> page.PastRun:
        c = past.config
        source = c.source if isinstance(c, Config) else ""
        return self._page.PastRun(
            name=past.name,
            prompt=_prompt(c) if isinstance(c, Config) else c.prompt,
            told=told(c),
            status=past.status,
            rewards=past.rewards,
            finished=past.splats is not None or past.picture is not None,
            goes_on=past.status == "stopped" and not past.flat,
            again=not source,  # an edit starts from an object
            when=when(past.started),
            starred=past.starred,
            flat=past.flat,
            guided=c.preference != "none",
            measurable=past.splats is not None and truth.caption(past) is not None,
            truth=self._truths.get((past.name, past.step), ""),
        )


def _prompt(config: Config) -> str:
    return f"{config.source} -> {config.prompt}" if config.source else config.prompt


def when(started: str) -> str:
    """A time of run.json as clocks here show it; as it stands where it is none."""
    from datetime import datetime

    try:
        return f"{datetime.fromisoformat(started).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return started
