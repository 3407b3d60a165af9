"""Several rewards as one: standardised, weighted, and each on its own for the metrics.

Shapes: R rewards, B images, K candidates, G items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splatgen.config import RewardOptions
from splatgen.rewards import Reward
from splatgen.scene.uploads import upload


@dataclass(frozen=True, kw_only=True)
class RewardEnsemble:
    """The rewards that guide a run."""

    rewards: tuple[Reward, ...]
    weights: tuple[float, ...]
    options: RewardOptions

    @property
    def units(self) -> str:
        """raw, standard or candidates."""
        if self.options.units == "auto":
            return "raw" if len(self.rewards) == 1 else "standard"
        return self.options.units

    def each(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Raw scores [R, B] of images [B, 3, H, W] in 0..1; differentiable."""
        return torch.stack([self._scores(reward, images, prompts) for reward in self.rewards])

    def _scores(self, reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
        part = (
            max(self.options.batch // reward.views, 1) * reward.views if self.options.batch else len(images)
        )
        pieces = [reward(images[n : n + part], prompts[n : n + part]) for n in range(0, len(images), part)]
        return torch.cat(pieces).to(images.dtype)

    def fixed(self, raw: Tensor) -> Tensor:
        """The weighted sum [...] of raw scores [R, ...] in units that do not depend on other images."""
        if self.units != "raw":
            raw = (raw - self._column([r.mean for r in self.rewards], raw)) / self._column(
                [r.spread for r in self.rewards], raw
            )
        return (self._column(self.weights, raw) * raw).sum(0)

    def ranked(self, raw: Tensor) -> Tensor:
        """The weighted sum [K, G] of raw scores [R, K, G] of the candidates of every item."""
        if self.units != "candidates":
            return self.fixed(raw)
        finite = torch.isfinite(raw)
        count = finite.sum(1, keepdim=True).clamp_min(1)
        mean = torch.where(finite, raw, 0.0).sum(1, keepdim=True) / count
        variance = torch.where(finite, (raw - mean).square(), 0.0).sum(1, keepdim=True) / count
        standard = (raw - mean) / (variance.sqrt() + 1e-8)
        return (self._column(self.weights, raw) * standard).sum(0)

    @staticmethod
    def _column(values: Sequence[float], like: Tensor) -> Tensor:
        column = upload(torch.tensor(values, dtype=like.dtype), like.device)
        return column.view(-1, *[1] * (like.dim() - 1))
