"""INPUT on the command line: a splat file, or a run folder that holds one."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from splatgen import formats
from splatgen.commands.common.errors import USAGE, Failure

if TYPE_CHECKING:
    from splatgen.formats.splat_file import SplatFile
    from splatgen.scene.splats import Splats


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


def check_suffix(path: Path, table: Mapping[str, str] = formats.FORMATS) -> None:
    """Raise Failure unless a format has the suffix."""
    if path.suffix.lower() not in table:
        known = ", ".join(table)
        hint = formats.packed(path) or f"the formats now are {known}"
        raise Failure(USAGE, f"{path} has no suffix of a splat format: {hint}")


def check_output(path: Path) -> None:
    """Raise Failure for a file that no format is written to, or under a name that means another layout."""
    check_suffix(path, formats.WRITTEN)
    if formats.packed(path):
        raise Failure(USAGE, f"{path} would not be what its name says: {formats.packed(path)}")


def framed(file: SplatFile, given: Path, fit: Literal["auto", "always", "never"]) -> Splats:
    """A file's splats before the cameras, float32 on the CPU; a line says what was moved.

    auto moves what is out of view or tiny, and nothing of a run folder, which stands where its prior saw it.
    """
    from dataclasses import replace

    from splatgen.scene.placement import IDENTITY, placement

    splats = file.splats(exact=True)
    if not len(splats) or (fit == "auto" and given.is_dir()):
        return file.splats()
    place = placement(splats, fit, name=str(given))
    if place != IDENTITY:
        center = ", ".join(f"{value:.4g}" for value in place.center)
        print(
            f"splatgen: {given} has its middle at ({center}), seen {1 / place.size:.3g} times as large",
            file=sys.stderr,
        )
    placed = place.place(splats)
    return replace(placed, means=placed.means.float())
