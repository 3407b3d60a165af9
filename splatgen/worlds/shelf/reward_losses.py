"""What the shelf's rewards are trained to do, on pictures rendered on the fly.

Every batch is a function of (recipe.seed, step). Shapes: B images, K hard negatives an image, N nouns.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from splatgen.runs.rng import rng
from splatgen.scene.backgrounds import random_backgrounds
from splatgen.scene.cameras import Cameras
from splatgen.scene.view_prompts import view_word
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.grammar import AnyCaption, Caption, Item
from splatgen.worlds.shelf.model import reward_tokens
from splatgen.worlds.shelf.recipes import Recipe
from splatgen.worlds.shelf.sampling import draw, draw_unseen, hard_negatives, random_cameras, right
from splatgen.worlds.shelf.scenes import premultiplied
from splatgen.worlds.towers import RewardNet
from splatgen.worlds.toybox.losses import degrade

REWARD_PAIRS = 0.5  # rewards see more pairs than the prior: relations are what they are for
REWARD_DISTANCE = (2.3, 2.8)
TOLD_VIEW = 0.4  # share of the texts that name the view
TOLD_BESIDE = 0.85  # the same of things side by side: without the view nobody can tell which is the left one
IMPOSSIBLE = -1e4  # a logit for captions that are no negatives


def plain_captions() -> list[AnyCaption]:
    """Every noun alone."""
    return [Caption(Item(noun)) for noun in catalogue().nouns]


def scenes(
    recipe: Recipe, step: int, cameras: Cameras, captions: list[AnyCaption], source: random.Random
) -> Tensor:
    """Pictures [B, 3, S, S] in 0..1 on random backgrounds, as good and as bad as rewards meet them."""
    images = premultiplied(captions, cameras, supersample=2)
    background = random_backgrounds(rng(recipe.seed, step, "background"), len(cameras))
    on = images[:, :3] + (1.0 - images[:, 3:]) * background[..., None, None]
    return degrade(on, source, rng(recipe.seed, step, "degrade"))


class Asked(NamedTuple):
    """Pictures of the rewards' training, and the texts they are compared with; L tokens."""

    images: Tensor  # [B, 3, S, S] in 0..1
    tokens: Tensor  # [B + B K + N, L] own captions, hard negatives, every noun alone
    also: Tensor  # bool [B, B] whose caption is right of the picture, too
    nouns: Tensor  # bool [B, N] nouns that are


def asked(recipe: Recipe, size: int, step: int, *, unseen: bool = False) -> Asked:
    """The questions of a step, in pictures of `size` pixels."""
    b, k = recipe.batch, recipe.negatives
    source = random.Random(f"{recipe.seed}/{step}")
    captions = [draw_unseen(source) if unseen else draw(source, pairs=REWARD_PAIRS) for _ in range(b)]
    cameras = random_cameras(rng(recipe.seed, step, "cameras"), b, size, *REWARD_DISTANCE)
    images = scenes(recipe, step, cameras, list(captions), source)
    angles = zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True)
    shares = [TOLD_BESIDE if caption.relation == "next to" else TOLD_VIEW for caption in captions]
    told = [
        view_word(a, e) if source.random() < share else None
        for (a, e), share in zip(angles, shares, strict=True)
    ]
    ordered = [word in ("front", "back") for word in told]
    negative = [
        other
        for caption, order in zip(captions, ordered, strict=True)
        for other in hard_negatives(caption, source, k, order_visible=order, unseen=unseen)
    ]
    plain = plain_captions()
    views = [*told, *(word for word in told for _ in range(k)), *(None for _ in plain)]
    return Asked(
        images,
        reward_tokens([*captions, *negative, *plain], views),
        _right(captions, captions, ordered) & ~torch.eye(b, dtype=torch.bool),
        _right(plain, captions, ordered),
    )


def reward_logits(
    net: RewardNet, step: int, device: torch.device, *, draw: Callable[[int], Asked]
) -> tuple[Tensor, Tensor]:
    """Scaled cosines of each picture with the batch's captions [B, B], its own on the diagonal, and with its
    hard negatives and every noun alone [B, K + N]; those that are right too are IMPOSSIBLE."""
    with torch.autocast(device.type, enabled=False):
        images, tokens, also, nouns = (z.to(device, non_blocking=True) for z in draw(step))
    b, n = nouns.shape
    image, text = net.embed_images(images), net.embed_texts(tokens)
    scale = net.log_scale.clamp(max=4.0).exp()
    own, hard, plain = text[:b], text[b:-n].view(b, -1, text.shape[-1]), text[-n:]
    batch = (scale * image @ own.T).masked_fill(also, IMPOSSIBLE)
    alone = (scale * image @ plain.T).masked_fill(nouns, IMPOSSIBLE)
    return batch, torch.cat([scale * torch.einsum("be,bke->bk", image, hard), alone], 1)


def _right(texts: list[AnyCaption], shown: list[AnyCaption], ordered: list[bool]) -> Tensor:
    """[len(shown), len(texts)] whether a text is right of a picture, as far as it can tell."""
    found = torch.zeros(len(shown), len(texts), dtype=torch.bool)
    rows: dict[object, list[int]] = {}  # only texts about the same things can be right
    for n, text in enumerate(texts):
        rows.setdefault(_things(text), []).append(n)
    for n, (picture, order) in enumerate(zip(shown, ordered, strict=True)):
        for k in rows.get(_things(picture), ()):
            found[n, k] = right(texts[k], picture, order_visible=order)
    return found


def _things(caption: AnyCaption) -> object:
    return frozenset(i.noun for i in caption.items) if isinstance(caption, Caption) else caption


def reward_loss(
    net: RewardNet, recipe: Recipe, step: int, device: torch.device, *, draw: Callable[[int], Asked]
) -> Tensor:
    """InfoNCE of pictures against captions and hard negatives, and of captions against pictures."""
    batch, hard = reward_logits(net, step, device, draw=draw)
    target = torch.arange(len(batch), device=device)
    forward = cross_entropy(torch.cat([batch, hard], 1), target)
    return 0.5 * forward + 0.5 * cross_entropy(batch.T, target)
