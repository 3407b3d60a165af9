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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from splatgen.runs import atomic
from splatgen.runs.version import __version__

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
    name: str | None = None,
    kind: str | None = None,
    fill: Callable[[Run], object] | None = None,
    min_free_mb: float = 50.0,
) -> Run:
    """Make a new run folder in `out` with its config.json and run.json.

    models maps model ids to revisions; name is the folder's, by default made of date and prompt; fill writes
    what else the run cannot go on without, before run.json makes the folder a run; min_free_mb is in 2^20
    bytes. Raises OSError when `out` can't be written to or its disk is too full, before anything is made, or
    when it has that name already; after any error nothing is left.
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
        folder = _make_folder(out, prompt, name)
        run = Run(folder=folder)
        run.checkpoints.mkdir()
        atomic.write_json(run.config_json, atomic.jsonable(config))
        if fill is not None:
            fill(run)
        given: dict[str, Any] = {"kind": kind} if kind else {}
        given |= {"prompt": prompt, "seed": seed, "models": dict(models or {}), "device": device}
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
    return Run(folder=run.folder, wall_before=_number(read(run).get("wall_time_s")))


def read(run: Run) -> dict[str, Any]:
    """The content of run.json. Raises ValueError when it is no JSON object."""
    try:
        data = json.loads(run.run_json.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(run.run_json)!r} is not JSON ({error}): start a new run") from error
    if not isinstance(data, dict):
        raise ValueError(f"{str(run.run_json)!r} holds a {type(data).__name__}, expected an object")
    return data


def update(run: Run, **fields: Any) -> None:
    """Set fields of run.json, atomically, with the wall time and the peak memory of this moment.

    A status other than running also sets `ended`; running, which a resume sets, deletes the half-written
    files that a kill left. Raises ValueError for an unknown status.
    """
    status = fields.get("status")
    if status is not None and status not in STATUSES:
        raise ValueError(f"no run has the status {status!r}: use one of {', '.join(STATUSES)}")
    data = read(run)
    data["wall_time_s"] = round(run.wall_before + time.monotonic() - run.clock, 3)
    for key, peak in (("peak_memory_mb", peak_memory_mb()), ("peak_gpu_memory_mb", peak_gpu_memory_mb())):
        data[key] = max(peak or 0.0, _number(data.get(key))) or None
    if status is not None:
        data["ended"] = None if status == "running" else _now()
    if status == "running":
        atomic.sweep(run.folder)
    atomic.write_json(run.run_json, atomic.jsonable({**data, **fields}))


def peak_memory_mb() -> float | None:
    """The most memory this process has had resident so far, in 2^20 bytes; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes (getrusage(2))
    return round(peak * unit / 2**20, 1)


def peak_gpu_memory_mb() -> float | None:
    """The most memory that tensors have had on the GPU so far, in 2^20 bytes; None without one."""
    torch = sys.modules.get("torch")  # a process that has not imported it has nothing there
    if torch is None or not torch.cuda.is_available():
        return None
    return round(int(torch.cuda.max_memory_allocated()) / 2**20, 1)


def _number(value: Any) -> float:
    """A number that was read from run.json, 0 for what is none or not finite."""
    known = isinstance(value, int | float) and abs(value) < 1e18
    return float(value) if known and math.isfinite(value) else 0.0


def _make_folder(out: Path, prompt: str, name: str | None) -> Path:
    if name is None:
        return new_folder(out, slug(prompt))
    (out / name).mkdir()
    return out / name


def new_folder(out: Path, name: str) -> Path:
    """Make <out>/<yyyymmdd-hhmmss>-<name>-<id>, which no other process has, even one of the same second."""
    while True:
        folder = out / f"{datetime.now():%Y%m%d-%H%M%S}-{name}-{secrets.token_hex(3)}"
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
        "peak_gpu_memory_mb": peak_gpu_memory_mb(),
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
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # git would look further up, and find somebody else's repository
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
