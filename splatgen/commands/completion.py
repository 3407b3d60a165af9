"""`splatgen completion`: a script for the shell that completes verbs, options and their choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import Positional, arg

from splatgen.commands.common.arguments import parse

NOTE = (
    'bash: eval "$(splatgen completion bash)" in ~/.bashrc. zsh: splatgen completion zsh > a folder of '
    "$fpath/_splatgen. tcsh: splatgen completion tcsh > a file, and source it."
)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Print a script with which a shell completes what follows splatgen."""

    shell: Annotated[Literal["bash", "zsh", "tcsh"], Positional, arg(metavar="SHELL", help_behavior_hint="")]
    """bash, zsh or tcsh."""


def main(argv: Sequence[str]) -> int:
    options = parse(Completion, "completion", argv, note=NOTE)
    try:
        tyro.cli(every_verb(), prog="splatgen", args=["--tyro-print-completion", options.shell])
    except SystemExit as stop:  # tyro ends so when it has printed the script
        return int(stop.code or 0)
    return 0


def every_verb() -> Any:
    """The options of all verbs as one type with a subcommand each."""
    named = [Annotated[kind, tyro.conf.subcommand(verb)] for verb, kind in verbs().items()]
    return Union[tuple(named)]  # noqa: UP007 - of a list


def verbs() -> dict[str, type[Any]]:
    """The options of each verb; their modules import no torch."""
    from splatgen.commands import (
        compare,
        doctor,
        edit,
        export,
        fetch,
        generate,
        image,
        render,
        report,
        resume,
        runs,
        studio,
        sweep,
        view,
        words,
    )
    from splatgen.commands import eval as evaluate

    kinds = (
        generate.Generate, edit.Edit, image.Image, compare.Compare, sweep.Sweep, resume.Resume, studio.Studio,
        view.View, runs.Runs, render.Render, export.Export, fetch.Fetch, words.Words, doctor.Doctor,
        evaluate.Eval, report.Report, Completion,
    )  # fmt: skip
    return {kind.__name__.lower(): kind for kind in kinds}
