"""How close splats are to the toybox's ground truth, from views that guided nothing.

Shapes: V views, S image side.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from splatgen.cameras import Cameras, orbit
from splatgen.prompts import view_word
from splatgen.render import render
from splatgen.rewards import Reward
from splatgen.splats import Splats
from splatgen.toybox.grammar import Caption
from splatgen.toybox.sampling import hard_negatives
from splatgen.toybox.world import ground_truth

VIEWS = 8
CHOICES = 6  # captions the judge chooses from: the true one and hard negatives
BACKGROUND = 0.5  # grey
VISIBLE = 1e-3  # mean squared difference of two pictures that can be told apart: 30 dB


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over the views. All compare with the exact picture of the caption."""

    iou: float  # of silhouettes, alpha above one half
    psnr: float  # dB, of the whole picture on grey
    color_error: float  # mean absolute RGB difference (0..1) where both silhouettes are
    judged_right: float  # share of views in which the judge picks the caption among CHOICES
    judged_right_truth: float  # the same for the exact pictures: what a perfect object would get

    def row(self) -> dict[str, float]:
        return asdict(self)


def unseen_cameras(size: int) -> Cameras:
    """Eight fixed views all around, at four heights."""
    azimuth = torch.arange(VIEWS) * (360.0 / VIEWS) + 11.0
    elevation = torch.tensor([5.0, 25.0, 45.0, 15.0]).repeat(VIEWS // 4)
    return orbit(azimuth, elevation, size=size)


def telling_negatives(
    caption: Caption, camera: Cameras, truth: Tensor, source: random.Random
) -> list[Caption]:
    """Hard negatives whose exact picture from this camera differs visibly from the caption's [1, 3, S, S].

    From behind a front is not to be seen, from the side one object hides another: no judge could tell.
    """
    found: list[Caption] = []
    for other in hard_negatives(caption, source, 3 * CHOICES, front_visible=True):
        picture = ground_truth(other, camera, torch.full((3,), BACKGROUND), supersample=2).rgb
        if float((picture - truth).square().mean()) > VISIBLE:
            found.append(other)
    return found[: CHOICES - 1]


def judge_views(judge: Reward, images: Tensor, caption: Caption, cameras: Cameras, truth: Tensor) -> float:
    """Share of images [V, 3, S, S] for which the caption beats every negative of that view.

    The judge is told the view word, as a person who knows the front would be. truth [V, 3, S, S] are the
    caption's exact pictures.
    """
    right = 0
    for n in range(len(images)):
        view = cameras[n : n + 1]
        word = view_word(float(view.azimuth), float(view.elevation))
        others = telling_negatives(caption, view, truth[n : n + 1], random.Random(f"judge/{caption}/{n}"))
        texts = [f"{text}, {word} view" for text in (caption, *others)]
        with torch.no_grad():
            scores = judge(images[n : n + 1].expand(len(texts), -1, -1, -1), texts)
        right += int(scores.argmax() == 0)
    return right / len(images)


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


def evaluate(splats: Splats, caption: Caption, judge: Reward, *, size: int = 64) -> Quality:
    """Compare splats with the caption's exact pictures from unseen views."""
    cameras = unseen_cameras(size)
    grey = torch.full((3,), BACKGROUND)
    truth = ground_truth(caption, cameras, grey)
    with torch.no_grad():
        seen = render(splats, cameras.to(splats.means.device), grey.to(splats.means.device))
    rgb, alpha = seen.rgb.clamp(0, 1).cpu(), seen.alpha.cpu()
    iou, psnr, color = compare(rgb, alpha, truth.rgb, truth.alpha)
    return Quality(
        iou=iou,
        psnr=psnr,
        color_error=color,
        judged_right=judge_views(judge, rgb, caption, cameras, truth.rgb),
        judged_right_truth=judge_views(judge, truth.rgb, caption, cameras, truth.rgb),
    )
