"""Priors whose predictions are known in closed form, and other helpers of the optimisation's tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from splatgen.cameras import Cameras


class GaussianPrior:
    """The denoiser of data distributed as N(mean(camera), spread^2) around one image a camera.

        x_t ~ N(alpha mean, alpha^2 spread^2 + sigma^2),
        eps(x_t) = sigma (x_t - alpha mean) / (alpha^2 spread^2 + sigma^2)

    An empty prompt has a mean of 0 (mid-grey). `calls` counts images through the denoiser.
    """

    name = "gaussian"
    views = 1

    def __init__(
        self,
        mean: Callable[[Cameras], Tensor],  # -> [B, C, h, w] in the prior's space
        *,
        spread: float = 0.0,
        resolution: int = 16,
        x_range: tuple[float, float] | None = (-1.0, 1.0),
    ) -> None:
        self.mean = mean
        self.spread = spread
        self.resolution = resolution
        self.x_range = x_range
        self.calls = 0

    def encode(self, images: Tensor) -> Tensor:
        return 2.0 * images - 1.0

    def decode(self, x: Tensor) -> Tensor:
        return (0.5 * (x + 1.0)).clamp(0.0, 1.0)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = (math.pi / 2 * t)[:, None, None, None]
        return angle.cos(), angle.sin()

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"known": torch.tensor([float(bool(p.strip())) for p in prompts], dtype=torch.float64)}

    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor], cameras: Cameras) -> Tensor:
        self.calls += len(x_t)
        mean = condition["known"].to(x_t)[:, None, None, None] * self.mean(cameras).to(x_t)
        alpha, sigma = self.alpha_sigma(t)
        return sigma * (x_t - alpha * mean) / (alpha**2 * self.spread**2 + sigma**2)


def expected_direction(x: Tensor, mean: Tensor, alpha: Tensor, sigma: Tensor, spread: float) -> Tensor:
    """E over noises of eps_hat - eps for `GaussianPrior` at guidance scale 1."""
    return sigma * alpha * (x - mean) / (alpha**2 * spread**2 + sigma**2)
