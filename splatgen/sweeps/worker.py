"""One run of a sweep after the other, in a process that keeps their networks.

models (kept or loaded) -> run from its start or last checkpoint -> what came of it, measured
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch

from splatgen import formats
from splatgen.config import Config
from splatgen.loop import object_run
from splatgen.loop.loop import Progress, ignore, never
from splatgen.loop.resident_models import ResidentModels
from splatgen.models.budget import LoadOptions
from splatgen.models.memory import is_lost_device, is_out_of_memory
from splatgen.rewards import Reward, load_reward
from splatgen.runs import lock, run_folder
from splatgen.runs.metrics import read_metrics
from splatgen.runs.run_folder import Run
from splatgen.scene.splats import Splats
from splatgen.sweeps.ledger import Outcome
from splatgen.sweeps.plan import Task
from splatgen.worlds.toybox import evaluation as toybox
from splatgen.worlds.toybox.grammar import parse

LEFT_BEHIND = 60.0
TRIES = 2  # of a run that fails for no reason of its own


class Worker:
    """Makes runs in the folders of sweeps. Loading raises what loaders do; what a run raises is its outcome,
    but for a full disk and a GPU that is lost, which no other run would survive either.

    truth: whether results are compared with the exact pictures of an embedded world.
    """

    def __init__(self, command: Sequence[str], *, truth: bool) -> None:
        self._command, self._truth = list(command), truth
        self._resident = ResidentModels()
        self._judges: dict[str, Reward] = {}

    def load(self, config: Config) -> None:
        """The networks of a config, ahead of its run."""
        if config.init != "shap-e":
            self._resident.models(config)

    def make(
        self,
        task: Task,
        root: Path,
        report: Callable[[Progress], None] = ignore,
        should_stop: Callable[[], bool] = never,
    ) -> Outcome:
        """A run to its end, from where it was, and what it came to."""
        folder = root / task.folder
        error = None
        wait_until_free(folder)
        if not _is_done(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            error = self._attempt(task.config, folder, report, should_stop)
        return self._outcome(task, folder, error)

    def _attempt(
        self,
        config: Config,
        folder: Path,
        report: Callable[[Progress], None],
        should_stop: Callable[[], bool],
    ) -> BaseException | None:
        """A run from its start or its last checkpoint; returns what went wrong in it, if anything did."""
        if config.init == "shap-e":  # it needs the room, and comes before the models
            self._resident.clear()
        models = None if config.init == "shap-e" else self._resident.models(config)
        try:
            if any(Run(folder=folder).checkpoints.glob("step-*")):
                object_run.resume(
                    folder, command=self._command, models=models, report=report, should_stop=should_stop
                )
            else:
                if folder.exists():  # of an attempt that left no checkpoint
                    shutil.rmtree(folder)
                object_run.generate(
                    config, out=folder.parent, name=folder.name, command=self._command, models=models,
                    report=report, should_stop=should_stop,
                )  # fmt: skip
        except OSError:
            raise
        except Exception as error:
            if is_lost_device(error):
                raise
            kept = error.with_traceback(None)  # whose frames hold tensors
        else:
            return None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what the failed run held
        return kept

    def _outcome(self, task: Task, folder: Path, error: BaseException | None) -> Outcome:
        """What a run's folder says of it, and what was raised."""
        run = Run(folder=folder)
        said = None if error is None else f"{type(error).__name__}: {error}"
        if error is not None and not run.run_json.is_file():
            return Outcome.of(task, status="oom" if is_out_of_memory(error) else "failed", error=said)
        data = run_folder.read(run)
        try:
            return Outcome.of(
                task,
                status="failed" if error is not None and data["status"] == "running" else data["status"],
                error=said or data.get("error"),
                numbers=self._numbers(task.config, run) if data["status"] == "done" else {},
                memory_mb=data.get("peak_memory_mb"),
            )
        except (KeyError, TypeError) as problem:
            raise ValueError(f"{folder} is no run of this sweep ({problem}): delete it") from problem

    def _numbers(self, config: Config, run: Run) -> dict[str, float]:
        """Rewards, costs and, where there is one, the truth of a finished run."""
        data, rows = run_folder.read(run), read_metrics(run.metrics)
        found: dict[str, float] = dict(data["rewards"])
        if self._truth:
            splats = formats.load(run.splats_ply)
            found |= {f"truth/{name}": value for name, value in self.examined(config, splats).items()}
        found["cost/model_calls"] = statistics.fmean(row["guidance/model_calls"] for row in rows)
        # the first step of the first run compiles and warms up, which is no cost of its method
        steps = [row["time/step_ms"] for row in rows[1:] or rows]
        found["cost/seconds"] = statistics.fmean(steps) * data["steps"] / 1e3
        return found

    def examined(self, config: Config, splats: Splats) -> dict[str, float]:
        """Splats held against the exact pictures of a config's prompt, by the world of its prior."""
        if config.prior == "shelf":
            from splatgen.worlds.shelf import evaluation as shelf
            from splatgen.worlds.shelf import grammar

            judge = cast("shelf.Judge", self._judge("shelf-judge"))
            return shelf.evaluate(splats, grammar.parse(config.prompt), judge).row()
        return toybox.evaluate(splats, parse(config.prompt), self._judge("toybox-judge")).row()

    def _judge(self, name: str) -> Reward:
        if name not in self._judges:
            self._judges[name] = load_reward(name, LoadOptions())
        return self._judges[name]


def wait_until_free(folder: Path) -> None:
    """Until nobody works in a run's folder, or LEFT_BEHIND seconds: a driver that died takes its hands with
    it, but not at once."""
    end = time.monotonic() + LEFT_BEHIND
    while time.monotonic() < end and lock.holder(folder) is not None:
        time.sleep(0.2)


def _is_done(folder: Path) -> bool:
    """Whether a run came to its end already: its process may have died before it said so."""
    run = Run(folder=folder)
    return (
        run.run_json.is_file() and run_folder.read(run).get("status") == "done" and run.splats_ply.is_file()
    )


def tried(make: Callable[[], Outcome]) -> Outcome:
    """A run, and once more where it failed for no reason that lies in its method."""
    outcome = make()
    for _ in range(TRIES - 1):
        if outcome.status not in ("failed", "oom"):
            break
        outcome = make()
    return outcome
