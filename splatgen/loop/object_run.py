"""Runs of objects: prompt to splats, from nothing, from other splats, or from a checkpoint.

    models -> folder -> loop -> results

Shapes: B views, N splats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from splatgen.config import Config, ConfigError, from_dict, read_file
from splatgen.config.stages import Stage, at, lengthened, stages
from splatgen.config.validation import validate
from splatgen.loop import kept, object_edit, refining
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.lifecycle import (
    begins_again,
    carry_out,
    check_steps,
    create_run,
    pick_device,
    record_failure,
    reopen,
)
from splatgen.loop.loop import Progress, Result, StepRecord, ignore, loop_settings, never
from splatgen.loop.object_snapshots import ply, shown, steered, unsteered
from splatgen.loop.read_ahead import ReadAhead
from splatgen.loop.resident_models import ResidentModels
from splatgen.loop.results import write_film
from splatgen.loop.snapshot import Channel, ViewRequest
from splatgen.loop.stage_change import described, move_on, moved_on, next_stage
from splatgen.loop.step import Models, advance, load_models, reward_prompts, score_rewards
from splatgen.priors import load_options_for
from splatgen.rasterizer import render
from splatgen.runs import lock, run_folder, steering
from splatgen.runs.run_folder import Run
from splatgen.runs.version import __version__
from splatgen.scene.cameras import turntable
from splatgen.scene.parameters import Scene, load_scene, new_scene, save_scene
from splatgen.scene.placement import placement
from splatgen.scene.splats import Splats

Load = Callable[[Config], Models]


@dataclass(kw_only=True)
class ObjectRun:
    """What a 3D run changes: a scene, with the models that change it, stage after stage."""

    whole: Config
    models: Models  # of the scene's stage
    scene: Scene
    run: Run
    load: Load  # the models of another stage
    advice: str = "lower --lr.means or --guidance.scale"
    config: Config = field(init=False)  # of the stage, as it is steered
    base: Config = field(init=False)  # before a user changed anything
    ahead: ReadAhead = field(default_factory=ReadAhead)

    def __post_init__(self) -> None:
        self.stages = stages(self.whole)
        self.config = self.base = self.stage.config
        self._tell()

    @property
    def state(self) -> Scene:
        return self.scene

    @property
    def stage(self) -> Stage:
        return at(self.stages, self.scene.begin)

    @property
    def begun(self) -> int:
        return self.scene.begin

    def prepare(self) -> bool:
        """Where a stage has come to its end, the next one begins."""
        following = next_stage(self.stages, self.scene)
        if following is None:
            self.ahead.look(self.stages, self.scene)
            return False
        self.save()  # models that can't be loaded cost no step
        learned = self.models.learned()
        del self.models  # there need not be room for both
        self.models = self.load(following.config)
        kept_of_it = move_on(self.stage, following, self.scene, learned)
        if kept_of_it is not None:
            self.models.relearn(kept_of_it)
        self.config = self.base = following.config
        self._tell()
        return True

    def _tell(self) -> None:
        """Say in run.json which stage the run is in, and all that it was made with."""
        if self.whole.stages:
            known = run_folder.read(self.run).get("models")
            models = {**(known if isinstance(known, dict) else {}), **self.models.sources()}
            run_folder.update(self.run, models=models, **described(self.stages, self.stage))

    def advance(self, models: Models, *, scored: bool) -> StepRecord:
        step = refining.advance if self.config.score == "refine" else advance
        seen = step(self.config, models, self.scene)
        rewards = score_rewards(models, seen.picture, seen.prompts) if scored else None
        stage = {"stage": self.stage.number} if self.whole.stages else {}
        return StepRecord(
            failed=seen.failed,
            loss=seen.loss,
            splats=seen.splats,
            rewards=rewards,
            values=lambda: {**stage, **seen.values()},
            seen=seen,
        )

    def steer(self, setting: str, value: float) -> None:
        self.config, self.models = steered(self.base, self.config, self.models, setting, value)

    def file(self) -> bytes:
        return ply(
            self.scene.splats.detach(), [f"splatgen {__version__} {self.run.id} step {self.scene.step}"]
        )

    def snapshot(self, row: StepRecord | None, look: ViewRequest | None) -> dict[str, Any]:
        seen = None if row is None else row.seen
        # without a step the models are not asked for: those of the next stage may not have come
        fields = shown(self.scene, None if seen is None else self.models, seen, look)
        return {**fields, "stage": f"{self.stage.label} of {self.stage.of}" if self.whole.stages else ""}

    def clear(self) -> None:
        self.scene.clear()

    def save(self) -> None:
        save_scene(self.run.checkpoints, self.scene, self.models.learned())

    def restore(self) -> None:
        device = str(self.scene.params["means"].device)
        scene, learned = load_scene(self.whole, self.run.checkpoints, device)
        before, scene.source, self.scene = self.stage, self.scene.source, scene
        if self.stage != before:  # it goes back into the stage before
            del self.models
            self.models = self.load(self.stage.config)
            self._tell()
        self.config = self.base = self.stage.config
        self.models = unsteered(self.base, self.models)
        self.models.relearn(learned)

    def keep(self) -> None:
        kept.write(self.run, self.scene.splats.detach(), self.config)

    def write_results(self) -> dict[str, float]:
        self.keep()
        write_film(self.run, self.scene.splats.detach(), self.config.output)
        return score_final(self.base, self.models, self.scene)

    def totals(self) -> dict[str, Any]:
        return {"splats": len(self.scene.params["means"])}

    def finish(
        self,
        report: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        channel: Channel | None,
    ) -> Result:
        """From here to the end."""
        settings = loop_settings(self.whole, self.whole.output)
        return carry_out(self, settings, self.run, report, should_stop, channel)


def generate(
    config: Config,
    *,
    out: Path,
    command: Sequence[str],
    name: str | None = None,
    models: Models | None = None,
    load: Load | None = None,
    changes: Path | None = None,
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
    channel: Channel | None = None,
) -> Result:
    """Optimise a prompt from nothing and write a run folder in `out`.

    name is the folder's; models are those of this config, or of its first stage, where they are loaded
    already; load is who loads others; changes is the steering.jsonl of another run, to be made again; channel
    leads to a viewer.
    """
    validate(config)
    if config.source:
        raise ConfigError(f"source is {config.source!r}: a run from nothing has none, `splatgen edit` does")
    device = pick_device(config)
    first, load = stages(config)[0].config, load or ResidentModels().models
    # before the models: Shap-E needs the room
    splats = starting_splats(first, load_options_for(first, device))
    models = models or load(first)
    steered = [] if changes is None else steering.read(changes)

    def fill(run: Run) -> None:
        if steered:
            steering.write(run.folder / steering.FILE, steered)

    run = create_run(config, models, out, command, device, name, fill=fill)
    with lock.held(run.folder):
        scene = new_scene(config, splats, device)
        subject = ObjectRun(whole=config, models=models, scene=scene, run=run, load=load)
        del models  # the next stage may need their room
        return subject.finish(report, should_stop, channel)


def edit(
    config: Config,
    splats: Splats,
    *,
    out: Path,
    command: Sequence[str],
    models: Models | None = None,
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
    channel: Channel | None = None,
) -> Result:
    """Change splats that show config.source into config.prompt and write a run folder in `out`.

    models are those of this config, where they are loaded already. Raises ValueError for splats that show
    nothing, and for settings that an edit cannot use.
    """
    object_edit.check_source(splats, "the source", config.edit.fit)
    config = validate(object_edit.adapted(config, splats))
    object_edit.check_settings(config)
    device = pick_device(config)
    models = models or load_models(config, device)
    run = create_run(
        config, models, out, command, device, fill=lambda run: object_edit.save_source(run, splats)
    )
    with lock.held(run.folder):
        try:
            source = _source(config, run, device)
        except BaseException as error:
            record_failure(run, error, 0)
            raise
        scene = new_scene(config, source, device)
        scene.source = source
        load = ResidentModels().models
        subject = ObjectRun(whole=config, models=models, scene=scene, run=run, load=load)
        return subject.finish(report, should_stop, channel)


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
    load: Load | None = None,
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
    channel: Channel | None = None,
) -> Result:
    """Continue a run from its latest checkpoint, or from its first step when there is none yet.

    steps may raise its length: schedules stretch with it, or its last stage does. models are those of the
    run's config, where they are loaded already, for one without stages; load is who loads others.
    """
    run = run_folder.open_run(folder)
    saved = from_dict(read_file(run.config_json))
    config = validate(saved if steps is None else lengthened(saved, steps))
    device = pick_device(config)
    with lock.held(run.folder):
        scene, learned = _last_scene(config, run, device)
        check_steps(config.steps, scene.step)
        learned, load = moved_on(stages(config), scene, learned), load or ResidentModels().models
        models = models or load(at(stages(config), scene.begin).config)
        if learned is not None:
            models.relearn(learned)
        reopen(run, config, saved, scene.step, command)
        subject = ObjectRun(whole=config, models=models, scene=scene, run=run, load=load)
        del models  # the next stage may need their room
        return subject.finish(report, should_stop, channel)


def _last_scene(config: Config, run: Run, device: str) -> tuple[Scene, dict[str, Any] | None]:
    """Where a run was, and what its methods had learned; None for a run that has no checkpoint yet."""
    source = _source(config, run, device) if config.source else None
    try:
        scene, learned = load_scene(config, run.checkpoints, device)
    except FileNotFoundError:
        begins_again(run)
        first = stages(config)[0].config
        start = source or starting_splats(first, load_options_for(first, device))
        scene, learned = new_scene(config, start, device), None
    scene.source = source
    return scene, learned


def score_final(config: Config, models: Models, scene: Scene) -> dict[str, float]:
    """Rewards from eight fixed views on grey, as far away as the run's own."""
    v = config.views
    distance, fov = sum(v.distance) / 2.0, sum(v.fov) / 2.0
    if v.relative:
        distance /= math.tan(math.radians(fov) / 2.0)
    cameras = turntable(8, size=v.size[-1], distance=distance, fov=fov)
    with torch.no_grad():
        picture = render(scene.splats, cameras, torch.full((3,), 0.5), backend=config.render.backend).rgb
    return score_rewards(models, picture, reward_prompts(config, cameras))
