"""Runs of objects: prompt to splats, from nothing, from other splats, or from a checkpoint.

    models -> folder -> loop -> results

Shapes: B views, N splats.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from splatgen import __version__
from splatgen.config import Config, ConfigError, ImageConfig, from_dict, read_file, to_dict
from splatgen.config.validation import validate
from splatgen.loop import object_edit
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.loop import Diverged, Progress, Result, StepRecord, ignore, loop_settings, never, run_loop
from splatgen.loop.object_snapshots import ply, shown, steered, unsteered
from splatgen.loop.results import write_results
from splatgen.loop.snapshot import Channel, ViewRequest
from splatgen.loop.step import Models, advance, load_models, reward_prompts, score_rewards
from splatgen.models.memory import is_out_of_memory
from splatgen.priors import load_options_for
from splatgen.render import render
from splatgen.runs import atomic, run_folder, steering
from splatgen.runs.metrics import rewind_metrics
from splatgen.runs.run_folder import Run
from splatgen.scene.cameras import turntable
from splatgen.scene.parameters import Scene, load_scene, new_scene, save_scene
from splatgen.scene.placement import placement
from splatgen.scene.splats import Splats


def pick_device(name: str) -> str:
    """auto, cpu or cuda to a torch device; RuntimeError when CUDA is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is usable here: run with --device cpu, or see `splatgen doctor`")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


@dataclass(kw_only=True)
class ObjectRun:
    """What a 3D run changes: a scene, with the models that change it."""

    config: Config
    models: Models
    scene: Scene
    run: Run
    base: Config = field(init=False)  # before a user changed anything
    advice: str = "lower --lr.means or --guidance.scale"

    def __post_init__(self) -> None:
        self.base = self.config

    @property
    def state(self) -> Scene:
        return self.scene

    def advance(self, models: Models, *, scored: bool) -> StepRecord:
        seen = advance(self.config, models, self.scene)
        rewards = score_rewards(models, seen.picture, seen.prompts) if scored else None
        return StepRecord(
            failed=seen.failed,
            loss=seen.loss,
            splats=seen.splats,
            rewards=rewards,
            values=seen.values,
            seen=seen,
        )

    def steer(self, setting: str, value: float) -> None:
        self.config, self.models = steered(self.base, self.config, self.models, setting, value)

    def file(self) -> bytes:
        return ply(
            self.scene.splats.detach(), [f"splatgen {__version__} {self.run.id} step {self.scene.step}"]
        )

    def snapshot(self, row: StepRecord | None, look: ViewRequest | None) -> dict[str, Any]:
        return shown(self.scene, self.models, None if row is None else row.seen, look)

    def clear(self) -> None:
        self.scene.clear()

    def save(self) -> None:
        save_scene(self.run.checkpoints, self.scene, self.models.learned())

    def restore(self) -> None:
        device = str(self.scene.params["means"].device)
        scene, learned = load_scene(self.config, self.run.checkpoints, device)
        self.config, self.models = self.base, unsteered(self.base, self.models)
        self.models.relearn(learned)
        scene.source = self.scene.source
        self.scene = scene


def generate(
    config: Config,
    *,
    out: Path,
    command: Sequence[str],
    name: str | None = None,
    models: Models | None = None,
    changes: Path | None = None,
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
    channel: Channel | None = None,
) -> Result:
    """Optimise a prompt from nothing and write a run folder in `out`.

    name is the folder's; models are those of this config, where they are loaded already; changes is the
    steering.jsonl of another run, to be made again; channel leads to a viewer.
    """
    validate(config)
    if config.source:
        raise ConfigError(f"source is {config.source!r}: a run from nothing has none, `splatgen edit` does")
    device = pick_device(config.device)
    splats = starting_splats(
        config, load_options_for(config, device)
    )  # before the models: Shap-E needs the room
    models = models or load_models(config, device)
    steered = [] if changes is None else steering.read(changes)

    def fill(run: Run) -> None:
        if steered:
            steering.write(run.folder / steering.FILE, steered)

    run = create_run(config, models, out, command, device, name, fill=fill)
    scene = new_scene(config, splats, device)
    return _finish(config, models, scene, run, report, should_stop, channel)


def edit(
    config: Config,
    splats: Splats,
    *,
    out: Path,
    command: Sequence[str],
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
    channel: Channel | None = None,
) -> Result:
    """Change splats that show config.source into config.prompt and write a run folder in `out`.

    Raises ValueError for splats that show nothing, and for settings that an edit cannot use.
    """
    object_edit.check_source(splats, "the source", config.edit.fit)
    config = validate(object_edit.adapted(config, splats))
    object_edit.check_settings(config)
    device = pick_device(config.device)
    models = load_models(config, device)
    run = create_run(
        config, models, out, command, device, fill=lambda run: object_edit.save_source(run, splats)
    )
    try:
        source = _source(config, run, device)
    except BaseException as error:
        record_failure(run, error, 0)
        raise
    scene = new_scene(config, source, device)
    scene.source = source
    return _finish(config, models, scene, run, report, should_stop, channel)


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


def _source(config: Config, run: Run, device: str) -> Splats:
    """What an edit starts from, before the cameras; read from the run, so that a resume sees the same."""
    original = object_edit.load_source(run)
    return placement(original, config.edit.fit).place(original).to(device)


def resume(
    folder: Path,
    *,
    steps: int | None = None,
    command: Sequence[str],
    models: Models | None = None,
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
    channel: Channel | None = None,
) -> Result:
    """Continue a run from its latest checkpoint, or from its first step when there is none yet.

    steps may raise its length (schedules stretch with it); models are those of the run's config, where they
    are loaded already.
    """
    run = run_folder.open_run(folder)
    saved = from_dict(read_file(run.config_json))
    config = validate(from_dict({**to_dict(saved), "steps": saved.steps if steps is None else steps}))
    device = pick_device(config.device)
    scene, learned = _last_scene(config, run, device)
    if steps is not None and steps < scene.step:
        raise ValueError(
            f"--steps is {steps}, but the run is already at step {scene.step}: give a larger number"
        )
    models = models or load_models(config, device)
    if learned is not None:
        models.relearn(learned)
    if config != saved:
        atomic.write_json(run.config_json, to_dict(config))
    rewind_metrics(run.metrics, scene.step - 1)
    run_folder.update(run, status="running", resumed=list(command), error=None)
    return _finish(config, models, scene, run, report, should_stop, channel)


def _last_scene(config: Config, run: Run, device: str) -> tuple[Scene, dict[str, Any] | None]:
    """Where a run was, and what its methods had learned; None for a run that has no checkpoint yet."""
    source = _source(config, run, device) if config.source else None
    try:
        scene, learned = load_scene(config, run.checkpoints, device)
    except FileNotFoundError:
        start = source or starting_splats(config, load_options_for(config, device))
        scene, learned = new_scene(config, start, device), None
    scene.source = source
    return scene, learned


def _finish(
    config: Config,
    models: Models,
    scene: Scene,
    run: Run,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    channel: Channel | None,
) -> Result:
    subject = ObjectRun(config=config, models=models, scene=scene, run=run)
    try:
        status = run_loop(subject, loop_settings(config, config.output), run, report, should_stop, channel)
        rewards = {}
        if status == "done":
            _write(config, run, subject.scene)
            rewards = score_final(config, subject.models, subject.scene)
    except BaseException as error:
        record_failure(run, error, subject.state.step)
        raise
    scene = subject.scene
    run_folder.update(
        run, status=status, steps=scene.step, splats=len(scene.params["means"]), rewards=rewards
    )
    return Result(run=run, status=status, step=scene.step)


def _write(config: Config, run: Run, scene: Scene) -> None:
    splats = scene.splats.detach()
    if scene.source is None:
        write_results(run, splats, config.output)
    else:
        object_edit.write_results(run, splats, config.output, config.edit.fit)


def score_final(config: Config, models: Models, scene: Scene) -> dict[str, float]:
    """Rewards from eight fixed views on grey, as far away as the run's own."""
    v = config.views
    distance, fov = sum(v.distance) / 2.0, sum(v.fov) / 2.0
    if v.relative:
        distance /= math.tan(math.radians(fov) / 2.0)
    cameras = turntable(8, size=v.size[-1], distance=distance, fov=fov).to(scene.params["means"].device)
    with torch.no_grad():
        picture = render(scene.splats, cameras, torch.full((3,), 0.5)).rgb
    return score_rewards(models, picture, reward_prompts(config, cameras))


def record_failure(run: Run, error: BaseException, step: int) -> None:
    """Say in run.json how a run ended, and in the error where it is."""
    error.add_note(f"the run is in {run.folder}")
    with contextlib.suppress(OSError, ValueError):  # a full disk, say: it must not hide the error itself
        run_folder.update(
            run, status=_status(error), error=f"{type(error).__name__}: {error}"[:500], steps=step
        )


def _status(error: BaseException) -> str:
    if isinstance(error, Diverged):
        return "diverged"
    if is_out_of_memory(error):
        return "oom"
    return "stopped" if isinstance(error, KeyboardInterrupt) else "failed"


def device_name(device: str) -> str:
    """The device as run.json names it."""
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
