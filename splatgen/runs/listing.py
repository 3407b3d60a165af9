"""The runs in a folder as a list: what each is, how it ended, what it takes on the disk; and deleting them.

Imports no torch. A folder of a comparison or a sweep is looked into, one level down.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from splatgen.runs import lock, run_folder
from splatgen.runs.run_folder import Run

BROKEN = "broken"  # status of a run.json that can't be read


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run folder, as its run.json tells."""

    folder: Path
    prompt: str
    status: str  # as in run.json; killed where it says running and nobody is at work; or broken
    steps: int
    started: str  # ISO 8601, UTC; empty where unknown
    bytes: int  # on the disk, checkpoints included
    checkpoint_bytes: int


def entries(out: Path) -> list[Entry]:
    """Every run in a folder, newest first; none where there is no folder."""
    found = [entry(folder) for folder in _folders(out)]
    return sorted(found, key=lambda one: (one.started, one.folder.name), reverse=True)


def entry(folder: Path) -> Entry:
    """One run; what can't be read has the status broken."""
    run = Run(folder=folder)
    try:
        data = run_folder.read(run)
    except (OSError, ValueError):
        data = {"status": BROKEN}
    status, steps = str(data.get("status") or BROKEN), data.get("steps")
    if status == "running" and lock.holder(folder) is None:
        status = "killed"
    return Entry(
        folder=folder,
        prompt=str(data.get("prompt") or ""),
        status=status,
        steps=steps if isinstance(steps, int) else 0,
        started=str(data.get("started") or ""),
        bytes=size(folder),
        checkpoint_bytes=size(run.checkpoints),
    )


def age_days(one: Entry, now: datetime) -> float:
    """How long ago a run began; 0 where that is unknown. Raises nothing for what a file says."""
    try:
        return (now - datetime.fromisoformat(one.started)).total_seconds() / 86400.0
    except (ValueError, TypeError):
        return 0.0


def size(folder: Path) -> int:
    """Bytes of the files below a folder; links count as themselves."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it has gone meanwhile
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def delete(one: Entry, *, checkpoints_only: bool = False) -> None:
    """Delete a run, or its checkpoints alone, after which it can't be resumed.

    Raises BusyError for one that is at work, ValueError for what is no run of its own folder, OSError.
    """
    run = Run(folder=one.folder)
    if one.folder.is_symlink() or not run.run_json.is_file():
        raise ValueError(f"{one.folder} is no run folder: nothing is deleted")
    if checkpoints_only and not (run.splats_ply.is_file() or (one.folder / "image.png").is_file()):
        raise ValueError(
            f"{one.folder} has nothing but its checkpoints: `splatgen render` makes splats.ply of them"
        )
    with lock.held(one.folder):
        shutil.rmtree(run.checkpoints if checkpoints_only else one.folder)
        if checkpoints_only:
            run.checkpoints.mkdir()


def _folders(out: Path) -> Iterator[Path]:
    """Folders with a run.json, and those one level down in folders without one; links are not followed."""
    for folder in _subfolders(out):
        if (folder / "run.json").is_file():
            yield folder
        else:
            yield from (inner for inner in _subfolders(folder) if (inner / "run.json").is_file())


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:  # none, or not ours to read
        return []
