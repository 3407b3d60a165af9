"""What the shelf's autoencoder and prior are trained to do, on cut-outs rendered on the fly.

A cut-out is colour times coverage, and coverage: there is no background. Every batch is a function of
(recipe.seed, step). Shapes: B images, S their side, C x h x w latents.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from splatgen.runs.rng import rng
from splatgen.scene.cameras import DEFAULT_DISTANCE, Cameras
from splatgen.worlds.shelf.grammar import AnyCaption
from splatgen.worlds.shelf.model import FOLD, PriorNet, fold, prior_tokens, seen_from, unfold
from splatgen.worlds.shelf.recipes import Recipe
from splatgen.worlds.shelf.sampling import draw as draw_caption
from splatgen.worlds.shelf.sampling import draw_unseen, random_cameras
from splatgen.worlds.shelf.scenes import premultiplied

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LATENT_NOISE = 0.05  # of a latent's deviation, added before decoding: neighbours then mean alike pictures
LATENT_PULL = 1e-4  # toward 0
COARSE, COARSE_WEIGHT = 8, 2.0  # pixels of the averages that must be right, too
SAMPLES = 2  # a side of a pixel: twice as fast as 3, and what edges lack is noise that training averages
NO_TEXT, NO_CAMERA = 0.1, 0.08  # shares that are told nothing, for guidance without a classifier
TIME_POWER = 0.5  # below 1: more of the late times, where forms are decided


def cutouts(
    recipe: Recipe, step: int, size: int, *, unseen: bool = False
) -> tuple[Tensor, list[AnyCaption], Cameras]:
    """A batch: cut-outs [B, 4, S, S] in -1..1, their captions and cameras."""
    source = random.Random(f"{recipe.seed}/{step}")
    captions = [draw_unseen(source) if unseen else draw_caption(source) for _ in range(recipe.batch)]
    g = rng(recipe.seed, step, "cameras")
    cameras = random_cameras(g, recipe.batch, size, DEFAULT_DISTANCE, DEFAULT_DISTANCE)
    return 2.0 * premultiplied(captions, cameras, supersample=SAMPLES) - 1.0, captions, cameras


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


class Drawn(NamedTuple):
    """Pictures of the prior's training, with what it is told of them; P pictures, L tokens."""

    cutouts: Tensor  # uint8 [P, 4, S, S]
    tokens: Tensor  # [P, L]
    camera: Tensor  # [P, CAMERA]


def drawn(recipe: Recipe, size: int, step: int, *, unseen: bool = False) -> Drawn:
    """The pictures of a step."""
    x, captions, cameras = cutouts(recipe, step, size, unseen=unseen)
    camera = seen_from(cameras.azimuth, cameras.elevation)
    return Drawn((127.5 * (x + 1.0)).round().to(torch.uint8), prior_tokens(captions), camera)


def prior_loss(
    vae: AutoencoderKL,
    net: PriorNet,
    recipe: Recipe,
    step: int,
    device: torch.device,
    *,
    draw: Callable[[int], Drawn],
) -> Tensor:
    """Mean squared error of v = alpha eps - sigma x0 (Salimans and Ho 2022), t stratified over the batch.

    Each picture is seen at recipe.noises levels of noise.
    """
    with torch.autocast(device.type, enabled=False):
        there = [z.to(device, non_blocking=True) for z in draw(step)]
    g = rng(recipe.seed, step, "noise", device)
    with torch.no_grad():
        folded = fold(there[0].float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
        there[0] = vae.encode(folded).latent_dist.mean.float()
    x0, tokens, camera = (z.repeat_interleave(recipe.noises, 0) for z in there)
    b = len(x0)
    told = torch.rand(2, b, generator=g, device=device)
    tokens = torch.where(told[0, :, None] < NO_TEXT, prior_tokens([None]).to(device), tokens)
    camera = camera * (told[1, :, None] >= NO_CAMERA)
    u = torch.randperm(b, generator=g, device=device) + torch.rand(b, generator=g, device=device)
    t = ((u / b) ** TIME_POWER).clamp(2e-3, 1 - 1e-3)
    noise = torch.randn(x0.shape, generator=g, device=device)
    alpha, sigma = (f(math.pi / 2 * t)[:, None, None, None] for f in (torch.cos, torch.sin))
    x_t = (alpha * x0 + sigma * noise).contiguous(memory_format=torch.channels_last)
    v = net(x_t, t, *net.encode_text(tokens), camera)
    error: Tensor = v.float() - (alpha * noise - sigma * x0)
    return error.square().mean()
