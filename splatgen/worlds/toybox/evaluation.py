"""How close splats are to the toybox's ground truth, from views that guided nothing.

Shapes: V views, S image side.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from splatgen.rasterizer import render
from splatgen.scene.cameras import Cameras, orbit
from splatgen.scene.splats import Splats
from splatgen.scene.view_prompts import view_word
from splatgen.worlds.toybox.grammar import Caption
from splatgen.worlds.toybox.sampling import hard_negatives
from splatgen.worlds.toybox.world import ground_truth

VIEWS = 8
CHOICES = 6  # captions the judge chooses from: the true one and hard negatives
BACKGROUND = 0.5  # grey
VISIBLE = 1e-3  # mean squared difference of two pictures that can be told apart: 30 dB


class Judge(Protocol):
    """What tells how well images show what prompts say; a reward that guided nothing."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in 0..1 for one prompt each."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over the views. All compare with the exact picture of the caption."""

    iou: float  # of silhouettes, alpha above one half
    psnr: float  # dB, of the whole picture on grey
    color_error: float  # mean absolute RGB difference (0..1) where both silhouettes are
    nearest_right: float  # share of views nearer to the caption's exact picture than to any negative's
    judged_right: float  # share of views in which the judge picks the caption among CHOICES
    judged_right_truth: float  # the same for the exact pictures: what a perfect object would get

    def row(self) -> dict[str, float]:
        return asdict(self)


def unseen_cameras(size: int) -> Cameras:
    """Eight fixed views all around, at four heights."""
    azimuth = torch.arange(VIEWS) * (360.0 / VIEWS) + 11.0
    elevation = torch.tensor([5.0, 25.0, 45.0, 15.0]).repeat(VIEWS // 4)
    return orbit(azimuth, elevation, size=size)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a judge is asked of one view: which of these captions is it? The first is right."""

    texts: tuple[str, ...]  # with the view word, as a person who knows the front would be told
    pictures: Tensor  # [K, 3, S, S] the captions' exact pictures from this view


def ask(caption: Caption, camera: Cameras, source: random.Random) -> Question:
    """The caption and CHOICES - 1 hard negatives whose exact pictures differ visibly from its own.

    From behind a front is not to be seen, from the side one object hides another: no judge could tell.
    Nor could one that is told "side view", but not which side, tell the left object from the right.
    """
    word = view_word(float(camera.azimuth), float(camera.elevation))
    grey = torch.full((3,), BACKGROUND)
    captions, pictures = [caption], [ground_truth(caption, camera, grey).rgb]
    ordered = word in ("front", "back")
    for other in hard_negatives(caption, source, 3 * CHOICES, front_visible=True, order_visible=ordered):
        picture = ground_truth(other, camera, grey).rgb
        if len(captions) < CHOICES and float((picture - pictures[0]).square().mean()) > VISIBLE:
            captions.append(other)
            pictures.append(picture)
    return Question(texts=tuple(f"{c}, {word} view" for c in captions), pictures=torch.cat(pictures))


def questions(caption: Caption, cameras: Cameras) -> list[Question]:
    """One for each view, the same in every evaluation of a caption."""
    return [
        ask(caption, cameras[n : n + 1], random.Random(f"judge/{caption}/{n}")) for n in range(len(cameras))
    ]


def judged_right(judge: Judge, images: Tensor, asked: list[Question]) -> float:
    """Share of images [V, 3, S, S] for which the judge prefers the right caption."""
    right = 0
    for image, question in zip(images, asked, strict=True):
        with torch.no_grad():
            scores = judge(image.expand(len(question.texts), -1, -1, -1), question.texts)
        right += int(scores.argmax() == 0)
    return right / len(images)


def nearest_right(images: Tensor, asked: list[Question]) -> float:
    """Share of images [V, 3, S, S] that are nearer to the right exact picture than to any other."""
    nearest = [
        int((q.pictures - i).square().mean((1, 2, 3)).argmin()) for i, q in zip(images, asked, strict=True)
    ]
    return nearest.count(0) / len(nearest)


def compare(rgb: Tensor, alpha: Tensor, truth_rgb: Tensor, truth_alpha: Tensor) -> tuple[float, float, float]:
    """IoU of silhouettes, PSNR in dB, colour error; rgb [V, 3, S, S], alpha [V, 1, S, S]."""
    ours, theirs = alpha > 0.5, truth_alpha > 0.5
    both, either = (ours & theirs).sum((1, 2, 3)), (ours | theirs).sum((1, 2, 3))
    iou = (both / either.clamp_min(1)).mean()
    error = (rgb - truth_rgb).square().mean((1, 2, 3)).clamp_min(1e-10)
    color = ((rgb - truth_rgb).abs().mean(1, keepdim=True) * (ours & theirs)).sum((1, 2, 3)) / both.clamp_min(
        1
    )
    return float(iou), float((-10.0 * error.log10()).mean()), float(color.mean())


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What every evaluation of a caption compares with."""

    cameras: Cameras  # V
    rgb: Tensor  # [V, 3, S, S] exact pictures on grey
    alpha: Tensor  # [V, 1, S, S]
    asked: list[Question]


@functools.lru_cache(maxsize=16)  # it costs more than the rest, and many runs share a caption
def examination(caption: Caption, size: int) -> Examination:
    """The exact pictures from unseen views, and the judge's questions."""
    cameras = unseen_cameras(size)
    truth = ground_truth(caption, cameras, torch.full((3,), BACKGROUND))
    return Examination(cameras=cameras, rgb=truth.rgb, alpha=truth.alpha, asked=questions(caption, cameras))


def evaluate(splats: Splats, caption: Caption, judge: Judge, *, size: int = 64) -> Quality:
    """Compare splats with the caption's exact pictures from unseen views."""
    truth = examination(caption, size)
    cameras, asked = truth.cameras, truth.asked
    grey = torch.full((3,), BACKGROUND)
    with torch.no_grad():
        seen = render(splats, cameras.to(splats.means.device), grey.to(splats.means.device))
    rgb, alpha = seen.rgb.clamp(0, 1).cpu(), seen.alpha.cpu()
    iou, psnr, color = compare(rgb, alpha, truth.rgb, truth.alpha)
    return Quality(
        iou=iou,
        psnr=psnr,
        color_error=color,
        nearest_right=nearest_right(rgb, asked),
        judged_right=judged_right(judge, rgb, asked),
        judged_right_truth=judged_right(judge, truth.rgb, asked),
    )
