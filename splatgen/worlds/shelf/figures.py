"""Held-out figures for a model's card, on exact pictures that it never saw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splatgen.scene.cameras import Cameras, orbit
from splatgen.scene.view_prompts import view_word
from splatgen.worlds.shelf.grammar import AnyCaption, Caption
from splatgen.worlds.shelf.losses import cutouts, drawn, prior_loss
from splatgen.worlds.shelf.model import FOLD, PriorNet, fold, reward_tokens, unfold
from splatgen.worlds.shelf.recipes import Recipe
from splatgen.worlds.shelf.reward_losses import asked, plain_captions, reward_logits
from splatgen.worlds.shelf.sampling import draw_unseen, hard_negatives
from splatgen.worlds.shelf.scenes import ground_truth
from splatgen.worlds.towers import RewardNet

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

FIRST_STEP = 10**9  # batches that no training reaches
BATCHES = 8
FEW = 64  # images of a batch of the prior
RELATIONS = 200  # pairs never trained that are asked about
USUAL = 64  # captions never trained whose scores are measured
GREY = 0.5


@torch.no_grad()
def autoencoder_figures(net: AutoencoderKL, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """PSNR in dB of cut-outs that come back, and the mean and deviation of their latents."""
    errors, latents = [], []
    for step in range(FIRST_STEP, FIRST_STEP + BATCHES):
        x, _, _ = cutouts(recipe, step, net.config.sample_size * FOLD)
        z = net.encode(fold(x.to(device))).latent_dist.mean
        back = unfold(net.decode(z).sample).clamp(-1.0, 1.0).cpu()
        errors.append((0.5 * (back - x)).square().mean((1, 2, 3)))
        latents.append(z)
    z = torch.cat(latents)
    psnr = float((-10.0 * torch.cat(errors).log10()).mean())
    found = {"psnr": psnr, "latent_mean": float(z.mean()), "latent_deviation": float(z.std())}
    return {name: round(value, 4) for name, value in found.items()}


@torch.no_grad()
def prior_figures(
    vae: AutoencoderKL, net: PriorNet, recipe: Recipe, device: torch.device
) -> dict[str, float]:
    """The training's own error, on captions that it saw from other sides, and on those it never saw."""
    found = {}
    for name, unseen in (("unseen", True), ("seen", False)):
        few = replace(recipe, batch=FEW)
        draw = partial(drawn, few, vae.config.sample_size * FOLD, unseen=unseen)
        steps = range(FIRST_STEP, FIRST_STEP + BATCHES)
        total = sum(float(prior_loss(vae, net, few, step, device, draw=draw)) for step in steps)
        found[f"v_loss_{name}"] = round(total / BATCHES, 4)
    return found


@torch.no_grad()
def reward_figures(net: RewardNet, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Shares of right answers: nouns among all nouns, relations, and the training's own measure."""
    found = {
        "nouns_top1": round(nouns_right(net, device), 4),
        "relations": round(relations_right(net, device), 4),
        **usual_scores(net, device),
    }
    for name, unseen in (("unseen", True), ("seen", False)):
        draw, total = partial(asked, recipe, net.config.size, unseen=unseen), 0.0
        for step in range(FIRST_STEP, FIRST_STEP + BATCHES):
            batch, hard = reward_logits(net, step, device, draw=draw)
            total += float((batch.diagonal() > hard.amax(1)).float().mean())
        found[f"ranked_first_{name}"] = round(total / BATCHES, 4)
    return found


def usual_scores(net: RewardNet, device: torch.device) -> dict[str, float]:
    """Mean and deviation of its scores of exact pictures of unseen captions, told and not told the view."""
    source, cameras = random.Random("usual"), watching(net.config.size)
    angles = zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True)
    words = [view_word(a, e) if n % 2 else None for n, (a, e) in enumerate(angles)]
    scores = []
    for _ in range(USUAL):
        caption = draw_unseen(source)
        text = net.embed_texts(reward_tokens([caption] * len(words), words).to(device))
        scores.append((net.embed_images(_on_grey(caption, cameras).to(device)) * text).sum(-1))
    found = torch.cat(scores)
    return {"score_mean": round(float(found.mean()), 4), "score_spread": round(float(found.std()), 4)}


def watching(size: int) -> Cameras:
    """Eight fixed views all around, at four heights."""
    elevation = torch.tensor([5.0, 25.0, 45.0, 15.0]).repeat(2)
    return orbit(torch.arange(8) * 45.0 + 11.0, elevation, size=size)


def nouns_right(net: RewardNet, device: torch.device) -> float:
    """Share of exact pictures of single nouns on grey for which that noun comes first among all."""
    plain, cameras = plain_captions(), watching(net.config.size)
    text = net.embed_texts(reward_tokens(plain, [None] * len(plain)).to(device))
    right = 0.0
    for n, caption in enumerate(plain):
        scores = net.embed_images(_on_grey(caption, cameras).to(device)) @ text.T  # [8, N]
        right += float((scores.argmax(1) == n).float().mean())
    return right / len(plain)


def relations_right(net: RewardNet, device: torch.device) -> float:
    """Share of exact pictures of unseen pairs, from the front half, preferred to hard negatives.

    Every second question is places exchanged or the other relation, the rest differ in anything.
    """
    source = random.Random("relations")
    right = 0
    for _ in range(RELATIONS):
        caption = draw_unseen(source, pairs=1.0)
        azimuth, elevation = source.uniform(-40.0, 40.0), source.uniform(0.0, 40.0)
        camera = orbit(torch.tensor([azimuth]), torch.tensor([elevation]), size=net.config.size)
        texts = [caption, *_relations(caption), *hard_negatives(caption, source, 5, order_visible=True)]
        word = view_word(azimuth, elevation)
        tokens = reward_tokens(texts, [word] * len(texts)).to(device)
        scores = net.embed_images(_on_grey(caption, camera).to(device)) @ net.embed_texts(tokens).T
        right += int(scores.argmax() == 0)
    return right / RELATIONS


def _relations(caption: Caption) -> Sequence[AnyCaption]:
    """The same two things in every other arrangement."""
    assert caption.second is not None
    a, b = caption.first, caption.second
    every = [Caption(x, r, y) for r in ("on top of", "next to") for x, y in ((a, b), (b, a))]
    return [other for other in every if other != caption]


def _on_grey(caption: AnyCaption, cameras: Cameras) -> Tensor:
    return ground_truth(caption, cameras, torch.full((3,), GREY)).rgb
