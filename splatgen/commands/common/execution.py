"""What `generate` and `resume` share: signals, progress, and the result on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatgen.commands.common import cost
from splatgen.commands.common.checks import resolve
from splatgen.commands.common.progress import Reporter, duration
from splatgen.commands.common.signals import Stop, on_signals
from splatgen.config import Config, ImageConfig
from splatgen.config.stages import stages
from splatgen.models.budget import not_compiled
from splatgen.models.footprint import footprint
from splatgen.models.memory import keep_freed
from splatgen.priors import PRIORS
from splatgen.rewards import JUDGES
from splatgen.runs import run_folder

if TYPE_CHECKING:
    from splatgen.config import Method
    from splatgen.loop.loop import Progress, Result
    from splatgen.rasterizer.backends import Choice
    from splatgen.runs.run_folder import Run

RESULTS = ("splats", "turntable", "preview", "image")
Job = Callable[[Callable[["Progress"], None], Callable[[], bool]], "Result"]


def execute(job: Job, config: Method, *, as_json: bool, quiet: bool) -> int:
    """Run a job, print its result and return the exit code."""
    begin = time.monotonic()
    result, stop = carry_out(job, config, quiet=quiet)
    try:
        told(result, time.monotonic() - begin, quiet=quiet)
        text = json.dumps(summary(result)) if as_json else str(result.run.folder)
        print(text, flush=True)
    except OSError:
        if not stop.hung_up:
            raise
        mute()
    return stop.exit_code if result.status == "stopped" else 0


def told(result: Result, seconds: float, *, quiet: bool) -> None:
    """Say how a run ended, and after how long; quiet leaves out what was expected."""
    made = [Path(path).name for kind, path in files(result.run).items() if kind in RESULTS]
    if result.status == "stopped":
        command = shlex.join(["splatgen", "resume", str(result.run.folder)])
        kept = f": {', '.join(made)}" if made else ""
        line = f"splatgen: stopped after step {result.step}{kept}; continue with: {command}"
        print(line, file=sys.stderr)
    elif not quiet:
        about = run_folder.read(result.run)
        lost, scores = about.get("skipped"), about.get("rewards") or {}
        note = f" ({lost} steps were skipped: their numbers were not finite)" if lost else ""
        took = whole_time(seconds, result.run.wall_before)
        print(f"splatgen: done in {took}{note}: {', '.join(made)}", file=sys.stderr)
        final = [f"{name.partition('/')[2]} {score:.3f}" for name, score in scores.items()]
        if final:
            print(f"splatgen: scores at the end: {', '.join(final)}", file=sys.stderr)


def mute() -> None:
    """Send what is still to be written nowhere: the terminal that it was for is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # one that is no file
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def whole_time(seconds: float, before: float) -> str:
    """How long a run took, loading included; before are the seconds of its earlier processes."""
    if before < 1.0:
        return duration(seconds)
    return f"{duration(seconds)}, {duration(seconds + before)} with what was done before"


def carry_out(job: Job, config: Method, *, quiet: bool) -> tuple[Result, Stop]:
    """A job that takes (report, should_stop), with progress on stderr and signals that stop it."""
    choice = resolve(config)
    if choice.device == "cpu":
        keep_freed()
    if not quiet:
        slow = cost.without_gpu(config) if choice.device == "cpu" else ""
        for text in filter(None, (headline(config, choice), slow, *scores_explained(config))):
            print(f"splatgen: {text}", file=sys.stderr, flush=True)
    report = Reporter(sys.stderr, quiet=quiet)
    with on_signals() as stop:
        try:
            return job(report, stop.requested), stop
        finally:
            report.close()


def headline(config: Method, choice: Choice) -> str:
    """Which parts are at work, and why not others."""
    names = {"gsplat": "gsplat on CUDA", "triton": "Triton on CUDA, compiled at first in some seconds"}
    cpu = os.environ.get("SPLATGEN_CPU_BACKEND", "numba")
    rasterizer = names[choice.backend] if choice.backend else f"CPU rasterizer ({cpu})"
    if isinstance(config, ImageConfig):  # nothing is rendered
        rasterizer = choice.device.upper()
    chosen = f"{choice.note}: " if choice.note else ""
    if isinstance(config, Config) and config.stages:
        told = ", ".join(f"{s.name or s.number}: {described(s.config, choice)}" for s in stages(config))
        return f"{chosen}{rasterizer}, {told}, seed {config.seed}"
    return f"{chosen}{rasterizer}, {described(config, choice)}, seed {config.seed}"


def described(config: Method, choice: Choice) -> str:
    """Prior, memory and length of a run or a stage."""
    prior = "embedded toybox" if config.prior == "toybox" else config.prior
    reason = not_compiled(config, large=PRIORS[config.prior].large)
    plain = f" (not compiled: {reason})" if reason else ""
    taken = footprint(config) if choice.device == "cuda" else None
    memory = "" if taken is None else f", about {taken:.1f} GiB of GPU memory"
    return f"{prior} prior{plain}{memory}, {config.steps} steps"


def scores_explained(config: Method) -> list[str]:
    """What each score on the progress line tells, and whether it guides what it measures."""
    lines = []
    for name in (*config.rewards(), *config.holdout_reward):
        guides = config.preference != "none" and name not in config.holdout_reward
        role = "it guides, so it is no measure of quality" if guides else "it only watches"
        lines.append(f"score {name}: {JUDGES[name].about}; {role}")
    return lines


def files(run: Run) -> dict[str, str]:
    """The results that a run folder holds, by kind."""
    turntables = [run.turntable.with_suffix(suffix) for suffix in (".mp4", ".gif", ".png")]
    named = {
        "splats": run.splats_ply,
        "turntable": next((path for path in turntables if path.is_file()), None),
        "preview": run.preview,
        "image": run.folder / "image.png",
        "metrics": run.metrics,
        "config": run.config_json,
        "metadata": run.run_json,
    }
    return {kind: str(path) for kind, path in named.items() if path is not None and path.is_file()}


def summary(result: Result) -> dict[str, Any]:
    """What --json prints: the result, and what run.json says of it."""
    metadata = run_folder.read(result.run)
    return {
        "run": str(result.run.folder),
        "status": result.status,
        "step": result.step,
        "splats": metadata.get("splats"),
        "seconds": metadata.get("wall_time_s"),
        "rewards": metadata.get("rewards", {}),
        "files": files(result.run),
    }
