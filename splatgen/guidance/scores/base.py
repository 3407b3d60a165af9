"""What a score is. Shapes: B views, K candidates, M of them kept, C x h x w the prior's space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from splatgen.guidance.denoiser import Guided, gather
from splatgen.guidance.moment import Moment
from splatgen.guidance.noise_field import consistent, field_seed
from splatgen.scene.uploads import upload

Metrics = dict[str, float | Tensor]  # tensors [] are read when somebody logs them

LATEST = 0.999  # time: at 1 nothing of the render is left


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Noises of the candidates, and what came with them."""

    noise: Tensor  # [K, B, C, h, w]
    baseline: Tensor | None = None  # [K, B, C, h, w] where the noise brings its own

    def gather(self, kept: Tensor) -> Noised:
        """The candidates `kept` [M, B] of each view."""
        baseline = None if self.baseline is None else gather(self.baseline, kept)
        return Noised(noise=gather(self.noise, kept), baseline=baseline)


class Score(Protocol):
    """One way to turn a denoiser into a direction for x: residual = prediction - baseline."""

    times: str = "random"  # what --guidance.times auto means for it
    weighting: str = "uniform"  # what --guidance.weighting auto means for it
    asks: bool = False  # whether its baseline asks a network

    def seen(self, moment: Moment) -> Moment:
        """The step as the candidates are predicted and judged: by other prompts, for some scores."""
        return moment

    def noises(self, moment: Moment, count: int) -> Noised:
        """Noises of `count` candidates."""

    def refined(self, moment: Moment, x_t: Tensor, guided: Guided) -> Guided:
        """Predictions of the kept candidates x_t [M, B, C, h, w], by more steps where a score asks."""
        return guided

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        """What is subtracted from guided.eps [M, B, C, h, w]."""

    def learn(self, moment: Moment) -> Metrics:
        """Train what the score trains, if anything; returns what to log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        if state:
            raise ValueError("the checkpoint holds what another score learned: resume with that one")


def gaussian(moment: Moment, count: int, purpose: str = "noise") -> Tensor:
    """Standard normal noise [K, B, C, h, w]; the first candidates are the same whatever the count.

    Fresh in every view, or of one field around the object for each candidate.
    """
    if moment.surface is not None:
        fields = (field_seed(moment.seed, purpose, k) for k in range(count))
        found = torch.stack([consistent(moment.surface, moment.x.shape, seed) for seed in fields])
        return found.to(moment.x)
    generator = moment.rng(purpose)
    noise = torch.stack([torch.randn(moment.x.shape, generator=generator) for _ in range(count)])
    return upload(noise, moment.x.device).to(moment.x.dtype)
