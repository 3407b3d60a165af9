"""The loop: prompt to splats. The only file that knows the order of things.

    render -> encode -> guidance -> inject -> penalties -> Adam -> densify -> record

Shapes: B views, N splats.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatgen import __version__, atomic, editing, runs
from splatgen.backgrounds import backgrounds
from splatgen.cameras import Cameras, sample_orbit, turntable
from splatgen.conditions import Told, conditions, tell
from splatgen.config import Config, ConfigError, ImageConfig, Method, from_dict, read_file, to_dict
from splatgen.denoiser import Denoiser
from splatgen.guidance import draw_times, gradient, inject
from splatgen.memory import is_out_of_memory
from splatgen.metrics import Metrics, rewind_metrics
from splatgen.moment import Moment, Source
from splatgen.panel import Panel
from splatgen.preferences import Preference, make_preference
from splatgen.priors import Conditioning, Prior, load_prior
from splatgen.prompts import view_prompt, view_word
from splatgen.regularise import penalty
from splatgen.render import Render, render
from splatgen.results import write_results
from splatgen.rewards import Reward, load_reward
from splatgen.rng import rng
from splatgen.runs import Run
from splatgen.scene import Scene, initial_splats, load_scene, new_scene, save_scene, update
from splatgen.scores import Delta, Score, make_score
from splatgen.splats import Splats
from splatgen.validation import validate

log = logging.getLogger("splatgen")

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


@dataclass(frozen=True, kw_only=True)
class Models:
    """What stays loaded over a run: networks, embedded prompts, and what learns beside the splats."""

    denoiser: Denoiser
    panel: Panel  # guides
    holdouts: tuple[Reward, ...]  # watch
    score: Score
    preference: Preference
    target: Told
    source: Told | None  # what an edit starts from
    negative: Conditioning  # one row

    @property
    def prior(self) -> Prior:
        return self.denoiser.prior

    def learned(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {"score": self.score.state_dict(), "preference": self.preference.state_dict()}

    def relearn(self, states: Mapping[str, Any]) -> None:
        """Put it back."""
        self.score.load_state_dict(states["score"])
        self.preference.load_state_dict(states["preference"])


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a step leaves for the metrics; tensors, so that CUDA is waited for only when they are read."""

    loss: Tensor  # [] mean square of G
    failed: Tensor  # [] 1 when the step was skipped
    t_max: Tensor  # [] the largest time
    splats: int
    model_calls: int  # images through the denoiser
    ms: dict[str, float]  # milliseconds by stage
    metrics: dict[str, float]  # of score and preference
    picture: Tensor  # [B, 3, H, W]
    prompts: tuple[str, ...]  # B, as rewards read them


def pick_device(name: str) -> str:
    """auto, cpu or cuda to a torch device; RuntimeError when CUDA is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is usable here: run with --device cpu, or see `splatgen doctor`")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def load_models(config: Config | ImageConfig, device: str) -> Models:
    """Load the networks and embed the prompts."""
    prior = load_prior(config.prior, config.prior_options, device)
    weights = config.rewards()
    return assemble(
        config,
        prior,
        Panel(
            rewards=tuple(load_reward(name, device) for name in weights),
            weights=tuple(weights.values()),
            options=config.reward_options,
        ),
        tuple(load_reward(name, device) for name in config.holdout_reward),
    )


def assemble(
    config: Config | ImageConfig, prior: Prior, panel: Panel, holdouts: tuple[Reward, ...]
) -> Models:
    """A run's models out of networks that are loaded."""
    score = make_score(config, prior)
    return Models(
        denoiser=Denoiser(prior, config.guidance),
        panel=panel,
        holdouts=holdouts,
        score=Delta(score) if config.source else score,
        preference=make_preference(config),
        target=tell(prior, config.prompt),
        source=tell(prior, config.source) if config.source else None,
        negative=prior.embed([config.negative]),
    )


def look(config: Config, scene: Scene, fraction: float) -> tuple[Render, Cameras]:
    """Render the scene from this step's cameras."""
    v = config.views
    size = v.size[min(int(fraction * len(v.size)), len(v.size) - 1)]
    cameras = sample_orbit(
        rng(config.seed, scene.step, "cameras"),
        views=v.count,
        size=size,
        elevation=v.elevation,
        distance=v.distance,
        fov=v.fov,
    ).to(scene.params["means"].device)
    out = render(scene.splats, cameras, background(config, scene.step, cameras))
    if scene.densifier.watches(scene.step):
        out.info["means2d"].retain_grad()
    return out, cameras


def background(config: Config, step: int, cameras: Cameras) -> Tensor:
    """What is behind the splats in each view of a step, [B, 3]."""
    generator = rng(config.seed, step, "background")
    return backgrounds(config.views.background, generator, len(cameras)).to(cameras.K)


def descend(config: Config, scene: Scene, out: Render) -> Tensor:
    """After the picture's gradient: penalties, Adam, densification. Returns 1 when the step was skipped."""
    extra = penalty(scene.params, config.regularise)
    if extra.requires_grad:  # all penalties may be off
        extra.backward()  # type: ignore[no-untyped-call]
    failed = update(config, scene)
    if scene.densifier.watches(scene.step):
        means2d = out.info["means2d"]
        means2d.grad = means2d.grad.masked_fill(failed.bool(), 0.0)  # NaN would stay in the sums of a round
    scene.densifier.after(scene.params, scene.optimizers, out.info, scene.step)
    return failed


def before_edit(config: Config, scene: Scene, cameras: Cameras) -> Tensor | None:
    """What an edit started from, seen by this step's cameras, [B, 3, H, W]."""
    if scene.source is None:
        return None
    with torch.no_grad():
        return render(scene.source, cameras, background(config, scene.step, cameras)).rgb


def observe(
    config: Method,
    models: Models,
    *,
    step: int,
    x: Tensor,  # [B, C, h, w]
    images: Tensor,  # [B, 3, H, W]
    cameras: Cameras,
    before: Tensor | None,  # [B, 3, H, W] what an edit started from
) -> Moment:
    """A step as score and preference see it."""
    g, fraction = config.guidance, step / config.steps
    views = models.prior.views
    t = draw_times(g, models.score, fraction, len(x) // views, rng(config.seed, step, "time"))
    negative = models.preference.negative(models.negative)
    plain = dataclasses.replace(g, view_prompts="none", perp_neg=False)
    source = None
    if models.source is not None and before is not None:
        with torch.no_grad():
            source = Source(
                x=models.prior.encode(before), conditions=conditions(models.source, negative, cameras, g)
            )
    return Moment(
        denoiser=models.denoiser,
        x=x.detach(),
        images=images.detach(),
        t=t.repeat_interleave(views).to(x),
        conditions=conditions(models.target, negative, cameras, g),
        plain=conditions(models.target, negative, cameras, plain),
        cameras=cameras,
        prompts=reward_prompts(config, cameras),
        seed=config.seed,
        step=step,
        steps=config.steps,
        source=source,
    )


def reward_prompts(config: Method, cameras: Cameras) -> tuple[str, ...]:
    """The prompt of each view as rewards read it."""
    if not config.reward_options.view_prompts:
        return (config.prompt,) * len(cameras)
    angles = zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True)
    return tuple(view_prompt(config.prompt, view_word(a, e)) for a, e in angles)


def advance(config: Config, models: Models, scene: Scene) -> Seen:
    """One step of the optimisation."""
    clock = [time.perf_counter()]
    out, cameras = look(config, scene, scene.step / config.steps)
    clock.append(time.perf_counter())

    x = models.prior.encode(out.rgb)
    before = before_edit(config, scene, cameras)
    moment = observe(config, models, step=scene.step, x=x, images=out.rgb, cameras=cameras, before=before)
    found = gradient(moment, models.score, models.preference, models.panel)
    clock.append(time.perf_counter())

    value = found.value
    if moment.source is not None:
        chosen = config.guidance.weighting
        weighting = models.score.weighting if chosen == "auto" else chosen
        value = value + editing.pull(moment, config.edit.keep, weighting)
    inject(x, value, out.rgb, found.on_render)
    clock.append(time.perf_counter())

    failed = descend(config, scene, out)
    clock.append(time.perf_counter())
    stages = ("render", "model", "backward", "update")
    return Seen(
        loss=found.value.square().mean(),
        failed=failed,
        t_max=moment.t.max(),
        splats=len(scene.params["means"]),
        model_calls=found.model_calls,
        ms={name: 1e3 * (b - a) for name, a, b in zip(stages, clock, clock[1:], strict=False)},
        metrics=found.metrics,
        picture=out.rgb.detach(),
        prompts=moment.prompts,
    )


def score_rewards(models: Models, picture: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Every reward of pictures [B, 3, H, W], averaged."""
    watched = {f"reward/{r.name}": r for r in models.panel.rewards}
    watched |= {f"holdout/{r.name}": r for r in models.holdouts}
    with torch.no_grad():
        return {key: float(r(picture.clamp(0, 1), prompts).mean()) for key, r in watched.items()}


def _ignore(progress: Progress) -> None:
    pass


def _never() -> bool:
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
    report: Callable[[Progress], None] = _ignore,
    should_stop: Callable[[], bool] = _never,
) -> Result:
    """Optimise a prompt from nothing and write a run folder in `out`."""
    validate(config)
    if config.source:
        raise ConfigError(f"source is {config.source!r}: a run from nothing has none, `splatgen edit` does")
    device = pick_device(config.device)
    models = load_models(config, device)
    run = _create(config, out, command, device)
    scene = new_scene(config, initial_splats(config), device)
    return _finish(config, models, scene, run, report, should_stop)


def edit(
    config: Config,
    splats: Splats,
    *,
    out: Path,
    command: Sequence[str],
    report: Callable[[Progress], None] = _ignore,
    should_stop: Callable[[], bool] = _never,
) -> Result:
    """Change splats that show config.source into config.prompt and write a run folder in `out`.

    Raises ValueError for splats that show nothing, and for settings that an edit cannot use.
    """
    editing.check_source(splats, "the source", config.edit.fit)
    config = validate(editing.adapted(config, splats))
    editing.check_settings(config)
    device = pick_device(config.device)
    models = load_models(config, device)
    run = _create(config, out, command, device)
    try:
        editing.save_source(run, splats)
        source = _source(config, run, device)
    except BaseException as error:
        record_failure(run, error, 0)
        raise
    scene = new_scene(config, source, device)
    scene.source = source
    return _finish(config, models, scene, run, report, should_stop)


def _create(config: Config, out: Path, command: Sequence[str], device: str) -> Run:
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
    report: Callable[[Progress], None] = _ignore,
    should_stop: Callable[[], bool] = _never,
) -> Result:
    """Continue a run from its latest checkpoint; `steps` may raise its length (schedules stretch with it)."""
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
    models = load_models(config, device)
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
