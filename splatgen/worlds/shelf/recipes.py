"""What each of the shelf's models is trained with."""

from __future__ import annotations

from dataclasses import dataclass

from splatgen.worlds.shelf.model import AutoencoderConfig, PriorConfig
from splatgen.worlds.towers import RewardConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a model is trained with; batch counts images."""

    net: AutoencoderConfig | PriorConfig | RewardConfig
    seed: int
    steps: int
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    weight_decay: float = 1e-3
    fall: float = 0.3  # share of the steps over which the rate falls at the end
    seconds: float | None = None  # of training, at most; the rate falls toward their end
    negatives: int = 4  # hard captions an image (rewards)
    noises: int = 1  # levels of noise that an image is seen at (prior)


RECIPES: dict[str, Recipe] = {
    "autoencoder": Recipe(
        net=AutoencoderConfig(),
        seed=10,
        steps=3_500,
        batch=16,
        lr=2e-3,
        warmup=50,
        ema=0.995,
        weight_decay=1e-4,
        fall=0.5,
    ),
    "prior": Recipe(
        net=PriorConfig(rays=True),
        seed=11,
        steps=12_000,
        batch=256,
        noises=4,
        lr=1.6e-3,
        warmup=300,
        weight_decay=1e-2,
        fall=0.5,
    ),
    "reward": Recipe(
        net=RewardConfig(size=64, channels=(80, 128, 160), patch=4, activation="gelu"), seed=12, steps=9_000
    ),
    "judge": Recipe(
        net=RewardConfig(
            size=64, channels=(72, 120, 176), embed=112, text_width=104, patch=4, activation="gelu"
        ),
        seed=13,
        steps=14_000,
    ),
}
