"""Several methods on one prompt, with the same cameras, times and noises, and what came out side by side.

<out>/<yyyymmdd-hhmmss>-compare-<slug>-<id>/
    comparison.json  sheet.png  METHOD-SEED/ (a run folder each)

Randomness is a function of seed, step and purpose (splatgen/runs/rng.py), so runs of one seed are pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch

from splatgen import formats
from splatgen.config import Config, read_file, to_dict
from splatgen.config.methods import ComparisonPlan
from splatgen.loop import lifecycle, object_run
from splatgen.loop.loop import Progress
from splatgen.loop.results import pictures
from splatgen.loop.step import Models, assemble, load_models
from splatgen.models.budget import LoadOptions
from splatgen.models.memory import is_lost_device
from splatgen.rewards import load_reward
from splatgen.runs import atomic, run_folder
from splatgen.runs.machine import machine_name
from splatgen.runs.metrics import read_metrics
from splatgen.runs.run_folder import Run
from splatgen.runs.statistics import summarise
from splatgen.runs.version import __version__
from splatgen.scene.cameras import orbit
from splatgen.scene.splats import Splats
from splatgen.worlds.toybox.evaluation import evaluate
from splatgen.worlds.toybox.grammar import parse

FILE, SHEET = "comparison.json", "sheet.png"
FINISHED = ("done", "diverged")  # run again, these would come out the same
MADE_WITH = ("device", "git", "python", "platform", "packages")  # of run.json
AZIMUTHS, ELEVATION = (0.0, 120.0, 240.0), 15.0  # of the sheet's views, degrees
SHEET_WIDTH = 3600  # pixels of pictures; more seeds make them smaller
LINE = 22  # pixels, of each of the two lines above them

Numbers = Callable[[Run], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Who is told what happens, and says when to stop."""

    begin: Callable[[str, int], Callable[[Progress], None]]  # (method, seed): what the run reports to
    end: Callable[[Outcome], None]
    should_stop: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method made with a seed."""

    method: str
    seed: int
    folder: str  # within the comparison's
    status: str  # as in run.json; waiting before its turn
    error: str | None = None
    numbers: dict[str, float] = field(default_factory=dict)  # reward/..., holdout/..., truth/..., cost/...


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is known of a comparison so far."""

    folder: Path
    plan: ComparisonPlan
    outcomes: tuple[Outcome, ...]

    @property
    def complete(self) -> bool:
        """Whether every run had its turn and none was stopped."""
        return not any(o.status in ("waiting", "running", "stopped") for o in self.outcomes)


def compare(
    plan: ComparisonPlan,
    *,
    out: Path,
    folder: Path | None = None,
    truth: bool,
    command: Sequence[str],
    watch: Callbacks,
) -> Comparison:
    """Run every method with every seed, in a new folder in `out` or, what is left of them, in `folder`.

    truth: the prompt is a caption of an embedded world, and results are compared with its exact pictures.
    A run that diverges or finds no memory doesn't stop the others; settings and files that can't be used do.
    """
    device = lifecycle.pick_device(plan.first)
    networks = functools.cache(lambda: load_models(plan.first, device))
    if folder is None:
        networks()  # what can't be loaded leaves no folder
        folder = make_folder(out, plan.first.prompt)
    else:
        atomic.sweep(folder)
    numbers = measuring(plan.first if truth else None)
    # all methods of a seed, then the next seed: what is there after a Ctrl-C can be compared
    tasks = [(method, seed) for seed in plan.seeds for method in plan.methods]
    known = {(o.method, o.seed): o for o in earlier(folder) if o.status in FINISHED}
    found = {task: known.get(task) or read_outcome(folder, *task, numbers) for task in tasks}
    save(Comparison(folder=folder, plan=plan, outcomes=tuple(found.values())), command)
    for task in tasks:
        if found[task].status in FINISHED:
            continue
        config, where = plan.config(*task), folder / run_name(*task)
        error = attempt(config, where, networks, command, watch.begin(*task), watch.should_stop)
        outcome = read_outcome(folder, *task, numbers)
        found[task] = dataclasses.replace(outcome, error=error)
        watch.end(found[task])
        save(Comparison(folder=folder, plan=plan, outcomes=tuple(found.values())), command)
        if watch.should_stop():
            break
    comparison = Comparison(folder=folder, plan=plan, outcomes=tuple(found.values()))
    write_sheet(comparison)
    return comparison


def make_folder(out: Path, prompt: str) -> Path:
    """A new folder for a comparison."""
    out.mkdir(parents=True, exist_ok=True)
    return run_folder.new_folder(out, f"compare-{run_folder.slug(prompt)}")


def run_name(method: str, seed: int) -> str:
    """The folder of a run within the comparison's."""
    return f"{run_folder.slug(method)}-{seed}"


def attempt(
    config: Config,
    folder: Path,
    networks: Callable[[], Models],
    command: Sequence[str],
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> str | None:
    """A run from its start or its last checkpoint; returns what went wrong in it, if anything did."""
    try:
        models = fresh(config, networks())
        if any(Run(folder=folder).checkpoints.glob("step-*")):
            object_run.resume(folder, command=command, models=models, report=report, should_stop=should_stop)
        else:
            if folder.exists():  # of an attempt that left no checkpoint
                shutil.rmtree(folder)
            object_run.generate(
                config,
                out=folder.parent,
                name=folder.name,
                command=command,
                models=models,
                report=report,
                should_stop=should_stop,
            )
    except (RuntimeError, MemoryError) as error:  # Diverged and torch's out of memory are RuntimeErrors
        if is_lost_device(error):
            raise  # no other run would find it
        text = f"{type(error).__name__}: {error}"
    else:
        return None
    torch.cuda.empty_cache()  # what the failed run held
    return text


def fresh(config: Config, networks: Models) -> Models:
    """Loaded networks with a score and a preference of their own, as these learn."""
    ensemble = dataclasses.replace(networks.ensemble, options=config.reward_options)
    return assemble(config, networks.prior, ensemble, networks.holdouts)


def examined(config: Config) -> Callable[[Splats], dict[str, float]]:
    """What compares splats with the exact pictures of a config's prompt, by the world of its prior."""
    if config.prior == "shelf":
        from splatgen.worlds.shelf import evaluation as shelf
        from splatgen.worlds.shelf import grammar

        watching = cast("shelf.Judge", load_reward("shelf-judge", LoadOptions()))
        wanted = grammar.parse(config.prompt)
        return lambda splats: shelf.evaluate(splats, wanted, watching).row()
    judge, caption = load_reward("toybox-judge", LoadOptions()), parse(config.prompt)
    return lambda splats: evaluate(splats, caption, judge).row()


def measuring(truth: Config | None) -> Numbers:
    """What reads the numbers of a finished run: rewards, costs and, where there is one, the truth."""
    compared = None if truth is None else examined(truth)

    def numbers(run: Run) -> dict[str, float]:
        data, rows = run_folder.read(run), read_metrics(run.metrics)
        found = dict(data["rewards"])
        if compared is not None:
            quality = compared(formats.load(run.splats_ply))
            found |= {f"truth/{name}": value for name, value in quality.items()}
        found["cost/model_calls"] = statistics.fmean(row["guidance/model_calls"] for row in rows)
        # the first step of the first run compiles and warms up, which is no cost of its method
        found["cost/seconds"] = (
            statistics.fmean(row["time/step_ms"] for row in rows[1:] or rows) * data["steps"] / 1e3
        )
        return found

    return numbers


def read_outcome(folder: Path, method: str, seed: int, numbers: Numbers) -> Outcome:
    """What a run's folder says of it."""
    name = run_name(method, seed)
    run = Run(folder=folder / name)
    if not run.run_json.is_file():
        return Outcome(method=method, seed=seed, folder=name, status="waiting")
    data = run_folder.read(run)
    try:
        return Outcome(
            method=method,
            seed=seed,
            folder=name,
            status=data["status"],
            error=data.get("error"),
            numbers=numbers(run) if data["status"] == "done" else {},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run.folder} is no run of this comparison ({error}): delete it") from error


def earlier(folder: Path) -> list[Outcome]:
    """What comparison.json holds, if there is one yet."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return [Outcome(**values) for values in read_file(path)["runs"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no list of runs ({error}): start a new comparison") from error


def values(comparison: Comparison) -> dict[str, dict[str, dict[int, float]]]:
    """What was measured, by method, name and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {method: {} for method in comparison.plan.methods}
    for outcome in comparison.outcomes:
        for name, value in outcome.numbers.items():
            found[outcome.method].setdefault(name, {})[outcome.seed] = value
    return found


def save(comparison: Comparison, command: Sequence[str]) -> None:
    """Write comparison.json; a comparison that goes on keeps its date and command."""
    path = comparison.folder / FILE
    before: dict[str, Any] = read_file(path) if path.is_file() else {}
    kept: dict[str, Any] = {key: before[key] for key in ("command", "date") if key in before}
    atomic.write_json(path, report(comparison, command) | kept)


def report(comparison: Comparison, command: Sequence[str]) -> dict[str, Any]:
    """Everything as JSON: settings, each run's numbers, the table, and what they were made with."""
    plan = comparison.plan
    folders = [comparison.folder / outcome.folder for outcome in comparison.outcomes]
    made = [run_folder.read(run) for f in folders if (run := Run(folder=f)).run_json.is_file()]
    table = {
        method: {name: dataclasses.asdict(measure) for name, measure in measures.items()}
        for method, measures in summarise(values(comparison)).items()
    }
    content: dict[str, Any] = {
        "version": __version__,
        "command": list(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_name(),
        **{key: value for data in made for key, value in data.items() if key in MADE_WITH},
        "prompt": plan.first.prompt,
        "complete": comparison.complete,
        "seeds": list(plan.seeds),
        "methods": {name: to_dict(config) for name, config in plan.methods.items()},
        "runs": [dataclasses.asdict(outcome) for outcome in comparison.outcomes],
        "table": table,
    }
    return atomic.jsonable(content)  # type: ignore[no-any-return]


def write_sheet(comparison: Comparison) -> None:
    """A row a method, the same views of every seed's object in a row, all with their names."""
    from PIL import Image, ImageDraw, ImageFont

    plan = comparison.plan
    columns = len(plan.seeds) * len(AZIMUTHS)
    side = max(32, min(plan.first.output.size, SHEET_WIDTH // columns))
    font = ImageFont.load_default(14)
    label = 12 + int(max(font.getlength(method) for method in plan.methods))
    sheet = Image.new("RGB", (label + columns * side, 2 * LINE + len(plan.methods) * side), "white")
    draw = ImageDraw.Draw(sheet)
    for i, seed in enumerate(plan.seeds):
        left = label + i * len(AZIMUTHS) * side
        draw.text((left + 4, 2), f"seed {seed}", "black", font)
        for j, degrees in enumerate(AZIMUTHS):
            draw.text((left + j * side + 4, LINE), f"{degrees:g}°" if degrees else "front", "grey", font)
    azimuth = torch.tensor(AZIMUTHS)
    cameras = orbit(azimuth, torch.full_like(azimuth, ELEVATION), size=side)
    for o in comparison.outcomes:
        left = label + list(plan.seeds).index(o.seed) * len(AZIMUTHS) * side
        top = 2 * LINE + list(plan.methods).index(o.method) * side
        draw.text((4, top + side // 2 - 8), o.method, "black", font)
        if o.status == "done":
            splats = formats.load(Run(folder=comparison.folder / o.folder).splats_ply)
            for j, picture in enumerate(pictures(splats, cameras)):
                sheet.paste(Image.fromarray(picture), (left + j * side, top))
        else:
            draw.text((left + 4, top + side // 2 - 8), o.status, "red", font)
        draw.line((left - 1, LINE, left - 1, sheet.height), "lightgrey")
    with atomic.replacing(comparison.folder / SHEET) as temporary:
        sheet.save(temporary, format="PNG")
