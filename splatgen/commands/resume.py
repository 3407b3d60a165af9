"""`splatgen resume`: a run from its last checkpoint on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from splatgen import config as settings
from splatgen import runs
from splatgen.commands import checks
from splatgen.commands.failures import USAGE, Failure
from splatgen.commands.parsing import Switch, parse
from splatgen.commands.working import work
from splatgen.config import Config
from splatgen.validation import validate


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Continue a run that was stopped, from its last checkpoint; prints the run folder."""

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """A run folder."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Steps in all, those done included, instead of what the run was started with."""
    json: Switch = False
    """Print a JSON object instead of the run folder's path."""
    quiet: Switch = False
    """No progress, only errors."""


def check(options: Resume) -> Config:
    """The run's settings, after everything that can fail early."""
    run = runs.open_run(options.run)
    config = settings.from_dict(settings.read_file(run.config_json))
    if options.steps is not None:
        config = dataclasses.replace(config, steps=options.steps)
    validate(config)
    if not any(run.checkpoints.glob("step-*")):
        raise Failure(USAGE, f"{run.folder} holds no checkpoint: start it anew with splatgen generate")
    checks.check_models(config)
    checks.check_device(config)
    checks.check_out(run.folder)
    return config


def main(argv: Sequence[str]) -> int:
    options = parse(Resume, "resume", argv)
    config = check(options)
    from splatgen import optimise

    return work(
        lambda report, should_stop: optimise.resume(
            options.run,
            steps=options.steps,
            command=["splatgen", "resume", *argv],
            report=report,
            should_stop=should_stop,
        ),
        config,
        as_json=options.json,
        quiet=options.quiet,
    )
