"""One step: what stays loaded, what the cameras see, and the gradient that moves the splats.

    render -> encode -> guidance -> inject -> penalties -> Adam -> densify

Shapes: B views, N splats.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from splatgen.config import Config, ImageConfig, Method, PriorOptions
from splatgen.guidance.conditioning import (
    PromptEmbedding,
    PromptPair,
    conditions,
    embed_pair,
    embed_prompt,
    pair_conditions,
)
from splatgen.guidance.denoiser import Denoiser
from splatgen.guidance.distillation import Gradient, chosen_weighting, draw_times, gradient
from splatgen.guidance.moment import Moment, Source
from splatgen.guidance.preferences import Preference, make_preference
from splatgen.guidance.scores import Delta, Score, make_score
from splatgen.guidance.scores.base import Metrics
from splatgen.loop import object_edit
from splatgen.loop.clock import StageClock
from splatgen.loop.encoding import encode, encoder_inputs, pull_back
from splatgen.loop.seen_penalties import add, apart
from splatgen.loop.viewpoints import background, size_at, viewpoints
from splatgen.models.budget import BUDGETS, LoadOptions, decoded_at_once
from splatgen.models.paging import take_turns
from splatgen.priors import PRIORS, Conditioning, Prior, load_options_for, load_prior
from splatgen.rasterizer import Render, render
from splatgen.rewards import Reward, load_reward
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.runs.rng import rng
from splatgen.scene.cameras import Cameras
from splatgen.scene.parameters import Scene, update
from splatgen.scene.penalties import penalty
from splatgen.scene.uploads import upload
from splatgen.scene.view_prompts import view_prompt, view_prompts, view_word


@dataclass(frozen=True, kw_only=True)
class Models:
    """What stays loaded over a run: networks, embedded prompts, and what learns beside the splats."""

    denoiser: Denoiser
    ensemble: RewardEnsemble  # guides
    holdouts: tuple[Reward, ...]  # watch
    score: Score
    preference: Preference
    target: PromptEmbedding
    source: PromptEmbedding | None  # what an edit starts from
    negative: Conditioning  # one row
    null: Conditioning  # one row, of the empty prompt
    pair: PromptPair | None = None  # the second one of a bridge
    encode: int = 0  # images encoded at once, without a graph, and once more for the gradient; 0 keeps it
    halved: bool = False  # batches, because memory ran out

    @property
    def rewards(self) -> tuple[Reward, ...]:
        """Those that guide and those that watch."""
        return (*self.ensemble.rewards, *self.holdouts)

    def sources(self) -> dict[str, str]:
        """Where the weights are from, by slot and name."""
        rewards = {f"reward/{reward.name}": reward.source for reward in self.rewards}
        return {f"prior/{self.prior.name}": self.prior.source, **rewards}

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


STAGES = ("render", "model", "backward", "update")


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves for the metrics; tensors, so that CUDA is waited for only when they are read."""

    loss: Tensor  # [] mean square of G
    failed: Tensor  # [] 1 when the step was skipped
    t_max: Tensor  # [] the largest time
    splats: int
    model_calls: int  # images through the denoiser
    clock: StageClock
    metrics: Metrics  # of score and preference
    picture: Tensor  # [B, 3, H, W]
    prompts: tuple[str, ...]  # B, as rewards read them
    whole: dict[str, Tensor]  # [] by what may be not finite: whether it is
    found: Gradient | None  # None where no score gave one
    cameras: Cameras

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds by stage."""
        return self.clock.ms(STAGES)

    def values(self) -> dict[str, float]:
        """A row of metrics.jsonl; what was not finite only where something was."""
        broken = {name for name, whole in self.whole.items() if not whole} if self.failed else ()
        return {
            "t_max": float(self.t_max),
            "splats/count": self.splats,
            "guidance/model_calls": self.model_calls,
            **{f"skipped/{name}": 1.0 for name in broken},
            **read_together(self.metrics),
            **{f"time/{name}_ms": round(value, 3) for name, value in self.ms.items()},
        }


def load_models(
    config: Config | ImageConfig,
    device: str,
    prior: Callable[[str, PriorOptions, LoadOptions], Prior] = load_prior,
    reward: Callable[[str, LoadOptions], Reward] = load_reward,
) -> Models:
    """Load the networks, by other loaders where they may be there already, and embed the prompts."""
    how, weights = load_options_for(config, device), config.rewards()
    return assemble(
        config,
        prior(config.prior, config.prior_options, how),
        RewardEnsemble(
            rewards=tuple(reward(name, how) for name in weights),
            weights=tuple(weights.values()),
            options=config.reward_options,
        ),
        tuple(reward(name, how) for name in config.holdout_reward),
    )


def assemble(
    config: Config | ImageConfig, prior: Prior, ensemble: RewardEnsemble, holdouts: tuple[Reward, ...]
) -> Models:
    """A run's models out of networks that are loaded, within the run's budget.

    Raises ValueError for a prompt that one of them can't read.
    """
    budget = BUDGETS[config.budget]
    guidance = dataclasses.replace(config.guidance, batch=config.guidance.batch or budget.denoise)
    at_once = decoded_at_once(budget, large=PRIORS[config.prior].large)
    options = dataclasses.replace(ensemble.options, batch=ensemble.options.batch or at_once)
    take_turns((prior, *ensemble.rewards, *holdouts), budget.room)
    score = make_score(config, prior)
    models = Models(
        denoiser=Denoiser(prior, guidance, budget.learning),
        ensemble=dataclasses.replace(ensemble, options=options),
        holdouts=holdouts,
        score=Delta(score) if config.source else score,
        preference=make_preference(config),
        target=embed_prompt(prior, config.prompt),
        source=embed_prompt(prior, config.source) if config.source else None,
        negative=prior.embed([config.negative]),
        null=prior.embed([""]),
        pair=embed_pair(prior, config.prompt, config.bridge) if config.score == "bridge" else None,
        encode=budget.encode,
    )
    told = view_prompts(config.prompt) if config.reward_options.view_prompts else (config.prompt,)
    for reward in models.rewards:
        reward.prepare(told)
    if budget.free_text:
        prior.release()
        for reward in models.rewards:
            reward.release()
    return models


def render_views(config: Config, scene: Scene, fraction: float) -> tuple[Render, Cameras]:
    """Render the scene from this step's cameras."""
    cameras = viewpoints(config, scene.step, size_at(config, fraction))
    back = background(config, scene.step, cameras)
    out = render(scene.splats, cameras, back, backend=config.render.backend)
    if scene.densifier.watches(scene.step):
        out.info["means2d"].retain_grad()
    return out, cameras


def descend(config: Config, scene: Scene, out: Render, whole: Tensor) -> Tensor:
    """After the picture's gradient: penalties, Adam, densification. Returns 1 when the step was skipped.

    It is skipped when a gradient is not finite, or when whole [] is false.
    """
    extra = penalty(scene.params, config.regularise)
    if extra.requires_grad:  # all penalties may be off
        extra.backward()  # type: ignore[no-untyped-call]
    failed = update(config, scene, whole)
    if scene.densifier.watches(scene.step):
        means2d = out.info["means2d"]
        means2d.grad = means2d.grad.masked_fill(failed.bool(), 0.0)  # NaN would stay in the sums of a round
    scene.densifier.after(scene.params, scene.optimizers, out.info, scene.step)
    return failed


def render_source(config: Config, models: Models, scene: Scene, cameras: Cameras) -> Tensor | None:
    """What an edit started from, seen by this step's cameras, in the prior's space, [B, C, h, w]."""
    if scene.source is None:
        return None
    with torch.no_grad():
        back = background(config, scene.step, cameras)
        out = render(scene.source, cameras, back, backend=config.render.backend)
        return encode(models.prior, encoder_inputs(config.prior, out, back), models.encode)


def make_moment(
    config: Method,
    models: Models,
    *,
    step: int,
    x: Tensor,  # [B, C, h, w]
    images: Tensor,  # [B, 3, H, W]
    cameras: Cameras,
    before: Tensor | None,  # [B, C, h, w] what an edit started from
    begin: int = 0,
) -> Moment:
    """A step as score and preference see it; config is its stage's, which began at the step `begin`."""
    g, fraction = config.guidance, (step - begin) / config.steps
    views = models.prior.views
    t = draw_times(g, models.score, fraction, len(x) // views, rng(config.seed, step, "time"))
    times = t.repeat_interleave(views).to(x.dtype)
    negative, null = models.preference.negative(models.negative), models.null
    plain = dataclasses.replace(g, view_prompts="none", perp_neg=False)
    source = None
    if models.source is not None and before is not None:
        source = Source(x=before, conditions=conditions(models.source, negative, cameras, g, null))
    return Moment(
        denoiser=models.denoiser,
        x=x.detach(),
        images=images.detach(),
        t=upload(times, x.device),
        times=times,
        conditions=conditions(models.target, negative, cameras, g, null),
        plain=lambda: conditions(models.target, negative, cameras, plain, null),
        cameras=cameras,
        prompts=reward_prompts(config, cameras),
        seed=config.seed,
        step=step,
        steps=config.steps,
        source=source,
        pair=partial(pair_conditions, models.pair, negative, cameras, g, null) if models.pair else None,
        begin=begin,
    )


def reward_prompts(config: Method, cameras: Cameras) -> tuple[str, ...]:
    """The prompt of each view as rewards read it."""
    if not config.reward_options.view_prompts:
        return (config.prompt,) * len(cameras)
    angles = zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True)
    limits = config.guidance.view_limits
    return tuple(view_prompt(config.prompt, view_word(a, e, limits)) for a, e in angles)


def advance(config: Config, models: Models, scene: Scene) -> StepResult:
    """One step of the optimisation."""
    clock = StageClock(scene.params["means"].device)
    out, cameras = render_views(config, scene, scene.fraction(config.steps))
    clock.mark()

    inputs = encoder_inputs(config.prior, out, background(config, scene.step, cameras))
    x = encode(models.prior, inputs, models.encode)
    before = render_source(config, models, scene, cameras)
    moment = make_moment(
        config,
        models,
        step=scene.step,
        x=x,
        images=out.rgb,
        cameras=cameras,
        before=before,
        begin=scene.begin,
    )
    moment = moment.seeing(out.depth, out.alpha)
    found = gradient(moment, models.score, models.preference, models.ensemble)
    clock.mark()

    value = found.value
    if moment.source is not None:
        weighting = chosen_weighting(config.guidance, models.score)
        value = value + object_edit.pull(moment, config.edit.keep, weighting)
    aside = apart(config.regularise, scene.params, out, cameras)
    pull_back(models.prior, models.encode, x, value, inputs, out.rgb, found.on_render)
    add(scene.params, aside)
    clock.mark()

    whole = {"render": out.rgb, "prediction": value, "reward": found.rewards}
    finite = {name: torch.isfinite(z).all() for name, z in whole.items() if z is not None}
    if found.rewards is not None:  # one candidate without a reward is left out; without any, nothing is told
        finite["reward"] = torch.isfinite(found.rewards).any(0).all()
    failed = descend(config, scene, out, torch.stack([*finite.values()]).all())
    clock.mark()
    return StepResult(
        loss=found.value.square().mean(),
        failed=failed,
        t_max=moment.t.max(),
        splats=len(scene.params["means"]),
        model_calls=found.model_calls,
        clock=clock,
        metrics=found.metrics,
        picture=out.rgb.detach(),
        prompts=moment.prompts,
        whole=finite,
        found=found,
        cameras=cameras,
    )


def read_together(metrics: Metrics) -> dict[str, float]:
    """Metrics as numbers, for one wait; tensors that are not finite say nothing and are left out."""
    tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
    read = torch.stack([value.double() for value in tensors.values()]).tolist() if tensors else []
    numbers = dict(zip(tensors, read, strict=True))
    told = {name: numbers.get(name, value) for name, value in metrics.items()}
    return {name: float(value) for name, value in told.items() if math.isfinite(numbers.get(name, 0.0))}


def score_rewards(models: Models, picture: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Every reward of pictures [B, 3, H, W], averaged."""
    watched = {f"reward/{r.name}": r for r in models.ensemble.rewards}
    watched |= {f"holdout/{r.name}": r for r in models.holdouts}
    with torch.no_grad():
        return {key: float(r(picture.clamp(0, 1), prompts).mean()) for key, r in watched.items()}
