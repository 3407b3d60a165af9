"""INPUT on the command line: a splat file, or a run folder that holds one."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from splatgen import formats
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.runs import lock, run_folder
from splatgen.runs.run_folder import Run

if TYPE_CHECKING:
    from splatgen.formats.splat_file import SplatFile
    from splatgen.scene.splats import Splats


def splat_file(given: Path) -> Path:
    """The file to read; raises Failure when there is none or no format has its suffix."""
    if given.is_dir():
        return _of_run(given)
    if not given.exists():
        raise Failure(USAGE, f"{given} does not exist: give a run folder or a splat file")
    check_suffix(given)
    return given


def _of_run(given: Path) -> Path:
    """The splats of a run folder: its splats.ply, or out of its newest checkpoint where that is newer."""
    run = Run(folder=given)
    made, saved = run.splats_ply, run.checkpoints / "latest"
    status, kind = _about(run)
    if made.is_file() and not (status == "running" and saved.is_file() and newer(saved, made)):
        return made
    if status and kind != "image" and any(run.checkpoints.glob("step-*")):
        from splatgen.loop import kept

        who = lock.holder(given)
        path, step = kept.from_checkpoint(run)
        why = "has lost its splats.ply" if status == "done" else "was not finished"
        why = f"is at work in {who}" if who else why
        print(f"splatgen: {given} {why}: {path.name} is its checkpoint of step {step}", file=sys.stderr)
        return path
    advice = "give a run folder or a splat file"
    inside = sorted(path.parent for path in given.glob("*/run.json"))
    if inside:
        advice = f"there are {len(inside)} runs in it" if len(inside) > 1 else "there is a run in it"
        advice += f"; give one of them, such as {shlex.quote(str(inside[-1]))}"
    if kind == "image" or (given / "image.png").is_file():
        advice = "it is an image's; give the run of an object"
    elif run.run_json.is_file():
        advice = f"finish the run first with {shlex.join(['splatgen', 'resume', str(given)])}"
    raise Failure(USAGE, f"{given} holds no splats.ply: {advice}")


def _about(run: Run) -> tuple[str, str]:
    """Status and kind of a run, empty where its run.json does not tell."""
    try:
        data = run_folder.read(run)
    except (OSError, ValueError):
        return "", ""
    return str(data.get("status") or ""), str(data.get("kind") or "")


def newer(a: Path, b: Path) -> bool:
    """Whether a file was written after another."""
    return a.stat().st_mtime_ns > b.stat().st_mtime_ns


def check_suffix(path: Path, table: Mapping[str, str] = formats.FORMATS) -> None:
    """Raise Failure unless a format has the suffix."""
    if path.suffix.lower() not in table:
        known = ", ".join(table)
        hint = formats.packed(path) or f"use {known}"
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
