"""The loop of every run, 3D or 2D: steps, records, checkpoints, and the way back when a run is lost.

step -> record -> checkpoint
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from splatgen.config import ImageOptions, Method, OutputOptions
from splatgen.loop.live_control import LiveControl, Steerable
from splatgen.loop.out_of_memory import within_memory
from splatgen.loop.snapshot import Channel
from splatgen.loop.step import Models
from splatgen.models.memory import is_out_of_memory
from splatgen.runs import run_folder, sinks
from splatgen.runs.metrics import Metrics, rewind_metrics
from splatgen.runs.run_folder import Run

FIRST_CHECKPOINT_SECONDS = 3.0  # a run that dies early can still be resumed


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is."""

    step: int
    steps: int
    loss: float
    splats: int
    rewards: dict[str, float]
    seconds: float  # since the loop began


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended."""

    run: Run
    status: str  # done or stopped
    step: int


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long a run is and how often it writes."""

    steps: int
    log_every: int
    reward_every: int
    checkpoint_seconds: float
    patience: int
    log: sinks.Log = "none"


def loop_settings(config: Method, options: OutputOptions | ImageOptions) -> LoopSettings:
    """How long a run is, and how often it writes by its options."""
    return LoopSettings(
        steps=config.steps,
        log_every=options.log_every,
        reward_every=options.reward_every,
        checkpoint_seconds=options.checkpoint_seconds,
        patience=config.patience,
        log=options.log,
    )


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What a step leaves; tensors, so that CUDA is waited for only when they are read."""

    failed: Tensor  # [] 1 when the step was skipped
    loss: Tensor  # []
    splats: int
    rewards: dict[str, float] | None  # where they were asked for
    values: Callable[[], dict[str, float]]  # the rest of the row in metrics.jsonl
    seen: Any = None  # of the step, for snapshots


class Subject(Steerable, Protocol):
    """What a run changes step by step."""

    models: Models
    advice: str  # what to do about a run that is lost

    def advance(self, models: Models, *, scored: bool) -> StepRecord:
        """One step, which does not count itself; rewards are scored when asked for."""

    def clear(self) -> None:
        """Drop what a step that ran out of memory left behind."""

    def restore(self) -> None:
        """Go back to the last checkpoint; raises FileNotFoundError or ValueError when there is none."""

    def keep(self) -> None:
        """Write what there is to look at, which a run leaves however it ends."""

    def write_results(self) -> dict[str, float]:
        """Write what a finished run leaves, that included; returns its final rewards."""

    def totals(self) -> dict[str, Any]:
        """What run.json says of the end beside them."""


class Diverged(RuntimeError):
    """The optimisation has had no finite gradient for too long."""


class NothingCounted(Diverged):
    """No step of the run counted, so that there is nothing to look at."""


class _Lost(Exception):
    """Out of patience; says what was not finite, and what to do."""


# What was not finite, as rows of metrics name it, to what to do; the first counts, all else is the gradient's
BROKEN = {
    "skipped/render": "",
    "skipped/prediction": "the prior's predictions are not finite: try --prior.dtype float32, or its weights "
    "are damaged",
    "skipped/reward": "no reward is finite: try another with --reward",
}


def ignore(progress: Progress) -> None:
    """A report that goes nowhere."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def run_loop(
    subject: Subject,
    pace: LoopSettings,
    run: Run,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    channel: Channel | None = None,
) -> str:
    """Step until the end or until asked to stop; returns the status.

    After pace.patience steps in a row without a finite gradient the run goes back to its last checkpoint,
    once; the second time it raises Diverged.
    """
    while True:
        try:
            return _steps(subject, pace, run, report, should_stop, channel)
        except _Lost as lost:
            lost_at, gone_back = subject.state.step, "went_back_at_step" in run_folder.read(run)
            if not gone_back and _go_back(subject, run):
                continue
            with contextlib.suppress(OSError):  # skipped steps changed nothing: these are the last good ones
                subject.save()
            raise Diverged(
                f"no finite gradient in {pace.patience} steps up to step {lost_at}: {lost}; the last good "
                f"state is in {run.checkpoints}"
            ) from None


def _go_back(subject: Subject, run: Run) -> bool:
    lost_at = subject.state.step
    try:
        subject.restore()
    except (FileNotFoundError, ValueError):
        return False
    subject.state.failures = 0
    rewind_metrics(run.metrics, subject.state.step - 1)
    run_folder.update(run, went_back_at_step=lost_at)
    return True


def _steps(
    subject: Subject,
    pace: LoopSettings,
    run: Run,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    channel: Channel | None,
) -> str:
    watch = LiveControl(subject, run, pace.steps, channel)
    begin = saved = time.monotonic()
    interval = min(FIRST_CHECKPOINT_SECONDS, pace.checkpoint_seconds)
    rewards: dict[str, float] = {}
    first, why, skipped = subject.state.step, subject.advice, torch.zeros(())
    with Metrics(run.metrics) as metrics, sinks.opened(pace.log, run, first) as send:
        while subject.state.step < pace.steps and not should_stop() and not watch.before(should_stop):
            started, values = time.perf_counter(), None
            scored = subject.state.step % pace.reward_every == 0 or subject.state.step + 1 == pace.steps
            row = _advance(subject, run, scored=scored)
            rewards = row.rewards or rewards
            subject.state.failures = (subject.state.failures + row.failed) * row.failed
            if scored or subject.state.step % pace.log_every == 0:
                values = _values(subject.state.step, row, started)
                metrics.write(values)
                send(values)
                why = _advice(subject, values) if row.failed else why
                if int(subject.state.failures) >= pace.patience:
                    raise _Lost(why)
            skipped = skipped.to(row.failed) + row.failed
            subject.state.step += 1
            watch.after(row, values)
            now = time.monotonic()
            due = interval > 0 and now - saved > interval and subject.state.step < pace.steps
            if due and int(subject.state.failures) == 0:  # a run that is lost goes back to before it was
                subject.save()
                saved, interval = time.monotonic(), pace.checkpoint_seconds
            report(
                Progress(
                    step=subject.state.step,
                    steps=pace.steps,
                    loss=float(row.loss) if scored else float("nan"),
                    splats=row.splats,
                    rewards=rewards,
                    seconds=now - begin,
                )
            )
    subject.save()
    _check_counted(run, int(skipped), subject.state.step - first, why)
    status = "done" if subject.state.step >= pace.steps else "stopped"
    watch.end("writing its files")
    return status


def _advice(subject: Subject, values: dict[str, float]) -> str:
    """What to do about a step that was skipped."""
    return next((BROKEN[name] for name in BROKEN if name in values), "") or subject.advice


def _check_counted(run: Run, skipped: int, taken: int, why: str) -> None:
    """Note the steps that were skipped; NothingCounted where none of those taken counted."""
    if skipped:
        run_folder.update(run, skipped=skipped)
    if 0 < taken <= skipped:
        raise NothingCounted(f"none of {taken} steps counted: {why}")


def _advance(subject: Subject, run: Run, *, scored: bool) -> StepRecord:
    """One step, with half the batches when memory runs out; when that fails too, a checkpoint is left."""
    halved = subject.models.halved
    try:
        row, subject.models = within_memory(
            lambda models: subject.advance(models, scored=scored), subject.models, subject.clear
        )
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            subject.clear()
            with contextlib.suppress(OSError):  # a full disk must not hide what ended the run
                subject.save()
        raise
    if subject.models.halved and not halved:
        run_folder.update(run, halved_at_step=subject.state.step)
    return row


def _values(step: int, row: StepRecord, started: float) -> dict[str, float]:
    return {
        "step": step,
        "loss": float(row.loss),
        "skipped": float(row.failed),
        **row.values(),
        **(row.rewards or {}),
        "time/step_ms": round(1e3 * (time.perf_counter() - started), 3),
    }
