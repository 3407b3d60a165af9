"""What a preference is, and how candidates are judged.

A preference chooses candidates for every item, then combines their residuals. Views of one item share
every decision.

Shapes: B views, G items, K candidates, M of them kept, C x h x w the prior's space, H x W the render.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from splatgen.guidance.denoiser import Guided
from splatgen.guidance.moment import Moment
from splatgen.guidance.scores.base import Metrics
from splatgen.priors import Conditioning
from splatgen.rewards.ensemble import RewardEnsemble


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which candidates of every view count, and how much."""

    kept: Tensor  # [M, B] indices of candidates
    weights: Tensor  # [M, B]
    rewards: Tensor | None = None  # [K, G] of all candidates, as they were ranked
    metrics: Metrics = field(default_factory=dict)
    paired: bool = False  # the two that are kept are a winner and a loser


class Preference(Protocol):
    """One way to merge candidates."""

    def candidates(self, fraction: float) -> int:
        """Noises an item at a fraction of the run."""
        return 1

    def negative(self, given: Conditioning) -> Conditioning:
        """The negative conditioning (one row) to guide with."""
        return given

    def choose(self, moment: Moment, x_t: Tensor, tries: Guided, ensemble: RewardEnsemble) -> Choice:
        """Rank the candidates, x_t and predictions [K, B, C, h, w]."""
        ones = torch.ones(1, len(moment.x), device=moment.x.device)
        return Choice(kept=torch.zeros_like(ones, dtype=torch.long), weights=ones)

    def combine(self, moment: Moment, tries: Guided, residuals: Tensor, choice: Choice) -> Tensor:
        """The kept predictions and residuals [M, B, C, h, w] as one direction [B, C, h, w]."""
        weights = choice.weights.to(residuals)[:, :, None, None, None]
        return torch.where(weights != 0, weights * residuals, 0.0).sum(0)  # 0 times NaN would be NaN

    def on_render(
        self, moment: Moment, x0: Tensor, value: Tensor, w: Tensor, ensemble: RewardEnsemble
    ) -> Tensor | None:
        """A gradient with respect to the render [B, 3, H, W], beside value, which is G [B, C, h, w].

        x0 [B, C, h, w] is the estimate of the first kept candidate, w [B, 1, 1, 1] the weight of the time.
        """
        return None

    def learn(self, moment: Moment, x_t: Tensor, tries: Guided, ensemble: RewardEnsemble) -> Metrics:
        """Train what the preference trains, if anything, on the first kept candidate [B, C, h, w]."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        if state:
            raise ValueError("the checkpoint holds what another preference learned: resume with that one")


class NoPreference(Preference):
    """The plain score: a single candidate."""


def judge(moment: Moment, x0: Tensor, ensemble: RewardEnsemble) -> Tensor:
    """Rewards [K, G] of estimates [K, B, C, h, w]; the mean over the views of an item."""
    flat, prompts, views = x0.flatten(0, 1), moment.prompts * len(x0), moment.prior.views
    part = max(ensemble.options.batch // views, 1) * views if ensemble.options.batch else len(flat)
    pieces = []
    with torch.no_grad():
        for n in range(0, len(flat), part):  # decoding many at once is what takes the memory
            images = moment.prior.preview(flat[n : n + part]).clamp(0.0, 1.0)
            pieces.append(ensemble.each(images, prompts[n : n + part]))
    raw = torch.cat(pieces, 1)  # [R, K B]
    return ensemble.ranked(moment.items(raw.view(len(raw), len(x0), -1)))


def reward_metrics(rewards: Tensor) -> Metrics:
    """What to log of rewards [K, G]; where none is finite, only that."""
    finite = torch.isfinite(rewards)
    count = finite.sum()
    return {
        "preference/bad_rewards": rewards.numel() - count,
        "preference/reward_mean": torch.where(finite, rewards, 0.0).sum() / count,
        "preference/reward_best": torch.where(finite, rewards, -torch.inf).max(),
        "preference/reward_worst": torch.where(finite, rewards, torch.inf).min(),
    }
