"""INPUT on the command line: a splat file, or a run folder that holds one."""

from __future__ import annotations

import shlex
from pathlib import Path

from splatgen import formats
from splatgen.commands.common.errors import USAGE, Failure


def splat_file(given: Path) -> Path:
    """The file to read; raises Failure when there is none or no format has its suffix."""
    if given.is_dir():
        path = given / "splats.ply"
        if path.is_file():
            return path
        advice = "give a run folder or a splat file"
        if (given / "image.png").is_file():
            advice = "it is an image's; give the run of an object"
        elif (given / "run.json").is_file():
            advice = f"finish the run first with {shlex.join(['splatgen', 'resume', str(given)])}"
        raise Failure(USAGE, f"{given} holds no splats.ply: {advice}")
    if not given.exists():
        raise Failure(USAGE, f"{given} does not exist: give a run folder or a splat file")
    check_suffix(given)
    return given


def check_suffix(path: Path) -> None:
    """Raise Failure unless a format has the suffix."""
    if path.suffix.lower() not in formats.FORMATS:
        known = ", ".join(formats.FORMATS)
        raise Failure(USAGE, f"{path} has no suffix of a splat format: the formats now are {known}")
