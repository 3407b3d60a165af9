"""The folder of a run: its name, its files, its metadata and its metrics. Imports no torch.

<out>/<yyyymmdd-hhmmss>-<slug>-<id>/
    config.json  run.json  metrics.jsonl  checkpoints/  splats.ply  preview.png  turntable.mp4
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from splatgen import __version__, atomic

STATUSES = ("running", "done", "stopped", "diverged", "oom", "failed")
SLUG_LIMIT = 40  # characters
PACKAGES = ("torch", "gsplat", "numba", "numpy", "diffusers", "peft", "safetensors", "transformers")
_RESERVED = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]")  # device names on Windows


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder and the clock of the process that works in it."""

    folder: Path
    wall_before: float = 0.0  # seconds, of earlier processes of the same run
    clock: float = field(default_factory=time.monotonic)  # seconds; immune to changes of the date

    @property
    def id(self) -> str:
        """The folder's name, which is unique."""
        return self.folder.name

    @property
    def config_json(self) -> Path:
        return self.folder / "config.json"

    @property
    def run_json(self) -> Path:
        return self.folder / "run.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def splats_ply(self) -> Path:
        return self.folder / "splats.ply"

    @property
    def preview(self) -> Path:
        return self.folder / "preview.png"

    @property
    def turntable(self) -> Path:
        """Without suffix: `video.write_turntable` chooses it."""
        return self.folder / "turntable"


def slug(prompt: str) -> str:
    """A file-name part out of any text: a-z, 0-9 and single dashes, 1 to 40 characters."""
    # cut first: normalising can make one character 18
    ascii_text = unicodedata.normalize("NFKD", prompt[:1000]).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:SLUG_LIMIT].strip("-")
    if not name:
        return "untitled"
    return f"{name}-prompt" if _RESERVED.fullmatch(name) else name


def create(
    out: str | os.PathLike[str],
    prompt: str,
    *,
    command: str | Sequence[str],
    config: Mapping[str, Any],
    seed: int | None = None,
    device: str | None = None,
    models: Mapping[str, str] | None = None,
    min_free_mb: float = 50.0,
) -> Run:
    """Make a new run folder in `out` with its config.json and run.json.

    models maps model ids to revisions; min_free_mb is in 2^20 bytes. Raises OSError when `out` can't
    be written to or its disk is too full, before anything is made; after any error nothing is left.
    """
    out = Path(out)
    check_space(out, min_free_mb)
    parents: list[Path] = []
    folder: Path | None = None
    try:
        for parent in [*reversed(out.parents), out]:
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                parents.append(parent)
        folder = _make_folder(out, prompt)
        run = Run(folder=folder)
        run.checkpoints.mkdir()
        atomic.write_json(run.config_json, _jsonable(config))
        given = {"prompt": prompt, "seed": seed, "models": dict(models or {}), "device": device}
        atomic.write_json(run.run_json, _metadata(run, command, **given))
        atomic.sync_folder(out)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in reversed(parents):
            with contextlib.suppress(OSError):  # another run may be in it by now
                parent.rmdir()
        raise
    return run


def check_space(out: Path, min_free_mb: float) -> None:
    """Raise OSError unless folders and min_free_mb of files can be made in `out`, which may not exist."""
    existing = next(p for p in [out.absolute(), *out.absolute().parents] if p.exists())
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder; use another --out", str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "no permission to write here; use another --out", str(existing))
    free = shutil.disk_usage(existing).free / 2**20
    if free < min_free_mb:
        message = f"{free:.0f} MB free, a run needs {min_free_mb:.0f} MB; free some or use another --out"
        raise OSError(errno.ENOSPC, message, str(existing))


def open_run(folder: str | os.PathLike[str]) -> Run:
    """An existing run, to resume or look at. Raises ValueError when the folder has no readable run.json."""
    run = Run(folder=Path(folder))
    if not run.run_json.is_file():
        raise ValueError(f"{os.fspath(folder)!r} has no run.json: give a folder made by `splatgen generate`")
    wall = read(run).get("wall_time_s", 0.0)
    return Run(folder=run.folder, wall_before=float(wall) if isinstance(wall, int | float) else 0.0)


def read(run: Run) -> dict[str, Any]:
    """The content of run.json. Raises ValueError when it is no JSON object."""
    try:
        data = json.loads(run.run_json.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(run.run_json)!r} is not JSON ({error}): start a new run") from error
    if not isinstance(data, dict):
        raise ValueError(f"{str(run.run_json)!r} holds a {type(data).__name__}, expected an object")
    return data


def update(run: Run, **fields: Any) -> None:
    """Set fields of run.json, atomically, with the wall time and the peak memory of this moment.

    A status other than running also sets `ended`. Raises ValueError for an unknown status.
    """
    status = fields.get("status")
    if status is not None and status not in STATUSES:
        raise ValueError(f"no run has the status {status!r}: use one of {', '.join(STATUSES)}")
    data = read(run)
    data["wall_time_s"] = round(run.wall_before + time.monotonic() - run.clock, 3)
    data["peak_memory_mb"] = max(peak_memory_mb() or 0.0, data.get("peak_memory_mb") or 0.0) or None
    if status is not None:
        data["ended"] = None if status == "running" else _now()
    atomic.write_json(run.run_json, _jsonable({**data, **fields}))


def peak_memory_mb() -> float | None:
    """The most memory this process has had resident so far, in 2^20 bytes; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes (getrusage(2))
    return round(peak * unit / 2**20, 1)


def _make_folder(out: Path, prompt: str) -> Path:
    """Make a folder that no other process has, even one that starts in the same second."""
    while True:
        folder = out / f"{datetime.now():%Y%m%d-%H%M%S}-{slug(prompt)}-{secrets.token_hex(3)}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue  # one in 16 million
        return folder


def _metadata(run: Run, command: str | Sequence[str], **given: Any) -> dict[str, Any]:
    git = _git_hash()
    return {
        "id": run.id,
        "version": __version__,
        **({"git": git} if git else {}),
        "command": command if isinstance(command, str) else shlex.join(command),
        **given,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "status": "running",
        "started": _now(),
        "ended": None,
        "wall_time_s": 0.0,
        "peak_memory_mb": peak_memory_mb(),
        "splats": None,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _packages() -> dict[str, str]:
    """Versions from the installed metadata, which costs milliseconds where an import costs seconds."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _git_hash() -> str | None:
    """The commit of a source checkout, with -dirty for changes; None when installed or without git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # git would look further up, and find somebody else's repository
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _jsonable(value: Any) -> Any:
    """JSON's types; NaN and infinity, which it lacks, become null, paths and the like become text."""
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return _jsonable(value.tolist())
    return str(value)


class Metrics:
    """Append-only writer of metrics.jsonl: one JSON object a line, on its way to the disk at once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file for appending; what a crash left of a last line is cut off. Raises OSError."""
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the run
        _cut_torn_line(Path(path))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; NaN and infinity become null. Raises OSError."""
        text = json.dumps(_jsonable(row), ensure_ascii=False, allow_nan=False) + "\n"
        self._file.write(text.encode("utf-8", "backslashreplace"))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All rows; a last line that was cut short is left out.

    Raises ValueError naming the line for damage anywhere else, OSError when there is no file.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]  # what follows the last newline is empty or torn
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # a power cut can leave zeros, too
                break
            raise ValueError(f"{os.fspath(path)!r} line {number} is not JSON ({error}): remove it") from error
        if not isinstance(row, dict):
            raise ValueError(f"{os.fspath(path)!r} line {number} is no JSON object: remove it")
        rows.append(row)
    return rows


def rewind_metrics(path: str | os.PathLike[str], step: int) -> None:
    """Drop, atomically, the rows after a step, which a run resumed from there writes again."""
    rows = [row for row in read_metrics(path) if row.get("step", step) <= step]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic.write_bytes(path, text.encode("utf-8", "backslashreplace"))


def _cut_torn_line(path: Path) -> None:
    with open(path, "rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        if whole < file.tell():
            file.truncate(whole)

