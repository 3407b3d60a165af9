"""A worker on a node of a cluster: what Ray starts there. It knows nothing of Ray.

Where the node sees the sweep's folder it works in it, and what it began can be resumed by any other;
elsewhere it works in a folder of its own, and the files of a finished run are sent back.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from splatgen.config import Config
from splatgen.loop import lifecycle
from splatgen.models.budget import BUDGETS
from splatgen.runs import atomic, run_folder
from splatgen.runs.version import __version__
from splatgen.sweeps.ledger import FILE, Outcome
from splatgen.sweeps.plan import Task
from splatgen.sweeps.worker import Worker, tried

RESULTS = (
    "config.json", "run.json", "metrics.jsonl", "splats.ply", "preview.png",
    "turntable.mp4", "turntable.gif", "turntable.png",
)  # fmt: skip
FREE_MB = 50.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a hand is told once."""

    root: str  # the sweep's folder, as the driver sees it
    mark: str  # what its sweep.json has for an id
    command: tuple[str, ...]
    truth: bool
    threads: int
    gpus: float  # of a run; below 1 it has that share of the memory


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of a run, and its files where the driver can't see them."""

    outcome: Outcome
    files: dict[str, bytes] | None


class Hand:
    """Makes one run at a time; `stop` comes from another thread."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._worker = Worker(order.command, truth=order.truth)
        self._halt = threading.Event()

    def look(self, version: str, config: Config) -> str | None:
        """Why this node can't make runs of a sweep; None where it can. Loads the networks of a config."""
        if version != __version__:
            return f"it has splatgen {__version__}, the sweep has {version}: install the same there"
        needed = BUDGETS[config.budget].most
        if lifecycle.pick_device(config) == "cuda" and needed:
            there = torch.cuda.get_device_properties(0).total_memory / 2**30 * min(1.0, self._order.gpus)
            if there < needed:
                return f"{there:.1f} GiB of its GPU are a run's, --budget {config.budget} takes {needed:g}"
        torch.set_num_threads(self._order.threads)
        with tempfile.TemporaryDirectory() as own:
            run_folder.check_space(Path(self._order.root) if self._sees_root() else Path(own), FREE_MB)
        self._worker.load(config)
        return None

    def make(self, task: Task) -> Report:
        """A run to its end; raises what the node is to blame for."""
        torch.set_num_threads(self._order.threads)  # it counts for the thread that says it
        if self._sees_root():
            return Report(outcome=self._tried(task, Path(self._order.root)), files=None)
        own = Path(tempfile.mkdtemp(prefix="splatgen-"))
        try:
            outcome = self._tried(task, own)
            return Report(outcome=outcome, files=packed(own / task.folder))
        finally:
            shutil.rmtree(own, ignore_errors=True)

    def stop(self) -> None:
        """Let the run at work end after its step, with a checkpoint."""
        self._halt.set()

    def _tried(self, task: Task, root: Path) -> Outcome:
        return tried(lambda: self._worker.make(task, root, should_stop=self._halt.is_set))

    def _sees_root(self) -> bool:
        """Whether the path leads to the same folder here."""
        try:
            found = json.loads((Path(self._order.root) / FILE).read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get("id") == self._order.mark


def packed(folder: Path) -> dict[str, bytes]:
    """The results in a run's folder by name."""
    paths = [folder / name for name in RESULTS]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def unpack(folder: Path, files: dict[str, bytes]) -> None:
    """Write a run's folder out of what a node sent, whole or not at all; ValueError for other files."""
    if not files.keys() <= {*RESULTS}:
        raise ValueError(f"a node sent {', '.join(files.keys() - {*RESULTS})[:200]}, which no run leaves")
    part = folder.with_name(f".{folder.name}.part")
    for path in (part, folder):
        shutil.rmtree(path, ignore_errors=True)
    part.mkdir(parents=True)
    for name, data in files.items():
        atomic.write_bytes(part / name, data)
    part.rename(folder)
    atomic.sync_folder(folder.parent)
