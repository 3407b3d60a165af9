"""How good a picture looks, whatever it shows: LAION's predictors on CLIP ViT-L/14. Prompts are ignored.

Shapes: B images, D the width of CLIP's space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from splatgen.models.budget import LoadOptions
from splatgen.models.loading import fill, read_tensors
from splatgen.models.weights import find
from splatgen.rewards.clip import clip_config, embedded, image_tower
from splatgen.rewards.pictures import cropped, normalised

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

# mean and standard deviation, only to put rewards on one scale: the scores of generated pictures that are
# published lie mostly in 4..7, which is where the middle and a quarter are from
USUAL = {"aesthetic": (5.5, 0.75), "aesthetic-v2": (5.5, 0.75)}
V2_WIDTHS = (1024, 128, 64, 16, 1)


class AestheticReward:
    """A head on the unit vector of a picture in CLIP's space; trained on ratings of 1 to 10."""

    views = 1

    def __init__(
        self, *, name: str, image_tower: CLIPVisionModelWithProjection, head: nn.Module, source: str = ""
    ) -> None:
        self.name = name
        self.mean, self.spread = USUAL.get(name, (0.0, 1.0))
        self.source = source
        self.image_tower, self.head = image_tower, head

    def prepare(self, prompts: Sequence[str]) -> None:
        """Prompts are ignored."""

    def release(self) -> None:
        """It has no text tower."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in 0..1; in float32, or better if they are."""
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        pictures = normalised(cropped(images, self.image_tower.config.image_size))
        found: Tensor = self.head(embedded(self.image_tower, pictures))
        return found.squeeze(-1)


def load(load_options: LoadOptions) -> AestheticReward:
    """Aesthetic v1: linear (LAION's aesthetic-predictor, which RewardSDS uses)."""
    return _load("aesthetic", "sa_0_4_vit_l_14_linear.pth", lambda width: nn.Linear(width, 1), load_options)


def load_v2(load_options: LoadOptions) -> AestheticReward:
    """Aesthetic v2: several linear layers (Schuhmann's improved predictor, which DDPO uses)."""
    return _load("aesthetic-v2", "aesthetic-model.pth", _Layers, load_options)


def _load(
    name: str, file: str, head: Callable[[int], nn.Module], load_options: LoadOptions
) -> AestheticReward:
    found = find(name, load_options.weights)
    path, whole = found.folders["head"] / file, found.main / "model.safetensors"
    config = clip_config(found.main)
    tensors = read_tensors(path)
    return AestheticReward(
        name=name,
        image_tower=image_tower(config, read_tensors(whole), whole, load_options),
        head=fill(head(config.projection_dim), tensors, path).float().to(load_options.device),
        source=found.source,
    )


class _Layers(nn.Module):
    """Linear layers with dropout between them, as published: there is no non-linearity.

    Dropout does nothing outside training, but takes places: the linear layers are 0, 2, 4, 6 and 7.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, *V2_WIDTHS)
        linear = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(
            linear[0], nn.Dropout(), linear[1], nn.Dropout(), linear[2], nn.Dropout(), linear[3], linear[4]
        )

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.layers(vectors)
        return found
