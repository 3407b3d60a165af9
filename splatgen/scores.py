"""Scores: where the noise of a step comes from, and what is subtracted from the prediction."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Score(Protocol):
    """One way to turn a denoiser into a direction for x."""

    def noise(self, x: Tensor, t: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """The noise of candidate k, like x [B, C, h, w]."""

    def baseline(self, noise: Tensor) -> Tensor:
        """What is subtracted from the guided prediction, like x."""


class SDS:
    """Score distillation (Poole et al. 2022, eq. 3): Gaussian noise, and that same noise subtracted."""

    def noise(self, x: Tensor, t: Tensor, k: int, generator: torch.Generator) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x)

    def baseline(self, noise: Tensor) -> Tensor:
        return noise


SCORES = {"sds": SDS}
