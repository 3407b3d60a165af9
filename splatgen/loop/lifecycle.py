"""How every run begins, goes on after a stop, and ends: its folder, its loop, its results, its failures."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from splatgen.config import Config, ImageConfig, to_dict
from splatgen.loop.live_control import show_end
from splatgen.loop.loop import Diverged, LoopSettings, NothingCounted, Progress, Result, Subject, run_loop
from splatgen.loop.snapshot import Channel
from splatgen.loop.step import Models
from splatgen.loop.tuning import tuned
from splatgen.models.memory import is_out_of_memory
from splatgen.rasterizer.backends import choose
from splatgen.runs import atomic, run_folder
from splatgen.runs.metrics import rewind_metrics
from splatgen.runs.run_folder import Run

_log = logging.getLogger(__name__)


def pick_device(config: Config | ImageConfig) -> str:
    """The torch device of a run; BackendError when CUDA or a rasterizer is asked for and missing."""
    if isinstance(config, ImageConfig):  # nothing is rendered
        return choose(config.device, renders=False).device
    return choose(config.device, config.render.backend).device


def device_name(device: str) -> str:
    """The device as run.json names it."""
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def create_run(
    config: Config | ImageConfig,
    models: Models,
    out: Path,
    command: Sequence[str],
    device: str,
    name: str | None = None,
    *,
    kind: str | None = None,
    fill: Callable[[Run], object] | None = None,
) -> Run:
    """The folder of a new run in `out`, with its settings, what it is made with, and what `fill` writes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # another run may have been in this process
    return run_folder.create(
        out,
        config.prompt,
        command=command,
        config=to_dict(config),
        seed=config.seed,
        device=device_name(device),
        models=models.sources(),
        name=name,
        kind=kind,
        fill=fill,
    )


def check_steps(steps: int, done: int) -> None:
    """Raise ValueError for a length that a run is past already."""
    if steps < done:
        raise ValueError(f"--steps is {steps}, but the run is already at step {done}: give a larger number")


def begins_again(run: Run) -> None:
    """Say that a run has lost what it had, if anything: it never came to a checkpoint."""
    _log.warning("%s has no checkpoint: it begins again at step 0", run.folder)


def reopen(
    run: Run, config: Config | ImageConfig, saved: Config | ImageConfig, step: int, command: Sequence[str]
) -> None:
    """Make a folder ready to go on from a step: its settings, its metrics and its status."""
    if config != saved:
        atomic.write_json(run.config_json, to_dict(config))
    rewind_metrics(run.metrics, step - 1)
    run_folder.update(run, status="running", resumed=list(command), error=None)


def carry_out(
    subject: Subject,
    settings: LoopSettings,
    run: Run,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    channel: Channel | None = None,
) -> Result:
    """The loop, and its results: everything when it is done, else what there is to look at.

    What ends a run early is in its run.json.
    """
    rewards: dict[str, float] = {}
    try:
        with tuned():
            status = run_loop(subject, settings, run, report, should_stop, channel)
            if status == "done":
                rewards = subject.write_results()
            else:
                subject.keep()
    except BaseException as error:
        record_failure(run, error, subject.state.step, subject.totals())
        _keep_last(subject, error)
        tell_end(subject, run, settings, channel, _status(error), should_stop(), f"{error}")
        raise
    step = subject.state.step
    run_folder.update(run, status=status, steps=step, rewards=rewards, **subject.totals())
    tell_end(subject, run, settings, channel, status, should_stop())
    return Result(run=run, status=status, step=step)


def _keep_last(subject: Subject, error: BaseException) -> None:
    """What there is to look at of a run that failed: skipped and broken steps changed nothing.

    Not when the disk has failed or nothing was made, nor for somebody who does not want to wait.
    """
    if not isinstance(error, Exception) or isinstance(error, (OSError, NothingCounted)):
        return
    try:
        subject.clear()
        subject.keep()
    except Exception as second:  # noqa: BLE001 - whatever it is, it must not hide what ended the run
        _log.warning("no picture of the last good step: %s; its checkpoint has it", second)


def tell_end(
    subject: Subject,
    run: Run,
    settings: LoopSettings,
    channel: Channel | None,
    status: str,
    asked: bool,
    why: str = "",
) -> None:
    """Show whoever watches how a run has ended, where it is, and how to see it again."""
    if channel is None:
        return
    channel.folder, channel.asked = run.folder, asked
    if why:
        channel.messages.put(why)
    again = shlex.join(["splatgen", "view", str(run.folder)])
    channel.messages.put(f"{status}: {run.folder}; to see it again: {again}")
    show_end(subject, channel, settings.steps, status)


def record_failure(run: Run, error: BaseException, step: int, totals: dict[str, Any] | None = None) -> None:
    """Say in run.json how a run ended, and in the error where it is."""
    error.add_note(f"the run is in {run.folder}")
    message = f"{type(error).__name__}: {error}"[:500]
    with contextlib.suppress(OSError, ValueError):  # a full disk, say: it must not hide the error itself
        run_folder.update(run, status=_status(error), error=message, steps=step, **(totals or {}))


def _status(error: BaseException) -> str:
    if isinstance(error, Diverged):
        return "diverged"
    if is_out_of_memory(error):
        return "oom"
    return "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
