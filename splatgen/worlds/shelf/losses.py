"""What the shelf's autoencoder and prior are trained to do, on cut-outs rendered on the fly.

A cut-out is colour times coverage, and coverage: there is no background. Every batch is a function of
(recipe.seed, step). Shapes: B images, S their side, C x h x w latents.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from splatgen.runs.rng import rng
from splatgen.scene.cameras import DEFAULT_DISTANCE, Cameras
from splatgen.worlds.shelf.grammar import AnyCaption
from splatgen.worlds.shelf.model import FOLD, PriorNet, fold, prior_tokens, seen_from, unfold
from splatgen.worlds.shelf.recipes import Recipe
from splatgen.worlds.shelf.sampling import draw, draw_unseen, random_cameras
from splatgen.worlds.shelf.scenes import premultiplied

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LATENT_NOISE = 0.05  # of a latent's deviation, added before decoding: neighbours then mean alike pictures
LATENT_PULL = 1e-4  # toward 0
COARSE, COARSE_WEIGHT = 8, 2.0  # pixels of the averages that must be right, too
NO_TEXT, NO_CAMERA = 0.1, 0.08  # shares that are told nothing, for guidance without a classifier
TIME_POWER = 0.5  # below 1: more of the late times, where forms are decided


def cutouts(
    recipe: Recipe, step: int, size: int, *, unseen: bool = False
) -> tuple[Tensor, list[AnyCaption], Cameras]:
    """A batch: cut-outs [B, 4, S, S] in -1..1, their captions and cameras."""
    source = random.Random(f"{recipe.seed}/{step}")
    captions = [draw_unseen(source) if unseen else draw(source) for _ in range(recipe.batch)]
    g = rng(recipe.seed, step, "cameras")
    cameras = random_cameras(g, recipe.batch, size, DEFAULT_DISTANCE, DEFAULT_DISTANCE)
    return 2.0 * premultiplied(captions, cameras) - 1.0, captions, cameras


def picture_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error of pictures [B, C, S, S], of their coarse averages, and of their differences."""
    error = (found - wanted).abs().mean()
    error = error + COARSE_WEIGHT * (avg_pool2d(found - wanted, COARSE)).abs().mean()
    across = (found - wanted).diff(dim=-1).abs().mean()
    return error + across + (found - wanted).diff(dim=-2).abs().mean()


def autoencoder_loss(net: AutoencoderKL, recipe: Recipe, step: int, device: torch.device) -> Tensor:
    """Error of cut-outs that come back from slightly disturbed latents."""
    with torch.autocast(device.type, enabled=False):
        x, _, _ = cutouts(recipe, step, net.config.sample_size * FOLD)
    folded = fold(x.to(device)).contiguous(memory_format=torch.channels_last)
    z = net.encode(folded).latent_dist.mean.float()
    noise = torch.randn(z.shape, generator=rng(recipe.seed, step, "noise")).to(device)
    spread = z.detach().std((0, 2, 3), keepdim=True)
    back = net.decode(z + LATENT_NOISE * spread * noise).sample.float()
    error: Tensor = picture_error(unfold(back), x.to(device)) + LATENT_PULL * z.square().mean()
    return error


def prior_loss(
    vae: AutoencoderKL,
    net: PriorNet,
    recipe: Recipe,
    step: int,
    device: torch.device,
    *,
    unseen: bool = False,
) -> Tensor:
    """Mean squared error of v = alpha eps - sigma x0 (Salimans and Ho 2022), t stratified over the batch."""
    b = recipe.batch
    with torch.autocast(device.type, enabled=False):
        x, captions, cameras = cutouts(recipe, step, vae.config.sample_size * FOLD, unseen=unseen)
    with torch.no_grad():
        x0 = vae.encode(fold(x.to(device))).latent_dist.mean.float()
    g = rng(recipe.seed, step, "noise")
    told = torch.rand(2, b, generator=g)
    texts = [None if share < NO_TEXT else c for share, c in zip(told[0].tolist(), captions, strict=True)]
    camera = seen_from(cameras.azimuth, cameras.elevation) * (told[1] >= NO_CAMERA)[:, None]
    t = ((torch.randperm(b, generator=g) + torch.rand(b, generator=g)) / b) ** TIME_POWER
    t = t.clamp(2e-3, 1 - 1e-3).to(device)
    noise = torch.randn(x0.shape, generator=g).to(device)
    alpha, sigma = (f(math.pi / 2 * t)[:, None, None, None] for f in (torch.cos, torch.sin))
    x_t = (alpha * x0 + sigma * noise).contiguous(memory_format=torch.channels_last)
    v = net(x_t, t, *net.encode_text(prior_tokens(texts).to(device)), camera.to(device))
    error: Tensor = v.float() - (alpha * noise - sigma * x0)
    return error.square().mean()
