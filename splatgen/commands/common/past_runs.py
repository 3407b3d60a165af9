"""The runs in a folder, as a page of past runs shows them. Imports torch only to read splats."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splatgen import formats
from splatgen.config import Config, ImageConfig, Method, from_dict, merge, read_file
from splatgen.loop.snapshot import Cloud
from splatgen.runs import run_folder
from splatgen.runs.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """What a run folder tells of its run."""

    folder: Path
    config: Method
    status: str  # as in run.json
    step: int
    started: str  # ISO 8601, UTC
    rewards: Mapping[str, float]  # reward/..., holdout/... of the finished object
    preview: Path | None
    splats: Path | None
    picture: Path | None = None  # of a run of an image
    starred: bool = False

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def flat(self) -> bool:
        """Whether it is the run of an image."""
        return isinstance(self.config, ImageConfig)


STAR = "starred"  # a file in a folder: somebody marked the run


class History:
    """The runs in a folder, of this session and earlier ones, each read again when it has changed."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._known: dict[Path, tuple[int, PastRun | None]] = {}  # time of change of run.json

    def read(self) -> list[PastRun]:
        """Runs, newest first; folders that hold none, or a broken one, are left out."""
        folders = [path for path in self.out.iterdir() if path.is_dir()] if self.out.is_dir() else []
        self._known = {folder: self._one(folder) for folder in folders}
        found = [past for _, past in self._known.values() if past is not None]
        return sorted(found, key=lambda past: (past.started, past.name), reverse=True)

    def _one(self, folder: Path) -> tuple[int, PastRun | None]:
        try:  # a mark is made and taken away in the folder itself
            changed = Run(folder=folder).run_json.stat().st_mtime_ns + folder.stat().st_mtime_ns
        except OSError:
            return 0, None
        known = self._known.get(folder)
        return known if known is not None and known[0] == changed else (changed, read_past_run(folder))


def read_past_run(folder: Path) -> PastRun | None:
    """A run as its folder tells of it; None for one that can't be read."""
    run = Run(folder=folder)
    try:
        data = run_folder.read(run)
        config = settings(data.get("kind"), read_file(run.config_json))
    except (OSError, ValueError, RecursionError):
        return None
    match data:
        case {"status": str(status), "started": str(started)} if status in run_folder.STATUSES:
            step, rewards = data.get("steps"), data.get("rewards")
        case _:
            return None
    known = rewards.items() if isinstance(rewards, dict) else ()
    return PastRun(
        folder=folder,
        config=config,
        status=status,
        step=step if isinstance(step, int) else 0,
        started=started,
        rewards={str(name): float(value) for name, value in known if isinstance(value, int | float)},
        preview=_file(run.preview),
        splats=_file(run.splats_ply),
        picture=_file(folder / "image.png"),
        starred=(folder / STAR).is_file(),
    )


def settings(kind: object, values: Mapping[str, Any]) -> Method:
    """A config of the kind that run.json names. Raises ConfigError for values that it can't have."""
    found: Method = merge(ImageConfig(), values) if kind == "image" else from_dict(values)
    return found


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None


def thumbnail(past: PastRun, side: int = 96) -> bytes | None:
    """The front of a finished object as a small PNG; None where there is no picture, or a broken one."""
    from PIL import Image

    if past.preview is None and past.picture is None:
        return None
    try:
        with Image.open(past.picture or past.preview) as sheet:
            tile = sheet.height // (1 if past.flat else 2)  # two rows of squares of an object
            top = tile if isinstance(past.config, Config) and past.config.source else 0  # an edit's result
            small = sheet.convert("RGB").crop((0, top, tile, top + tile)).resize((side, side))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # PIL's for broken files
        return None
    file = io.BytesIO()
    small.save(file, format="PNG")
    return file.getvalue()


def finished(past: PastRun) -> Cloud:
    """The object of a finished run, as viewers draw it; raises ValueError or OSError for a broken file."""
    if past.splats is None:
        raise ValueError(f"{past.name} has no finished object: its status is {past.status}")
    from splatgen.loop.object_snapshots import cloud

    return cloud(formats.load(past.splats))


def star(past: PastRun) -> None:
    """Mark a run, or take its mark away."""
    path = past.folder / STAR
    if past.starred:
        path.unlink(missing_ok=True)
    else:
        path.touch()


TRASH = ".deleted"  # in the folder of runs, until whoever deleted them goes


class Trash:
    """Runs that were put away and can be brought back."""

    def __init__(self, out: Path) -> None:
        self.out, self.names = out, list[str]()

    def put(self, past: PastRun) -> None:
        """Put a run away. Raises OSError."""
        (self.out / TRASH).mkdir(exist_ok=True)
        past.folder.rename(self.out / TRASH / past.name)
        self.names.append(past.name)

    def undo(self) -> str:
        """Bring back what was put away last; its name, or nothing. Raises OSError."""
        if not self.names:
            return ""
        name = self.names.pop()
        (self.out / TRASH / name).rename(self.out / name)
        return name

    def empty(self) -> None:
        """Delete what this process put away."""
        for name in self.names:
            shutil.rmtree(self.out / TRASH / name, ignore_errors=True)
        self.names = []
        with contextlib.suppress(OSError):  # another studio may have put something there
            (self.out / TRASH).rmdir()
