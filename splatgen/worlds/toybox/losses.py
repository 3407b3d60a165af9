"""What the toybox's models are trained to do, on pictures rendered on the fly.

Every batch is a function of (recipe.seed, step). Shapes: B images, S their side.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from splatgen.runs.rng import rng
from splatgen.scene.backgrounds import random_backgrounds
from splatgen.scene.cameras import Cameras, orbit
from splatgen.scene.view_prompts import VIEW_WORDS, view_word
from splatgen.worlds.towers import RewardNet
from splatgen.worlds.toybox import world
from splatgen.worlds.toybox.grammar import Caption
from splatgen.worlds.toybox.model import PriorNet, camera_features, tokenize
from splatgen.worlds.toybox.recipes import Recipe
from splatgen.worlds.toybox.sampling import draw, hard_negatives, with_view


def scenes(
    recipe: Recipe, step: int, cameras: Cameras, unseen: bool
) -> tuple[list[Caption], random.Random, Tensor]:
    """Captions, the source of further choices, and pictures [B, 3, S, S] in 0..1."""
    source = random.Random(f"{recipe.seed}/{step}")
    captions = draw(source, len(cameras), unseen=unseen)
    background = random_backgrounds(rng(recipe.seed, step, "background"), len(cameras))
    images = world.ground_truth(captions, cameras, background.to(cameras.K.device), supersample=2).rgb
    return captions, source, images


def prior_loss(
    net: PriorNet, recipe: Recipe, step: int, device: torch.device, *, unseen: bool = False
) -> Tensor:
    """Mean squared error of v = alpha eps - sigma x0 (Salimans and Ho 2022), t stratified over the batch."""
    b = recipe.batch
    cameras = world.random_cameras(rng(recipe.seed, step, "cameras"), b, net.config.size).to(device)
    captions, source, images = scenes(recipe, step, cameras, unseen)
    texts, seen = [], []
    for n, caption in enumerate(captions):
        word = (
            view_word(float(cameras.azimuth[n]), float(cameras.elevation[n]))
            if source.random() < 0.85
            else None
        )
        texts.append("" if source.random() < 0.1 else with_view(str(caption), word))
        seen.append(float(source.random() < 0.6))
    states, pooled = net.encode_text(tokenize(texts).to(device))
    camera = camera_features(cameras.azimuth, cameras.elevation) * torch.tensor(seen, device=device)[:, None]
    g = rng(recipe.seed, step, "noise")
    t = ((torch.arange(b) + torch.rand(b, generator=g)) / b).clamp(1e-3, 1 - 1e-3).to(device)
    noise = torch.randn(images.shape, generator=g).to(device)
    alpha, sigma = (f(math.pi / 2 * t)[:, None, None, None] for f in (torch.cos, torch.sin))
    x0 = 2.0 * images - 1.0
    v = net(alpha * x0 + sigma * noise, t, states, pooled, camera)
    error: Tensor = v - (alpha * noise - sigma * x0)
    return error.square().mean()


def degrade(images: Tensor, source: random.Random, generator: torch.Generator) -> Tensor:
    """Blur, noise and contrast as one-step estimates and unfinished splats have them."""
    b, s = len(images), images.shape[-1]
    soft = interpolate(avg_pool2d(images, source.choice([2, 4])), size=(s, s), mode="bilinear")
    u = torch.rand(5, b, 1, 1, 1, generator=generator).to(images.device)
    images = torch.lerp(images, soft, u[0] * (u[1] < 0.5))
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    images = images + 0.15 * u[2] * (u[3] < 0.5) * noise
    return (0.5 + (images - 0.5) * (0.8 + 0.35 * u[4])).clamp(0.0, 1.0)


def reward_logits(
    net: RewardNet, recipe: Recipe, step: int, device: torch.device, *, unseen: bool = False
) -> tuple[Tensor, Tensor]:
    """Scaled cosines of each picture with the batch's captions [B, B], its own on the diagonal, and with
    its own hard negatives [B, negatives]."""
    b, k = recipe.batch, recipe.negatives
    seen = world.random_cameras(rng(recipe.seed, step, "cameras"), b, net.config.size)
    u = torch.rand(b, generator=rng(recipe.seed, step, "distance"))
    cameras = orbit(seen.azimuth, seen.elevation, size=net.config.size, distance=2.3 + 0.5 * u).to(device)
    captions, source, images = scenes(recipe, step, cameras, unseen)
    images = degrade(images, source, rng(recipe.seed, step, "degrade"))
    positive: list[str] = []
    negative: list[str] = []
    for n, caption in enumerate(captions):
        azimuth = float(cameras.azimuth[n])
        word = view_word(azimuth, float(cameras.elevation[n])) if source.random() < 0.5 else None
        visible = abs((azimuth + 180.0) % 360.0 - 180.0) < 60.0
        positive.append(with_view(str(caption), word))
        others = hard_negatives(
            caption,
            source,
            k - (word is not None),
            front_visible=visible,
            order_visible=word in ("front", "back"),  # from a side, and without a word, left may be right
            unseen=unseen,
        )
        negative += [with_view(str(other), word) for other in others]
        if word is not None:
            wrong = source.choice([w for w in VIEW_WORDS if w != word])
            negative.append(with_view(str(caption), wrong))
    image = net.embed_images(images)  # [B, E]
    text = net.embed_texts(tokenize(positive + negative).to(device))
    scale = net.log_scale.clamp(max=4.0).exp()
    same = torch.tensor([[p == q for q in positive] for p in positive], device=device)
    same &= ~torch.eye(b, dtype=torch.bool, device=device)
    batch = (scale * image @ text[:b].T).masked_fill(same, -1e4)  # [B, B] a repeated caption is no negative
    hard = scale * torch.einsum("be,bke->bk", image, text[b:].view(b, k, -1))
    return batch, hard


def reward_loss(net: RewardNet, recipe: Recipe, step: int, device: torch.device) -> Tensor:
    """InfoNCE of pictures against captions and hard negatives, and of captions against pictures."""
    batch, hard = reward_logits(net, recipe, step, device)
    target = torch.arange(len(batch), device=device)
    forward = cross_entropy(torch.cat([batch, hard], 1), target)
    return 0.5 * forward + 0.5 * cross_entropy(batch.T, target)
