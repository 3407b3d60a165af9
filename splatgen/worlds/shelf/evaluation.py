"""How close splats are to the shelf's ground truth, from views that guided nothing.

Shapes: V views, K captions, S image side.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from splatgen.rasterizer import render
from splatgen.scene.cameras import Cameras
from splatgen.scene.splats import Splats
from splatgen.scene.view_prompts import view_prompt, view_word
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.grammar import AnyCaption, Caption, Item
from splatgen.worlds.shelf.sampling import RELATIONS, hard_negatives, right
from splatgen.worlds.shelf.scenes import ground_truth
from splatgen.worlds.shelf.words import COLORS
from splatgen.worlds.toybox.evaluation import BACKGROUND, compare, unseen_cameras

SIZES = (64, 256)  # pixels at which pictures are compared; the judge sees the first
TOYS = 5  # hard negatives of a caption of the toybox


class Judge(Protocol):
    """What tells how well images show what prompts say; a reward that guided nothing."""

    def table(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [V, K] of every image [V, 3, H, W] in 0..1 for every prompt."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over the views. The first four compare with the exact picture of the caption, at 64 px; `right`
    are shares of views in which the judge prefers the caption to others (see `choices`)."""

    iou: float  # of silhouettes, alpha above one half
    psnr: float  # dB, of the whole picture on grey
    psnr_256: float  # the same at 256 px
    color_error: float  # mean absolute RGB difference (0..1) where both silhouettes are
    nouns_right: float  # against every other noun in the place of each
    places_right: float  # against every other arrangement; 1 for one thing
    all_right: float  # against all of these and every other colour
    all_right_truth: float  # the same for the exact pictures: what a perfect object would get

    def row(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Captions that a judge chooses from, besides the right one."""

    nouns: tuple[AnyCaption, ...]
    places: tuple[AnyCaption, ...]
    others: tuple[AnyCaption, ...]  # colours


def choices(caption: AnyCaption, *, ordered: bool) -> Choices:
    """Every caption with one noun, the arrangement, or one colour changed; ordered: left can be told."""
    if not isinstance(caption, Caption):
        source = random.Random(str(caption))
        wrong = hard_negatives(caption, source, TOYS, order_visible=ordered, unseen=True)
        return Choices(nouns=(), places=(), others=tuple(wrong))
    nouns, colors = [], []
    for which in range(len(caption.items)):
        item = caption.items[which]
        nouns += [_with(caption, which, _renamed(item, noun)) for noun in catalogue().nouns]
        if catalogue().nouns[item.noun].recolour:
            colors += [_with(caption, which, replace(item, color=color)) for color in COLORS]
    return Choices(
        nouns=_wrong(nouns, caption, ordered),
        places=_wrong(_arrangements(caption), caption, ordered),
        others=_wrong(colors, caption, ordered),
    )


def _renamed(item: Item, noun: str) -> Item:
    return Item(noun, item.color if catalogue().nouns[noun].recolour else None)


def _with(caption: Caption, which: int, item: Item) -> Caption:
    return replace(caption, second=item) if which else replace(caption, first=item)


def _arrangements(caption: Caption) -> list[Caption]:
    """The same things alone and in every relation."""
    a, b = caption.first, caption.second
    if b is None:
        return []
    pairs = [Caption(x, relation, y) for relation in RELATIONS for x, y in ((a, b), (b, a))]
    return [Caption(a), Caption(b), *pairs]


def _wrong(found: Sequence[Caption], caption: Caption, ordered: bool) -> tuple[Caption, ...]:
    twins = [c for c in found if c.second is None or c.first.noun != c.second.noun]
    return tuple(c for c in dict.fromkeys(twins) if not right(c, caption, order_visible=ordered))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Shares of views."""

    nouns: float
    places: float
    all: float


def judged(judge: Judge, images: Tensor, caption: AnyCaption, cameras: Cameras) -> Answers:
    """How often a judge is right about images [V, 3, S, S] of a caption, each told its view's word."""
    angles = zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True)
    words = [view_word(a, e) for a, e in angles]
    totals = [0, 0, 0]
    for word in dict.fromkeys(words):
        rows = torch.tensor([n for n, w in enumerate(words) if w == word])
        found = choices(caption, ordered=word in ("front", "back"))
        asked = [caption, *found.nouns, *found.places, *found.others]
        with torch.no_grad():
            scores = judge.table(images[rows], [view_prompt(str(c), word) for c in asked])
        first, after = 1 + len(found.nouns), 1 + len(found.nouns) + len(found.places)
        parts = (scores[:, 1:first], scores[:, first:after], scores[:, 1:])
        for n, part in enumerate(parts):
            ahead = part.amax(1) < scores[:, 0] if part.shape[1] else torch.ones(len(rows), dtype=torch.bool)
            totals[n] += int(ahead.sum())
    nouns, places, everything = (total / len(words) for total in totals)
    return Answers(nouns=nouns, places=places, all=everything)


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What every evaluation of a caption compares with, at one size."""

    cameras: Cameras  # V
    rgb: Tensor  # [V, 3, S, S] exact pictures on grey
    alpha: Tensor  # [V, 1, S, S]


@functools.lru_cache(maxsize=16)
def examination(caption: AnyCaption, size: int) -> Examination:
    """The exact pictures from unseen views; ShelfError where the models are not on this machine."""
    cameras = unseen_cameras(size)
    truth = ground_truth(caption, cameras, torch.full((3,), BACKGROUND))
    return Examination(cameras=cameras, rgb=truth.rgb, alpha=truth.alpha)


def seen(splats: Splats, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Splats on grey, [V, 3, S, S], and their alpha [V, 1, S, S]."""
    device = splats.means.device
    with torch.no_grad():
        out = render(splats, cameras.to(device), torch.full((3,), BACKGROUND, device=device))
    return out.rgb.clamp(0, 1).cpu(), out.alpha.cpu()


def evaluate(splats: Splats, caption: AnyCaption, judge: Judge) -> Quality:
    """Compare splats with the caption's exact pictures from unseen views."""
    small, large = (examination(caption, size) for size in SIZES)
    rgb, alpha = seen(splats, small.cameras)
    iou, psnr, color = compare(rgb, alpha, small.rgb, small.alpha)
    _, fine, _ = compare(*seen(splats, large.cameras), large.rgb, large.alpha)
    answers = judged(judge, rgb, caption, small.cameras)
    return Quality(
        iou=iou,
        psnr=psnr,
        psnr_256=fine,
        color_error=color,
        nouns_right=answers.nouns,
        places_right=answers.places,
        all_right=answers.all,
        all_right_truth=judged(judge, small.rgb, caption, small.cameras).all,
    )
