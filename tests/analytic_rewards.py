"""Rewards that are known in closed form, and how the tests of preferences are run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from analytic import GroupPrior
from torch import Tensor

from splatgen.config import RewardOptions
from splatgen.guidance.scores import SDS, Noised
from splatgen.rewards import Reward
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.runs.rng import rng


class Formula:
    """What all rewards here share."""

    source = "a formula"

    def prepare(self, prompts: Sequence[str]) -> None:
        """Every prompt will do."""

    def release(self) -> None:
        """Nothing to free."""


@dataclass
class Linear(Formula):
    """scale times the mean product with a fixed picture; counts its calls and images."""

    scale: float = 1.0
    seed: int = 0
    name: str = "linear"
    views: int = 1
    mean: float = 0.0
    spread: float = 1.0
    batches: list[int] = field(default_factory=list)

    def picture(self, images: Tensor) -> Tensor:
        return torch.randn(images.shape[1:], generator=rng(self.seed, 0, "picture")).to(images)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        assert len(images) == len(prompts)
        self.batches.append(len(images))
        return self.scale * (images * self.picture(images)).flatten(1).mean(1)


@dataclass
class Near(Linear):
    """Minus the mean square distance from a fixed picture: smooth, and highest at the picture."""

    name: str = "near"

    def picture(self, images: Tensor) -> Tensor:
        return torch.rand(images.shape[1:], generator=rng(self.seed, 0, "near")).to(images)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -self.scale * (images - self.picture(images)).square().flatten(1).mean(1)


@dataclass
class Given(Formula):
    """Scores that are given for each call, [M]; keeps the images it saw and their prompts."""

    values: Tensor
    name: str = "given"
    views: int = 1
    mean: float = 0.0
    spread: float = 1.0
    images: Tensor | None = None
    prompts: Sequence[str] = ()

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.images, self.prompts = images, prompts
        assert len(images) == self.values.numel()
        return self.values.flatten().to(images)


class Seen(GroupPrior):
    """A smooth prior that keeps the size of every batch, and whose pictures lose nothing of x."""

    def __init__(self, views: int = 1) -> None:
        super().__init__(views)
        self.batches: list[int] = []

    def decode(self, x: Tensor) -> Tensor:
        return 0.5 + x.atan() / math.pi

    def predict(self, x_t: Tensor, *args: object) -> Tensor:
        self.batches.append(len(x_t))
        return super().predict(x_t, *args)  # type: ignore[arg-type]


class GivenNoise(SDS):
    """SDS with noises [K, B, C, h, w] that are given."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def noises(self, moment: object, count: int) -> Noised:
        assert len(self.noise) == count
        return Noised(noise=self.noise)


def ensemble(*rewards: Reward, weights: Sequence[float] = (), **options: object) -> RewardEnsemble:
    return RewardEnsemble(
        rewards=rewards,
        weights=tuple(weights) or (1.0,) * len(rewards),
        options=RewardOptions(**options),  # type: ignore[arg-type]
    )


def image(purpose: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(tuple(shape), generator=rng(0, 0, purpose)).double()
