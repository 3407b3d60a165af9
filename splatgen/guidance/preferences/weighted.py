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
    nearest lower level of a grid; this one, like the 3D code, from t itself, through multiples of 1/S or
    through the levels of that code (levels = "code"). Both codes can take the same
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
        weights = omegas(rewards.T.contiguous(), self.options).T  # [K, G]
        ranked = torch.where(weights != 0, rewards.nan_to_num(), -torch.inf)
        most = self.options.top if self.options.strategy == "best" else len(ranked)  # equal ones all count
        order = ranked.argsort(dim=0, descending=True, stable=True)[:most]  # [M, G] the best first
        return Choice(
            kept=moment.views(order),
            weights=moment.views(weights.gather(0, order)),
            rewards=rewards,
            metrics=reward_metrics(rewards),
        )

    def _look_ahead(self, moment: Moment, x_t: Tensor, tries: Guided) -> Tensor:
        """Estimates after up to `lookahead` steps; the first step's predictions are there already.

        Without rescaling, as the official code scores.
        """
        o, null_scale = self.options, moment.null_scale
        scale = moment.scale if o.scale is None else o.scale
        first = tries
        if tries.base is None and scale != moment.scale:
            first = moment.guided(x_t, scale=scale, null_scale=null_scale, rescaled=False)
        elif scale != moment.scale or moment.denoiser.options.rescale > 0:
            z, t = tries.map(lambda z: z.flatten(0, 1)), moment.t.repeat(len(x_t))
            first = moment.denoiser.finish(
                x_t.flatten(0, 1),
                t,
                z.conditional,
                z.base,
                z.direction,
                scale,
                rescaled=False,
                beyond=z.beyond,
            )
            first = first.map(lambda z: z.view(x_t.shape))
        if o.lookahead == 1:
            return first.x0
        levels = falling(moment.times, o.lookahead, closed=o.levels == "code")
        return walk(
            moment,
            x_t,
            levels,
            scale=scale,
            null_scale=null_scale,
            plain=False,
            rescaled=False,
            first=first,
        )


def omegas(rewards: Tensor, options: WeightedOptions) -> Tensor:
    """Weights [..., K] of the rewards [..., K] of an item; what is not finite gets none.

    Equal rewards: softmax and min-max weigh all alike, best takes the first. With no finite reward the
    first candidate stands alone, which is the plain score. Nothing here waits for the device.
    """
    good = torch.isfinite(rewards)
    count = good.sum(-1, keepdim=True)
    safe = torch.where(good, rewards, -torch.inf)
    rank = safe.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # 0 is the best
    best = safe.amax(-1, keepdim=True)
    if options.strategy == "softmax":
        weights = torch.where(good, ((rewards - best) / options.temperature).exp(), 0.0)
        weights = weights / weights.sum(-1, keepdim=True)
        weights = weights * (1.0 / rewards.shape[-1]) if options.normalise == "paper" else weights
    elif options.strategy == "best":
        weights = ends(rank, count, options, top=count.clamp_max(options.top), bottom=0 * count)
    else:
        top, bottom = meeting(count, options)
        apart = best - torch.where(good, rewards, torch.inf).amin(-1, keepdim=True) >= ALIKE
        weights = torch.where(apart, ends(rank, count, options, top=top, bottom=bottom), 1.0 / count.double())
    alone = (torch.arange(rewards.shape[-1], device=rewards.device) == 0).double()
    return torch.where(count > 0, torch.where(good, weights, 0.0), alone).to(rewards.dtype)


def meeting(count: Tensor, options: WeightedOptions) -> tuple[Tensor, Tensor]:
    """How many of `count` good candidates are at the top and at the bottom: the ends must not meet."""
    crowded = options.top + options.bottom > count
    half = (count // 2).clamp_min(1)
    top = torch.where(crowded, half.clamp_max(options.top), options.top)
    bottom = torch.where(crowded, (count - top).clamp_max(options.bottom), options.bottom)
    return top, bottom


def ends(rank: Tensor, count: Tensor, options: WeightedOptions, *, top: Tensor, bottom: Tensor) -> Tensor:
    """Weights of the first `top` and the last `bottom` in rank, in float64: means, or shares of N."""
    first, last = rank < top, (rank >= count - bottom) & (rank < count)
    high, low = (1.0, 0.0) if options.strategy == "best" else (options.top_weight, -options.bottom_weight)
    if options.normalise == "paper":
        share = 1.0 / rank.shape[-1]
        return high * share * first.double() + low * share * last.double()
    shares = (1.0 / z.clamp_min(1).double() for z in (top, bottom))
    return sum(
        (
            torch.where(where, weight * share, 0.0)
            for where, weight, share in zip((first, last), (high, low), shares, strict=True)
        ),
        torch.zeros_like(rank, dtype=torch.float64),
    )
