"""`splatgen studio`: a page that stays up, and models that stay loaded, for one prompt after the other."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from splatgen.commands import generate
from splatgen.commands.common import arguments, checks, usual
from splatgen.commands.common.arguments import SettingsFlags, StagesFile
from splatgen.commands.common.signals import on_signals
from splatgen.commands.common.studio_backend import StudioBackend, in_words
from splatgen.commands.common.studio_settings import watched
from splatgen.commands.common.viewer import ViewerAddress, served
from splatgen.config import Config
from splatgen.config.stages import stages
from splatgen.config.validation import validate
from splatgen.models.memory import keep_freed

if TYPE_CHECKING:
    from splatgen.loop.session import Session


@dataclass(frozen=True, kw_only=True)
class Studio(SettingsFlags):
    """Make objects from a page in the browser, one after the other; the models stay loaded."""

    stages: StagesFile = None
    """A .toml or .json file of [[stages]], as for `splatgen generate`."""
    place: Annotated[ViewerAddress, arg(name="", prefix_name=False)] = field(default_factory=ViewerAddress)
    settings: Annotated[Config, arg(name="", prefix_name=False)] = field(default_factory=Config)


NOTE = (
    "What is given here is what the page's fields hold at first, and what its presets change. Ctrl-C ends "
    "the studio; a run that is at work leaves a checkpoint."
)


def main(argv: Sequence[str]) -> int:
    options = read(argv)
    check(options)
    if checks.resolve(options.settings).device == "cpu":  # imports torch
        keep_freed()
    from splatgen.loop.resident_models import ResidentModels
    from splatgen.loop.session import Session

    session = Session(ResidentModels(), check=functools.partial(checked, options.out), describe=in_words)
    session.prepare(first(watched(options.settings)))
    program = workshop(session, options, argv)
    with on_signals() as stop:
        try:
            with opened(program, options.place):
                while not stop.requested():
                    time.sleep(0.1)
                at_work, waiting = session.status.busy, len(session.waiting)
                last = session.close()  # the page sees it
        finally:
            session.close(timeout=0.0)
            program.close()
    if waiting:
        print(f"splatgen: {waiting} that waited in the queue are not made", file=sys.stderr)
    stopped = [lane.folder for lane in last.lanes if lane.state == "stopped" and lane.folder is not None]
    if not at_work or not stopped:
        return 0
    for folder in stopped:
        command = shlex.join(["splatgen", "resume", str(folder)])
        print(f"splatgen: the run was stopped; continue it with: {command}", file=sys.stderr)
    return stop.exit_code


def read(argv: Sequence[str]) -> Studio:
    """The options; SystemExit or ConfigError when they are wrong. The prior is what `generate` would take."""
    return usual.read(Studio, "studio", argv, note=NOTE, prompts=lambda o: [o.settings.prompt])


def check(options: Studio) -> None:
    """What is wrong with any prompt, before there is a page."""
    config = validate(options.settings)
    for stage in stages(config):
        with checks.naming(stage):
            checks.check_names(stage.config)
    checks.check_device(config)
    checks.check_out(options.out)


def workshop(session: Session, options: Studio, argv: Sequence[str]) -> StudioBackend:
    """The program as the page sees it."""

    def with_preset(name: str | None) -> Config:
        if name is None:
            return options.settings
        words = ["--preset", name, *without_preset(argv)]
        return arguments.read(Studio, "studio", words, heard=False).settings

    return StudioBackend(session, options.out, ["splatgen", "studio", *argv], with_preset)


FIRST = "a red cube"


def first(config: Config) -> Config:
    """What is loaded before anything is asked for; every prior can read this prompt."""
    return replace(config, prompt=FIRST)


def checked(out: Path, config: Config) -> Config:
    """A config that can be run, as `splatgen generate` or `splatgen edit` would check it."""
    if config.source:
        from splatgen.commands import edit

        config = edit.check_prompts(validate(config), force=False)
    return generate.check(generate.Generate(out=out), validate(config))


@contextlib.contextmanager
def opened(program: StudioBackend, place: ViewerAddress) -> Iterator[None]:
    """The studio's page at a place, which the terminal is told; raises Failure when it can't listen there."""
    from splatgen_viewer.studio import Studio as Page

    with served(lambda: Page(program, host=place.host, port=place.port), place, "page"):
        yield


def without_preset(argv: Sequence[str]) -> list[str]:
    """Words of a command line but for its preset."""
    words = list(argv)
    for n, word in enumerate(words):
        if word == "--preset":
            return words[:n] + words[n + 2 :]
        if word.startswith("--preset="):
            return words[:n] + words[n + 1 :]
    return words
