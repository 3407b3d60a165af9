"""A step of a refinement: splats fitted to pictures of themselves that the prior has sharpened.

    the first step of a round: render all its views -> encode -> noise -> reverse steps -> decode
    every step: render some of its views -> L1 and SSIM to those pictures -> Adam -> densify

A prior of cut-out things makes pictures of colours with nothing behind them and of their coverage, and both
are fitted: on any one background splats of its colour, seen on no other, would cost nothing.

Shapes: V views of a round, B of them in a step.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from splatgen.config import Config
from splatgen.guidance.picture_loss import picture_loss
from splatgen.guidance.scores.refine import Refine
from splatgen.loop.clock import StageClock
from splatgen.loop.encoding import encode, encoder_inputs
from splatgen.loop.seen_penalties import add, apart
from splatgen.loop.step import Models, StepResult, descend, make_moment, reward_prompts
from splatgen.loop.viewpoints import background, size_at, viewpoints
from splatgen.priors import PRIORS, CoveragePrior
from splatgen.rasterizer import Render, render
from splatgen.runs.rng import rng
from splatgen.scene.cameras import Cameras
from splatgen.scene.parameters import Scene
from splatgen.scene.uploads import upload


def advance(config: Config, models: Models, scene: Scene) -> StepResult:
    """One step of the optimisation; raises TypeError for models of another score."""
    score = models.score
    if not isinstance(score, Refine):
        raise TypeError(f"a refinement takes its own score, not {type(score).__name__}")
    clock, device = StageClock(scene.params["means"].device), scene.params["means"].device
    began, calls = round_began(config, scene), models.denoiser.images
    cameras, behind = round_views(config, began, size_at(config, scene.fraction(config.steps)))
    rows = chosen(config, scene, models.prior.views)
    cameras, behind = cameras[rows], behind[rows]
    out = render(scene.splats, cameras, behind, backend=config.render.backend)
    if scene.densifier.watches(scene.step):
        out.info["means2d"].retain_grad()
    clock.mark()

    if score.began != began:
        score.pictures, score.began = sharpen(config, models, score, scene, began), began
    score.pictures = score.pictures.to(device)  # those of a checkpoint are on the CPU
    clock.mark()

    aside = apart(config.regularise, scene.params, out, cameras)
    loss = fitted(shown(config, out), score.pictures[upload(rows, device)], config.refine.ssim)
    loss.backward()  # type: ignore[no-untyped-call]
    add(scene.params, aside)
    clock.mark()

    whole = {"render": torch.isfinite(out.rgb).all(), "prediction": torch.isfinite(loss)}
    failed = descend(config, scene, out, torch.stack([*whole.values()]).all())
    clock.mark()
    return StepResult(
        loss=loss.detach(),
        failed=failed,
        t_max=torch.tensor(config.refine.time),
        splats=len(scene.params["means"]),
        model_calls=models.denoiser.images - calls,
        clock=clock,
        metrics={"refine/round": float(round_number(config, scene) + 1)},
        picture=out.rgb.detach(),
        prompts=reward_prompts(config, cameras),
        whole=whole,
        found=None,
        cameras=cameras,
    )


def round_number(config: Config, scene: Scene) -> int:
    """Which round of its stage a step is of, from 0."""
    return min(int(scene.fraction(config.steps) * config.refine.rounds), config.refine.rounds - 1)


def round_began(config: Config, scene: Scene) -> int:
    """The first step of the present round."""
    return scene.begin + math.ceil(round_number(config, scene) * config.steps / config.refine.rounds)


def round_views(config: Config, began: int, size: int) -> tuple[Cameras, Tensor]:
    """The cameras of a round, and what is behind the splats in each, [V, 3]; the same whenever asked."""
    cameras = viewpoints(config, began, size, count=config.refine.views, purpose="refine cameras")
    if PRIORS[config.prior].coverage:
        return cameras, torch.zeros(len(cameras), 3)
    return cameras, background(config, began, cameras, "refine background")


def chosen(config: Config, scene: Scene, group: int) -> Tensor:
    """Which views of the round a step fits, [B], whole groups of a multi-view prior."""
    groups = torch.randperm(
        config.refine.views // group, generator=rng(config.seed, scene.step, "refine views")
    )
    first = groups[: max(config.views.count // group, 1)] * group
    return (first[:, None] + torch.arange(group)).flatten()


@torch.no_grad()
def sharpen(config: Config, models: Models, score: Refine, scene: Scene, began: int) -> Tensor:
    """The pictures [V, 3 or 4, S, S] of a round, of the splats as they are now."""
    size = max(size_at(config, scene.fraction(config.steps)), models.prior.resolution)
    cameras, behind = round_views(config, began, size)
    generator, found = rng(config.seed, began, "refine noise"), []
    for rows in torch.split(torch.arange(len(cameras)), max(config.views.count, models.prior.views)):
        seen, back = cameras[rows], behind[rows]
        out = render(scene.splats, seen, back, backend=config.render.backend)
        x = encode(models.prior, encoder_inputs(config.prior, out, back), models.encode)
        moment = make_moment(
            config,
            models,
            step=scene.step,
            x=x,
            images=out.rgb,
            cameras=seen,
            before=None,
            begin=scene.begin,
        )
        x = score.sharpened(moment, generator)
        if PRIORS[config.prior].coverage:
            found.append(cast("CoveragePrior", models.prior).cutouts(x))
        else:
            found.append(models.prior.decode(x).clamp(0.0, 1.0))
    return torch.cat(found)


def shown(config: Config, out: Render) -> Tensor:
    """What of a render is compared with pictures, [B, 3 or 4, H, W]."""
    return torch.cat([out.rgb, out.alpha], 1) if PRIORS[config.prior].coverage else out.rgb


def fitted(renders: Tensor, pictures: Tensor, ssim_share: float) -> Tensor:
    """The loss [] of renders [B, C, H, W] against pictures [B, C, S, S], the larger averaged down."""
    side = min(renders.shape[-1], pictures.shape[-1])
    seen, wanted = (interpolate(z, size=(side, side), mode="area") for z in (renders, pictures))
    return picture_loss(seen, wanted, ssim_share)
