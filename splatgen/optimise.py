"""The loop and the runs: prompt to splats. The only file that knows the order of things.

    step -> record -> checkpoint, and at the end the results

Shapes: B views, N splats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from splatgen import __version__, atomic, editing, runs
from splatgen.cameras import turntable
from splatgen.config import Config, ConfigError, ImageConfig, from_dict, read_file, to_dict
from splatgen.memory import is_out_of_memory
from splatgen.metrics import Metrics, rewind_metrics
from splatgen.render import render
from splatgen.results import write_results
from splatgen.runs import Run
from splatgen.scene import Scene, initial_splats, load_scene, new_scene, save_scene
from splatgen.splats import Splats
from splatgen.step import Models, Seen, advance, load_models, reward_prompts, score_rewards
from splatgen.validation import validate

FIRST_CHECKPOINT_SECONDS = 3.0  # a run that dies early can still be resumed
PATIENCE = 20  # steps in a row without a finite gradient before a run counts as diverged


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


class Diverged(RuntimeError):
    """The optimisation has had no finite gradient for too long."""


def pick_device(name: str) -> str:
    """auto, cpu or cuda to a torch device; RuntimeError when CUDA is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is usable here: run with --device cpu, or see `splatgen doctor`")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def ignore(progress: Progress) -> None:
    """A report that goes nowhere."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def run_loop(
    config: Config,
    models: Models,
    scene: Scene,
    run: Run,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> str:
    """Step until the end or until asked to stop; returns the status."""
    begin = saved = time.monotonic()
    interval = min(FIRST_CHECKPOINT_SECONDS, config.output.checkpoint_seconds)
    rewards: dict[str, float] = {}
    with Metrics(run.metrics) as metrics:
        while scene.step < config.steps and not should_stop():
            started = time.perf_counter()
            seen = advance(config, models, scene)
            last = scene.step + 1 == config.steps
            scored = scene.step % config.output.reward_every == 0 or last
            if scored:
                rewards = score_rewards(models, seen.picture, seen.prompts)
            if scored or scene.step % config.output.log_every == 0:
                _record(metrics, scene, seen, rewards if scored else {}, started)
                _check_progress(models, scene, seen, run)
            scene.step += 1
            now = time.monotonic()
            if interval > 0 and now - saved > interval and not last:
                save_scene(run.checkpoints, scene, models.learned())
                saved, interval = time.monotonic(), config.output.checkpoint_seconds
            report(
                Progress(
                    step=scene.step,
                    steps=config.steps,
                    loss=float(seen.loss) if scored else float("nan"),
                    splats=seen.splats,
                    rewards=rewards,
                    seconds=now - begin,
                )
            )
    save_scene(run.checkpoints, scene, models.learned())
    return "done" if scene.step >= config.steps else "stopped"


def _record(metrics: Metrics, scene: Scene, seen: Seen, rewards: dict[str, float], started: float) -> None:
    row = {
        "step": scene.step,
        "loss": float(seen.loss),
        "t_max": float(seen.t_max),
        "splats/count": seen.splats,
        "guidance/model_calls": seen.model_calls,
        "skipped": float(seen.failed),
        **seen.metrics,
        **rewards,
        **{f"time/{name}_ms": round(value, 3) for name, value in seen.ms.items()},
        "time/step_ms": round(1e3 * (time.perf_counter() - started), 3),
    }
    metrics.write(row)


def _check_progress(models: Models, scene: Scene, seen: Seen, run: Run) -> None:
    scene.failures = scene.failures + 1 if float(seen.failed) else 0
    if scene.failures >= PATIENCE:
        save_scene(run.checkpoints, scene, models.learned())  # skipped steps left the splats as they were
        raise Diverged(
            f"no finite gradient in {PATIENCE} recorded steps up to step {scene.step}: lower --lr.means or "
            f"--guidance.scale; the last good splats are in {run.checkpoints}"
        )


def generate(
    config: Config,
    *,
    out: Path,
    command: Sequence[str],
    name: str | None = None,
    models: Models | None = None,
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
) -> Result:
    """Optimise a prompt from nothing and write a run folder in `out`.

    name is the folder's; models are those of this config, where they are loaded already.
    """
    validate(config)
    if config.source:
        raise ConfigError(f"source is {config.source!r}: a run from nothing has none, `splatgen edit` does")
    device = pick_device(config.device)
    models = models or load_models(config, device)
    run = create_run(config, out, command, device, name)
    scene = new_scene(config, initial_splats(config), device)
    return _finish(config, models, scene, run, report, should_stop)


def edit(
    config: Config,
    splats: Splats,
    *,
    out: Path,
    command: Sequence[str],
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
) -> Result:
    """Change splats that show config.source into config.prompt and write a run folder in `out`.

    Raises ValueError for splats that show nothing, and for settings that an edit cannot use.
    """
    editing.check_source(splats, "the source", config.edit.fit)
    config = validate(editing.adapted(config, splats))
    editing.check_settings(config)
    device = pick_device(config.device)
    models = load_models(config, device)
    run = create_run(config, out, command, device)
    try:
        editing.save_source(run, splats)
        source = _source(config, run, device)
    except BaseException as error:
        record_failure(run, error, 0)
        raise
    scene = new_scene(config, source, device)
    scene.source = source
    return _finish(config, models, scene, run, report, should_stop)


def create_run(
    config: Config | ImageConfig, out: Path, command: Sequence[str], device: str, name: str | None = None
) -> Run:
    """The folder of a new run in `out`, with its settings and what it is made with."""
    return runs.create(
        out,
        config.prompt,
        command=command,
        config=to_dict(config),
        seed=config.seed,
        device=device_name(device),
        models={
            f"prior/{config.prior}": f"splatgen {__version__}",
            **{f"reward/{name}": f"splatgen {__version__}" for name in config.rewards()},
        },
        name=name,
    )


def _source(config: Config, run: Run, device: str) -> Splats:
    """What an edit starts from, before the cameras; read from the run, so that a resume sees the same."""
    original = editing.load_source(run)
    return editing.placement(original, config.edit.fit).place(original).to(device)


def resume(
    folder: Path,
    *,
    steps: int | None = None,
    command: Sequence[str],
    models: Models | None = None,
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
) -> Result:
    """Continue a run from its latest checkpoint; `steps` may raise its length (schedules stretch with it).

    models are those of the run's config, where they are loaded already.
    """
    run = runs.open_run(folder)
    saved = from_dict(read_file(run.config_json))
    config = validate(from_dict({**to_dict(saved), "steps": saved.steps if steps is None else steps}))
    device = pick_device(config.device)
    scene, learned = load_scene(config, run.checkpoints, device)
    if config.source:
        scene.source = _source(config, run, device)
    if steps is not None and steps < scene.step:
        raise ValueError(
            f"--steps is {steps}, but the run is already at step {scene.step}: give a larger number"
        )
    models = models or load_models(config, device)
    models.relearn(learned)
    if config != saved:
        atomic.write_json(run.config_json, to_dict(config))
    rewind_metrics(run.metrics, scene.step - 1)
    runs.update(run, status="running", resumed=list(command), error=None)
    return _finish(config, models, scene, run, report, should_stop)


def _finish(
    config: Config,
    models: Models,
    scene: Scene,
    run: Run,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> Result:
    try:
        status = run_loop(config, models, scene, run, report, should_stop)
        rewards = {}
        if status == "done":
            _write(config, run, scene)
            rewards = score_final(config, models, scene)
    except BaseException as error:
        record_failure(run, error, scene.step)
        raise
    runs.update(run, status=status, steps=scene.step, splats=len(scene.params["means"]), rewards=rewards)
    return Result(run=run, status=status, step=scene.step)


def _write(config: Config, run: Run, scene: Scene) -> None:
    splats = scene.splats.detach()
    if scene.source is None:
        write_results(run, splats, config.output)
    else:
        editing.write_results(run, splats, config.output, config.edit.fit)


def score_final(config: Config, models: Models, scene: Scene) -> dict[str, float]:
    """Rewards from eight fixed views on grey, as far away as the run's own."""
    v = config.views
    distance, fov = sum(v.distance) / 2.0, sum(v.fov) / 2.0
    cameras = turntable(8, size=v.size[-1], distance=distance, fov=fov).to(scene.params["means"].device)
    with torch.no_grad():
        picture = render(scene.splats, cameras, torch.full((3,), 0.5)).rgb
    return score_rewards(models, picture, reward_prompts(config, cameras))


def record_failure(run: Run, error: BaseException, step: int) -> None:
    """Say in run.json how a run ended, and in the error where it is."""
    runs.update(run, status=_status(error), error=f"{type(error).__name__}: {error}"[:500], steps=step)
    error.add_note(f"the run is in {run.folder}")


def _status(error: BaseException) -> str:
    if isinstance(error, Diverged):
        return "diverged"
    if is_out_of_memory(error):
        return "oom"
    return "stopped" if isinstance(error, KeyboardInterrupt) else "failed"


def device_name(device: str) -> str:
    """The device as run.json names it."""
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
