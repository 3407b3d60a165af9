"""`splatgen generate`: settings, checks, and a run from its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from splatgen.commands.common import checks, usual
from splatgen.commands.common.arguments import RunFlags, StagesFile
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.commands.common.execution import execute
from splatgen.commands.common.viewer import ViewerOptions, watched
from splatgen.config import Config, presets
from splatgen.config.validation import validate
from splatgen.runs import steering


@dataclass(frozen=True, kw_only=True)
class Generate(RunFlags):
    """Make a 3D object out of a prompt; prints the run folder."""

    stages: StagesFile = None
    """A .toml or .json file of [[stages]], shares of the steps with settings of their own (docs/stages.md);
    they replace the preset's and the config file's."""
    steering: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The steering.jsonl of another run: make the changes that somebody made in its viewer at the same
    steps."""
    viewing: Annotated[ViewerOptions, arg(name="", prefix_name=False)] = field(default_factory=ViewerOptions)
    settings: Annotated[Config, arg(name="", prefix_name=False)] = field(default_factory=Config)


NOTE = (
    "Options on the command line change the config file's, which change the preset's, which change the "
    "defaults. Presets: {presets}. Ctrl-C stops with a checkpoint; `splatgen resume RUN` continues."
)


def read(argv: Sequence[str]) -> tuple[Generate, Config]:
    """The options and the settings with their precedence; SystemExit or ConfigError when they are wrong."""
    note = NOTE.format(presets=", ".join(presets()))
    options = usual.read(Generate, "generate", argv, note=note, prompts=lambda o: [o.settings.prompt])
    return options, validate(options.settings)


def check(options: Generate, config: Config) -> Config:
    """Everything that can fail early, cheapest first; returns the config, with its prompt made possible."""
    config = checks.check_settings(config, force=options.force)
    checks.check_init(config)
    checks.check_all_models(config)
    if options.steering is not None:
        if not options.steering.is_file():
            advice = "give the steering.jsonl of a run"
            raise Failure(USAGE, f"--steering {options.steering} is no file: {advice}")
        steering.read(options.steering)
    checks.check_device(config)
    checks.check_out(options.out)
    return config


def main(argv: Sequence[str]) -> int:
    options, config = read(argv)
    config = check(options, config)
    with watched(options.viewing, config) as channel:
        from splatgen.loop import object_run

        return execute(
            lambda report, should_stop: object_run.generate(
                config,
                out=options.out,
                command=["splatgen", "generate", *argv],
                changes=options.steering,
                report=report,
                should_stop=should_stop,
                channel=channel,
            ),
            config,
            as_json=options.json,
            quiet=options.quiet,
        )
