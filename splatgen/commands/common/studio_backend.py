"""What the page of the studio asks of the program: settings out of fields, runs, and what became of them."""

from __future__ import annotations

import logging
import tomllib
import typing
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatgen.commands.common.arguments import check_heard
from splatgen.commands.common.embedded import VocabularyError, of_prior
from splatgen.commands.common.errors import describe
from splatgen.commands.common.past_runs import History, PastRun, finished, thumbnail
from splatgen.commands.common.viewer import settings
from splatgen.config import Config, ConfigError, merge, presets
from splatgen.config.schema import PREFERENCES, SCORES
from splatgen.config.stages import selections, stages
from splatgen.loop.snapshot import Cloud, Command
from splatgen.priors import PRIORS

if TYPE_CHECKING:
    from splatgen_viewer import studio_program as page

    from splatgen.loop.resident_models import Session

AS_STARTED = "as started"
FIELDS = ("prompt", "prior", "score", "preference", "steps", "seed")  # of a form, settings by the same name

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
        self._session, self._out, self._command, self._read = session, out, command, read
        self._history = History(out)
        self._runs: dict[str, PastRun] = {}
        self._presets: dict[str, Config] = {}
        self._number, self._settings = 0, dict[str, float]()  # of the run at work
        self.choices = self._page.Choices(
            bases=(AS_STARTED, *presets()),
            priors=tuple(PRIORS),
            scores=names_of("score"),
            preferences=names_of("preference"),
        )

    def work(self) -> page.Work:
        status = self._session.status
        if status.job is None:
            return self._page.Work(state=status.state, message=status.message)
        if self._number != status.number:  # the page asks many times a second
            self._settings = settings(status.job.config, status.job.folder)
            self._number = status.number
        return self._page.Work(
            state=status.state,
            number=status.number,
            prompt=status.job.config.prompt,
            message=status.message,
            channel=status.channel,
            settings=self._settings,
        )

    def form(self, base: str) -> page.Form:
        config = self._base(base)
        return self._page.Form(
            base=base,
            prompt=config.prompt,
            prior=config.prior,
            score=config.score,
            preference=config.preference,
            steps=config.steps,
            seed=config.seed,
        )

    def vocabulary(self, prior: str) -> page.Vocabulary | None:
        world = of_prior(prior)
        return None if world is None else self._page.Vocabulary(lines=world.lines(), examples=world.examples)

    def begin(self, form: page.Form) -> page.Refusal | None:
        return self._start(lambda: self._config(form), None)

    def go_on(self, name: str) -> page.Refusal | None:
        return self._start(lambda: self._run(name).config, name)

    def send(self, command: Command) -> None:
        self._session.send(command)

    def past(self) -> list[page.PastRun]:
        found = self._history.read()
        self._runs = {past.name: past for past in found}
        return [self._entry(past) for past in found]

    def thumbnail(self, name: str) -> bytes | None:
        return thumbnail(self._run(name))

    def cloud(self, name: str) -> Cloud:
        return finished(self._run(name))

    def file(self, name: str) -> bytes:
        splats = self._run(name).splats
        if splats is None:
            raise ValueError(f"{name} has no finished object")
        return splats.read_bytes()

    def _start(self, settings_of: Callable[[], Config], run: str | None) -> page.Refusal | None:
        from splatgen.loop.resident_models import Job

        try:
            folder = None if run is None else self._run(run).folder
            job = Job(config=settings_of(), out=self._out, command=self._command, folder=folder)
            self._session.start(job)
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

    def _config(self, form: page.Form) -> Config:
        base, chosen = self._base(form.base), {name: getattr(form, name) for name in FIELDS}
        config: Config = merge(selected(merge(base, chosen)), more(form.more))
        check_heard(config, base)
        return config

    def _base(self, name: str) -> Config:
        """The settings of a preset under the words of the command line, or of a past run."""
        if name in self._runs:
            return self._runs[name].config
        if name not in self.choices.bases:
            raise ConfigError(f"there is no preset or run {name[:100]!r} to start from")
        if name not in self._presets:
            self._presets[name] = self._read(None if name == AS_STARTED else name)
        return self._presets[name]

    def _run(self, name: str) -> PastRun:
        if name not in self._runs:
            raise ValueError(f"there is no run {name[:100]!r} any more")
        return self._runs[name]

    def _entry(self, past: PastRun) -> page.PastRun:
        c = past.config
        return self._page.PastRun(
            name=past.name,
            prompt=f"{c.source} -> {c.prompt}" if c.source else c.prompt,
            told=f"{method_of(c)}, {c.steps:,} steps, seed {c.seed}",
            status=past.status,
            rewards=past.rewards,
            finished=past.splats is not None,
            goes_on=past.status == "stopped",
            again=not c.source,  # an edit starts from an object
        )


def names_of(field: str) -> tuple[str, ...]:
    """What a setting of the config can be."""
    return tuple(typing.get_args(typing.get_type_hints(Config)[field]))


def method_of(config: Config) -> str:
    """Score, preference and prior, of each stage where there are several."""
    told = []
    for stage in stages(config):
        c = stage.config
        method = c.score if c.preference == "none" else f"{c.score} + {c.preference}"
        told.append(f"{stage.name}: {method}, {c.prior}" if stage.name else f"{method}, {c.prior}")
    return " → ".join(told)


def selected(config: Config) -> Config:
    """Without options of a score or preference that is not the chosen one: they would be refused."""
    unused = [name for name in (*SCORES, *PREFERENCES) if name not in selections(config)]
    return replace(config, **{name: type(getattr(config, name))() for name in unused})


def more(text: str) -> dict[str, Any]:
    """Settings as lines of a config file."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        advice = "write a line a setting, such as guidance.scale = 7.5"
        raise ConfigError(f"more settings: {error}: {advice}") from error
