"""What each of the toybox's models is trained with."""

from __future__ import annotations

from dataclasses import dataclass

from splatgen.worlds.towers import RewardConfig
from splatgen.worlds.toybox.model import PriorConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a model is trained with; batch counts images."""

    net: PriorConfig | RewardConfig
    seed: int
    steps: int
    batch: int = 32
    lr: float = 1.2e-3
    warmup: int = 100
    ema: float = 0.999
    weight_decay: float = 1e-3
    fall: float = 0.25  # share of the steps over which the rate falls at the end
    seconds: float | None = None  # of training, at most
    negatives: int = 5  # hard captions an image (reward models)


RECIPES: dict[str, Recipe] = {
    "prior": Recipe(net=PriorConfig(), seed=1, steps=18_500),
    "reward": Recipe(net=RewardConfig(), seed=2, steps=2_400, batch=64),
    "judge": Recipe(
        net=RewardConfig(channels=(40, 96, 192), embed=128, text_width=128), seed=3, steps=7_000, batch=64
    ),
    "mini-prior": Recipe(
        net=PriorConfig(size=16, channels=(24, 32), text_width=32, text_layers=1, heads=2),
        seed=4,
        steps=6_000,
    ),
    "mini-reward": Recipe(
        net=RewardConfig(size=16, channels=(16, 32), embed=32, text_width=32, text_layers=1, heads=2),
        seed=5,
        steps=4_000,
        batch=64,
    ),
}
