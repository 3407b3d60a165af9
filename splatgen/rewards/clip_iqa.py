"""CLIP-IQA (Wang et al. 2023, arXiv 2207.12396): is a picture nearer to "Good photo." or to "Bad photo."?

The paper takes CLIP's ResNet-50 without its places, on pictures as large as they are; here it is ViT-L/14 at
224 pixels, as torchmetrics has it for transformers' models. The two are not comparable. Prompts are ignored.

Shapes: B images, D the width of CLIP's space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splatgen.models.budget import LoadOptions
from splatgen.rewards import clip
from splatgen.rewards.pictures import cropped, normalised

NAME = "clip-iqa"
PAIR, SCALE = ("Good photo.", "Bad photo."), 100.0
# mean and standard deviation, only to put rewards on one scale: of a probability that may be anything
USUAL = (0.5, 0.25)


class ClipIqa:
    """The softmax over both texts of 100 x cosine, at the good one."""

    name = NAME
    views = 1
    mean, spread = USUAL

    def __init__(self, score: clip.ClipReward) -> None:
        self.image_tower, self.source = score.image_tower, score.source
        self._texts = score.embed_tokens(score.tokens(PAIR))  # [2, D]
        score.release()

    def prepare(self, prompts: Sequence[str]) -> None:
        """Prompts are ignored."""

    def release(self) -> None:
        """Its text tower is gone already."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] from 0 to 1 of images [B, 3, H, W] in 0..1; in float32, or better if they are."""
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        pictures = normalised(cropped(images, self.image_tower.config.image_size))
        seen = clip.embedded(self.image_tower, pictures)
        return (SCALE * seen @ self._texts.to(seen.dtype).T).softmax(-1)[:, 0]


def load(load_options: LoadOptions) -> ClipIqa:
    """With the weights of the CLIP score."""
    return ClipIqa(clip.load(load_options, NAME))
