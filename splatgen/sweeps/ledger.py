"""The folder of a sweep: what is planned, a row for every run that had its turn, and one process at a time.

<out>/<yyyymmdd-hhmmss>-sweep-<slug>-<id>/
    sweep.json  sweep.jsonl  table.md
    sheet.png  METHOD-SEED/       (of one prompt)
    NNNN-PROMPT/METHOD-SEED/      (of several)

sweep.jsonl grows by a row a run; of several rows of a run the last one counts. No torch here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from splatgen.config import from_dict, read_file, to_dict
from splatgen.runs import atomic, lock, run_folder
from splatgen.runs.machine import machine_name
from splatgen.runs.metrics import Metrics, read_metrics
from splatgen.runs.version import __version__
from splatgen.sweeps.plan import Plan, Task, line_up

FILE, ROWS, TABLE, SHEET = "sweep.json", "sweep.jsonl", "table.md", "sheet.png"
FINISHED = ("done", "diverged")  # run again, these would come out the same
TIMES = ("cost/seconds",)  # what differs from one time to the next


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run; a row of sweep.jsonl."""

    prompt: str
    method: str
    seed: int
    folder: str  # within the sweep's
    status: str  # as in run.json; waiting before its turn
    error: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)  # reward/..., holdout/..., truth/..., cost/...
    node: str = ""  # where it was made, if not here
    memory_mb: float | None = None  # of the process, at its most

    @classmethod
    def waiting(cls, task: Task) -> Outcome:
        return cls.of(task, status="waiting")

    @classmethod
    def of(cls, task: Task, **fields: Any) -> Outcome:
        return cls(prompt=task.prompt, method=task.method, seed=task.seed, folder=task.folder, **fields)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is known of a sweep so far."""

    folder: Path
    plan: Plan
    outcomes: tuple[Outcome, ...]  # in the plan's order
    seconds: float = 0.0  # that sessions took, all together

    @property
    def complete(self) -> bool:
        """Whether every run had its turn and none was stopped."""
        return not any(o.status in ("waiting", "running", "stopped") for o in self.outcomes)


def make_folder(out: Path, kind: str, prompts: Sequence[str]) -> Path:
    """A new folder for a sweep or a comparison."""
    out.mkdir(parents=True, exist_ok=True)
    name = run_folder.slug(prompts[0]) if len(prompts) == 1 else f"{len(prompts)}-prompts"
    return run_folder.new_folder(out, f"{kind}-{name}")


class Ledger:
    """Writes a sweep's folder. Within `with`, no other process does; BusyError where one is at it."""

    def __init__(self, folder: Path, plan: Plan, command: Sequence[str]) -> None:
        self.folder, self.plan = folder, plan
        self._command = list(command)
        self._exits = contextlib.ExitStack()
        self._rows: Metrics | None = None
        self._began = datetime.now(UTC)
        self.before = 0.0  # seconds of earlier sessions
        self.threads: int | None = None  # of every run, so that all come out the same to the bit

    def __enter__(self) -> Ledger:
        self._exits.enter_context(lock.held(self.folder))
        atomic.sweep(self.folder)
        self.before = _seconds(self.folder)
        saved = _saved(self.folder).get("threads")
        self.threads = saved if isinstance(saved, int) and saved > 0 else None
        self._rows = self._exits.enter_context(Metrics(self.folder / ROWS))
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def known(self) -> dict[str, Outcome]:
        """The last outcome of every run of the plan that had its turn, by folder."""
        planned = {task.folder for task in self.plan.tasks()}
        return {o.folder: o for o in read_rows(self.folder) if o.folder in planned}

    def add(self, outcome: Outcome) -> None:
        assert self._rows is not None, "within `with` only"
        self._rows.write(dataclasses.asdict(outcome))

    def seconds(self) -> float:
        """Since the first session began, without the pauses between them."""
        return self.before + (datetime.now(UTC) - self._began).total_seconds()

    def save(self, sweep: Sweep) -> None:
        """Write sweep.json; a sweep that goes on keeps its date and command."""
        before = _saved(self.folder)
        kept = {key: before[key] for key in ("command", "date") if key in before}
        content = {
            "version": __version__,
            "id": self.folder.name,
            "command": self._command,
            "date": self._began.isoformat(timespec="seconds"),
            "machine": machine_name(),
            "complete": sweep.complete,
            "seconds": round(self.seconds(), 1),
            "threads": self.threads,
            "prompts": list(self.plan.prompts),
            "seeds": list(self.plan.seeds),
            "methods": {name: to_dict(config) for name, config in self.plan.methods.items()},
        }
        atomic.write_json(self.folder / FILE, atomic.jsonable(content | kept))


def _saved(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    return read_file(path) if path.is_file() else {}


def _seconds(folder: Path) -> float:
    """That earlier sessions took."""
    value = _saved(folder).get("seconds")
    return float(value) if isinstance(value, int | float) else 0.0


def read_rows(folder: Path) -> list[Outcome]:
    """sweep.jsonl, if there is one yet; ValueError for rows that are none."""
    path = folder / ROWS
    if not path.is_file():
        return []
    try:
        rows = [Outcome(**row) for row in read_metrics(path)]
    except TypeError as error:
        raise ValueError(f"{path} holds a row that is none of a sweep ({error}): remove it") from error
    for row in rows:
        texts = (row.prompt, row.method, row.folder, row.status)
        numbers = row.numbers.values() if isinstance(row.numbers, dict) else [None]
        if not all(isinstance(t, str) for t in texts) or not all(isinstance(n, int | float) for n in numbers):
            raise ValueError(f"{path} holds a row that is none of a sweep ({row.folder!r}): remove it")
    return rows


def read_plan(folder: Path) -> Plan:
    """What a sweep's folder was planned for; ValueError where it holds none."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {FILE}: give a folder made by `splatgen sweep` or `compare`")
    table = read_file(path)
    try:
        methods = {name: from_dict(values) for name, values in table["methods"].items()}
        seeds, prompts = [int(seed) for seed in table["seeds"]], [str(p) for p in table["prompts"]]
        if not (methods and seeds and prompts):
            raise KeyError("empty")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no prompts, methods and seeds ({error}): start a new one") from error
    return line_up(
        prompts,
        methods,
        seeds,
        free={"prior", "prior_options", "reward", "holdout_reward", "weights", "budget", "negative"},
    )


def read_sweep(folder: Path) -> Sweep:
    """All that a folder tells of its sweep; ValueError where it is none."""
    plan = read_plan(folder)
    found = {o.folder: o for o in read_rows(folder)}
    outcomes = tuple(found.get(task.folder) or Outcome.waiting(task) for task in plan.tasks())
    return Sweep(folder=folder, plan=plan, outcomes=outcomes, seconds=_seconds(folder))
