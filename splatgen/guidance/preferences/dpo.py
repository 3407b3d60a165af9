"""Winner less loser: DreamDPO. Shapes: B views, G items, K = 2 candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from splatgen.config import DPOOptions
from splatgen.guidance.denoiser import Guided
from splatgen.guidance.moment import Moment
from splatgen.guidance.preferences.base import Choice, Preference, judge, reward_metrics
from splatgen.guidance.preferences.pairs import compare
from splatgen.rewards.ensemble import RewardEnsemble


class DPO(Preference):
    """DreamDPO (arXiv 2502.04370): winner less loser of two noises, judged on their one-step estimates.

    G = w(t) [(e - n) of the winner - (e - n) of the loser]; the winner alone where the rewards are closer
    than the gap, or where one is not finite. The official code takes the loser's prediction without
    guidance (form = "code"); in its small-gap branch it also forgets to subtract the winner's noise, and it
    decides for each view of a group: neither is offered.
    """

    def __init__(self, options: DPOOptions) -> None:
        self.options = options

    def candidates(self, fraction: float) -> int:
        return 2

    def choose(self, moment: Moment, x_t: Tensor, tries: Guided, ensemble: RewardEnsemble) -> Choice:
        rewards = judge(moment, tries.x0, ensemble)
        pair = compare(rewards)
        against = -(pair.gap >= self.options.gap).to(rewards)  # NaN compares false: the winner alone
        return Choice(
            kept=pair.kept(moment),
            weights=moment.views(torch.stack([torch.ones_like(against), against])),
            rewards=rewards,
            paired=True,
            metrics={**reward_metrics(rewards), "preference/small_gaps": (against == 0).sum()},
        )

    def combine(self, moment: Moment, tries: Guided, residuals: Tensor, choice: Choice) -> Tensor:
        if self.options.form == "code":
            lost = residuals[1] - tries.eps[1] + tries.conditional[1]
            residuals = torch.stack([residuals[0], lost])
        return Preference.combine(self, moment, tries, residuals, choice)
