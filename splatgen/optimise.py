"""The loop: prompt to splats. The only file that knows the order of things.

    render -> encode -> guidance -> inject -> penalties -> Adam -> densify -> record

Shapes: B views, N splats.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from splatgen import __version__, atomic, runs
from splatgen.backgrounds import backgrounds
from splatgen.cameras import Cameras, sample_orbit, turntable
from splatgen.config import Config, from_dict, read_file, to_dict
from splatgen.guidance import gradient, inject, sample_times, time_range
from splatgen.memory import is_out_of_memory
from splatgen.metrics import Metrics, rewind_metrics
from splatgen.preferences import PREFERENCES, Preference
from splatgen.priors import Conditioning, Prior, load_prior
from splatgen.prompts import VIEW_WORDS, view_prompts, view_word
from splatgen.regularise import penalty
from splatgen.render import Render, render
from splatgen.results import write_results
from splatgen.rewards import Reward, load_reward
from splatgen.rng import rng
from splatgen.runs import Run
from splatgen.scene import Scene, initial_splats, load_scene, new_scene, save_scene, update
from splatgen.scores import SCORES, Score
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
    """What stays loaded over a run: networks and embedded prompts."""

    prior: Prior
    rewards: tuple[Reward, ...]
    score: Score
    preference: Preference
    positive: Conditioning  # one row a view word
    negative: Conditioning  # one row


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a step leaves for the metrics; tensors, so that CUDA is waited for only when they are read."""

    loss: Tensor  # [] mean square of G
    failed: Tensor  # [] 1 when the step was skipped
    t_max: float
    splats: int
    model_calls: int  # images through the denoiser
    ms: dict[str, float]  # milliseconds by stage
    picture: Tensor  # [B, 3, H, W]
    cameras: Cameras


def pick_device(name: str) -> str:
    """auto, cpu or cuda to a torch device; RuntimeError when CUDA is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is usable here: run with --device cpu, or see `splatgen doctor`")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def load_models(config: Config, device: str) -> Models:
    """Load the networks and embed the prompt once for each view word."""
    prior = load_prior(config.prior, config.prior_options, device)
    return Models(
        prior=prior,
        rewards=tuple(load_reward(name, device) for name in config.reward),
        score=SCORES[config.score](),
        preference=PREFERENCES[config.preference](),
        positive=prior.embed(view_prompts(config.prompt)),
        negative=prior.embed([config.negative]),
    )


def condition(models: Models, cameras: Cameras) -> tuple[Conditioning, Conditioning]:
    """The prompt as each view sees it, and the negative, one row a view."""
    rows = [
        VIEW_WORDS.index(view_word(a, e))
        for a, e in zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True)
    ]
    index = torch.tensor(rows)
    positive = {name: value[index.to(value.device)] for name, value in models.positive.items()}
    negative = {name: value.expand(len(rows), *value.shape[1:]) for name, value in models.negative.items()}
    return positive, negative


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
    back = backgrounds(v.background, rng(config.seed, scene.step, "background"), v.count)
    out = render(scene.splats, cameras, back.to(cameras.K))
    if scene.densifier.watches(scene.step):
        out.info["means2d"].retain_grad()
    return out, cameras


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


def advance(config: Config, models: Models, scene: Scene) -> Seen:
    """One step of the optimisation."""
    clock = [time.perf_counter()]
    fraction = scene.step / config.steps
    out, cameras = look(config, scene, fraction)
    clock.append(time.perf_counter())

    x = models.prior.encode(out.rgb)
    low, high = time_range(config.guidance, fraction)
    t = sample_times(rng(config.seed, scene.step, "time"), len(x), low, high).to(x.device)
    positive, negative = condition(models, cameras)
    noise = rng(config.seed, scene.step, "noise")
    found = gradient(
        models.prior,
        models.score,
        models.preference,
        x,
        t,
        positive,
        negative,
        cameras,
        config.guidance,
        noise,
    )
    clock.append(time.perf_counter())

    inject(x, found.value)
    clock.append(time.perf_counter())

    failed = descend(config, scene, out)
    clock.append(time.perf_counter())
    stages = ("render", "model", "backward", "update")
    return Seen(
        loss=found.value.square().mean(),
        failed=failed,
        t_max=high,
        splats=len(scene.params["means"]),
        model_calls=found.model_calls,
        ms={name: 1e3 * (b - a) for name, a, b in zip(stages, clock, clock[1:], strict=False)},
        picture=out.rgb.detach(),
        cameras=cameras,
    )


def score_rewards(config: Config, models: Models, picture: Tensor) -> dict[str, float]:
    """Every reward of the views of this step, averaged."""
    with torch.no_grad():
        prompts = [config.prompt] * len(picture)
        return {r.name: float(r(picture.clamp(0, 1), prompts).mean()) for r in models.rewards}


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
                rewards = score_rewards(config, models, seen.picture)
            if scored or scene.step % config.output.log_every == 0:
                _record(metrics, scene, seen, rewards if scored else {}, started)
                _check_progress(scene, seen, run)
            scene.step += 1
            now = time.monotonic()
            if interval > 0 and now - saved > interval and not last:
                save_scene(run.checkpoints, scene)
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
    save_scene(run.checkpoints, scene)
    return "done" if scene.step >= config.steps else "stopped"


def _record(metrics: Metrics, scene: Scene, seen: Seen, rewards: dict[str, float], started: float) -> None:
    row = {
        "step": scene.step,
        "loss": float(seen.loss),
        "t_max": seen.t_max,
        "splats/count": seen.splats,
        "guidance/model_calls": seen.model_calls,
        "skipped": float(seen.failed),
        **{f"reward/{name}": value for name, value in rewards.items()},
        **{f"time/{name}_ms": round(value, 3) for name, value in seen.ms.items()},
        "time/step_ms": round(1e3 * (time.perf_counter() - started), 3),
    }
    metrics.write(row)


def _check_progress(scene: Scene, seen: Seen, run: Run) -> None:
    scene.failures = scene.failures + 1 if float(seen.failed) else 0
    if scene.failures >= PATIENCE:
        save_scene(run.checkpoints, scene)  # skipped steps left the splats as they were
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
    device = pick_device(config.device)
    models = load_models(config, device)
    run = runs.create(
        out,
        config.prompt,
        command=command,
        config=to_dict(config),
        seed=config.seed,
        device=device_name(device),
        models={
            f"prior/{config.prior}": f"splatgen {__version__}",
            **{f"reward/{name}": f"splatgen {__version__}" for name in config.reward},
        },
    )
    return _finish(
        config, models, new_scene(config, initial_splats(config), device), run, report, should_stop
    )


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
    scene = load_scene(config, run.checkpoints, device)
    if steps is not None and steps < scene.step:
        raise ValueError(
            f"--steps is {steps}, but the run is already at step {scene.step}: give a larger number"
        )
    models = load_models(config, device)
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
            write_results(run, scene.splats.detach(), config.output)
            rewards = score_final(config, models, scene)
    except BaseException as error:
        runs.update(
            run, status=_status(error), error=f"{type(error).__name__}: {error}"[:500], steps=scene.step
        )
        error.add_note(f"the run is in {run.folder}")
        raise
    runs.update(run, status=status, steps=scene.step, splats=len(scene.params["means"]), rewards=rewards)
    return Result(run=run, status=status, step=scene.step)


def score_final(config: Config, models: Models, scene: Scene) -> dict[str, float]:
    """Rewards from eight fixed views on grey."""
    cameras = turntable(8, size=config.views.size[-1]).to(scene.params["means"].device)
    with torch.no_grad():
        picture = render(scene.splats, cameras, torch.full((3,), 0.5)).rgb
    return score_rewards(config, models, picture)


def _status(error: BaseException) -> str:
    if isinstance(error, Diverged):
        return "diverged"
    if is_out_of_memory(error):
        return "oom"
    return "stopped" if isinstance(error, KeyboardInterrupt) else "failed"


def device_name(device: str) -> str:
    """The device as run.json names it."""
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
