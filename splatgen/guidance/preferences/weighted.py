"""Candidate noises weighted by reward: RewardSDS, RewardVSD.

Shapes: B views, G items, K candidates, M of them kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from splatgen.config import WeightedOptions
from splatgen.guidance.denoiser import Guided
from splatgen.guidance.inversion import falling, walk
from splatgen.guidance.moment import Moment
from splatgen.guidance.preferences.base import Choice, Preference, judge, reward_metrics
from splatgen.rewards.ensemble import RewardEnsemble

ALIKE = 1e-9  # rewards that differ by less are equal


class Weighted(Preference):
    """Reward-weighted sampling (RewardSDS, arXiv 2503.09601, eq. 4 and 5): sum_i omega_i residual_i.

    N noises at one time, each judged on its estimate after a short deterministic denoising with guidance;
    after `stop` of the run a plain score. Any score: with vsd it is RewardVSD.

    The paper divides the sum by N (normalise = "paper"); its 3D code takes means over the best and over the
    worst (the default here), its 2D code a quarter of that. Its 2D code starts the denoising from the
    nearest lower level of a grid; this one, like the 3D code, from t itself. Both codes can take the same
    candidate as best and as worst, and let a NaN win: `omegas` does neither.
    """

    def __init__(self, options: WeightedOptions) -> None:
        self.options = options

    def candidates(self, fraction: float) -> int:
        return self.options.candidates if self.options.start <= fraction < self.options.stop else 1

    def choose(self, moment: Moment, x_t: Tensor, tries: Guided, ensemble: RewardEnsemble) -> Choice:
        if len(x_t) == 1:
            return Preference.choose(self, moment, x_t, tries, ensemble)
        rewards = judge(moment, self._look_ahead(moment, x_t, tries), ensemble)
        columns = [omegas(column, self.options) for column in rewards.T.cpu()]
        weights = torch.stack(columns, 1)  # [K, G]
        ranked = torch.where(weights != 0, rewards.cpu().nan_to_num(), -torch.inf)
        order = ranked.argsort(dim=0, descending=True, stable=True)
        order = order[: max(int((weights != 0).sum(0).max()), 1)]  # [M, G] the best first
        return Choice(
            kept=moment.views(order).to(x_t.device),
            weights=moment.views(weights.gather(0, order)).to(x_t.device),
            rewards=rewards,
            metrics=reward_metrics(rewards),
        )

    def _look_ahead(self, moment: Moment, x_t: Tensor, tries: Guided) -> Tensor:
        """Estimates after up to `lookahead` steps; the first step's predictions are there already."""
        scale = moment.scale if self.options.scale is None else self.options.scale
        if scale == moment.scale:
            first = tries
        elif tries.base is None:
            first = moment.guided(x_t, scale=scale)
        else:
            flat, t = tries.map(lambda z: z.flatten(0, 1)), moment.t.repeat(len(x_t))
            x = x_t.flatten(0, 1)
            first = moment.denoiser.finish(x, t, flat.conditional, flat.base, flat.direction, scale)
            first = first.map(lambda z: z.view(x_t.shape))
        if self.options.lookahead == 1:
            return first.x0
        levels = falling(moment.t, self.options.lookahead)
        return walk(moment, x_t, levels, scale=scale, plain=False, first=first)


def omegas(rewards: Tensor, options: WeightedOptions) -> Tensor:
    """Weights [K] of one item's rewards [K]; what is not finite gets none.

    Equal rewards: softmax and min-max weigh all alike, best takes the first. With no finite reward the
    first candidate stands alone, which is the plain score.
    """
    good = torch.isfinite(rewards).nonzero().flatten()
    weights = torch.zeros_like(rewards)
    if not len(good):
        weights[0] = 1.0
        return weights
    scores = rewards[good]
    order = good[scores.argsort(descending=True, stable=True)]
    paper = 1.0 / len(rewards)
    if options.strategy == "softmax":
        weights[good] = ((scores - scores.max()) / options.temperature).exp()
        weights /= weights.sum()
        return weights * paper if options.normalise == "paper" else weights
    if options.strategy == "best":
        best = order[: options.top]
        weights[best] = paper if options.normalise == "paper" else 1.0 / len(best)
        return weights
    if float(scores.max() - scores.min()) < ALIKE:
        weights[good] = 1.0 / len(good)
        return weights
    top, bottom = options.top, options.bottom
    if top + bottom > len(order):  # some are not finite: the ends must not meet
        top = min(top, max(len(order) // 2, 1))
        bottom = min(bottom, len(order) - top)
    weights[order[:top]] = options.top_weight * (paper if options.normalise == "paper" else 1.0 / top)
    if bottom:
        share = paper if options.normalise == "paper" else 1.0 / bottom
        weights[order[len(order) - bottom :]] = -options.bottom_weight * share
    return weights
