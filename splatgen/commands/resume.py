"""`splatgen resume`: a run from its last checkpoint on."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated

from tyro.conf import Positional, arg

from splatgen import config as settings
from splatgen.commands.common import checks
from splatgen.commands.common.arguments import Switch, parse
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.commands.common.execution import execute, summary
from splatgen.commands.common.viewer import ViewerOptions, watched
from splatgen.config import ImageConfig, Method
from splatgen.config.stages import lengthened
from splatgen.config.validation import validate, validate_image
from splatgen.runs import run_folder


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Continue a run that was stopped or killed, from its last checkpoint; prints the run folder."""

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """A run folder."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Steps in all, those done included, instead of what the run was started with."""
    json: Switch = False
    """Print a JSON object instead of the run folder's path."""
    quiet: Switch = False
    """No progress, only errors."""
    viewing: Annotated[ViewerOptions, arg(name="", prefix_name=False)] = field(default_factory=ViewerOptions)


def read(run: run_folder.Run, steps: int | None) -> Method:
    """The settings of a run, 2D or 3D, with another number of steps if there is one."""
    table = settings.read_file(run.config_json)
    more = {} if steps is None else {"steps": steps}
    if run_folder.read(run).get("kind") == "image":
        return validate_image(settings.merge(ImageConfig(), {**table, **more}))
    saved = settings.from_dict(table)
    return validate(saved if steps is None else lengthened(saved, steps))


def check(options: Resume) -> Method:
    """The run's settings, after everything that can fail early."""
    run = run_folder.open_run(options.run)
    config = read(run, options.steps)
    edit = isinstance(config, ImageConfig) and config.source
    if edit and not any(run.checkpoints.glob("step-*")):  # which holds its picture
        raise Failure(USAGE, f"{run.folder} holds no checkpoint: start the run anew")
    checks.check_all_models(config)
    checks.check_device(config)
    checks.check_out(run.folder)
    return config


def is_done(options: Resume) -> bool:
    """Whether there is nothing left to do; the settings and the files of the end are looked at."""
    run = run_folder.open_run(options.run)
    about = run_folder.read(run)
    steps = read(run, None).steps
    whole = run.splats_ply.is_file() or (run.folder / "image.png").is_file()
    return about.get("status") == "done" and whole and options.steps in (None, steps)


def say_done(options: Resume) -> int:
    """Where a finished run is, and what can be done with it; the exit code."""
    from splatgen.loop.loop import Result

    run = run_folder.open_run(options.run)
    steps = read(run, None).steps
    print(
        f"splatgen: this run is done, after {steps:,} steps: nothing is left to do; --steps "
        f"{2 * steps} makes it longer",
        file=sys.stderr,
    )
    text = (
        json.dumps(summary(Result(run=run, status="done", step=steps))) if options.json else str(run.folder)
    )
    print(text, flush=True)
    return 0


def loop(config: Method) -> ModuleType:
    """The module whose `resume` continues such a run. Imports torch."""
    from splatgen.loop import image_run, object_run

    return image_run if isinstance(config, ImageConfig) else object_run


def main(argv: Sequence[str]) -> int:
    options = parse(Resume, "resume", argv)
    config = check(options)
    if is_done(options):
        return say_done(options)
    with watched(options.viewing, config, options.run) as channel:
        continued = loop(config)
        shown = {} if channel is None else {"channel": channel}  # the run of an image has none
        return execute(
            lambda report, should_stop: continued.resume(
                options.run,
                steps=options.steps,
                command=["splatgen", "resume", *argv],
                report=report,
                should_stop=should_stop,
                **shown,
            ),
            config,
            as_json=options.json,
            quiet=options.quiet,
        )
