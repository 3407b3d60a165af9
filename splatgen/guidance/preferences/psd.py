"""Preference score distillation: win/lose pairs, an adaptive scale, a learned negative embedding.

Shapes: B views, R of them, G items, K = 2 candidates, C x h x w the prior's space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from splatgen.config import PSDOptions
from splatgen.guidance.conditioning import repeat
from splatgen.guidance.denoiser import Guided
from splatgen.guidance.inversion import ddim_step
from splatgen.guidance.moment import Moment
from splatgen.guidance.preferences.base import Choice, Preference, judge, reward_metrics
from splatgen.guidance.preferences.pairs import compare
from splatgen.priors import Conditioning
from splatgen.rewards.ensemble import RewardEnsemble


class PSD(Preference):
    """Preference score distillation (arXiv 2603.01594): win/lose pair, adaptive scale, learned negative.

        G = w(t) (d_gen + gamma d_cls + beta d_pref),     gamma = guidance scale - 1
        d_gen + gamma d_cls = e_win - n_win,   d_pref = (e_win - rho n_win) - (e_lose - rho n_lose)
        beta = gamma |d_cls| / |d_pref| sigmoid(-(r_win - r_lose) / temperature)

    with the norms over all elements of an item, in float32 or better. Only the paper's abstract and a blog
    post were at hand: rho = 1 follows from the theory (the score of the render's own noising kernel), rho = 0
    is the blog's formula; the scope of the norms, and the restriction of the learning to times up to
    t_limit, are ours. The negative embedding starts as the given negative prompt and climbs the reward of
    the winner's one-step estimate every few steps, at a rate that falls to 0 late in the run.
    """

    def __init__(self, options: PSDOptions) -> None:
        self.options = options
        self._learned: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Adam | None = None
        self._saved: Mapping[str, Any] | None = None

    def candidates(self, fraction: float) -> int:
        return 2

    def negative(self, given: Conditioning) -> Conditioning:
        if not self.options.learn:
            return given
        if self._optimizer is None:
            self._learned = {k: v.detach().clone() for k, v in given.items() if v.is_floating_point()}
            self._optimizer = torch.optim.Adam(list(self._learned.values()), lr=self.options.lr)
            if self._saved is not None:
                self._restore(self._saved)
        return {**given, **self._learned}

    def choose(self, moment: Moment, x_t: Tensor, tries: Guided, ensemble: RewardEnsemble) -> Choice:
        rewards = judge(moment, tries.x0, ensemble)
        pair = compare(rewards)
        strength = torch.sigmoid(-pair.gap / self.options.temperature)
        strength = torch.where(pair.gap >= self.options.gap, strength, 0.0)  # 0 for NaN, too
        return Choice(
            kept=pair.kept(moment),
            weights=moment.views(torch.stack([torch.ones_like(strength), strength])),
            rewards=rewards,
            metrics={
                **reward_metrics(rewards),
                "preference/gap": float(pair.gap.nan_to_num().mean()),
                "preference/strength": float(strength.mean()),
            },
        )

    def combine(self, moment: Moment, tries: Guided, residuals: Tensor, choice: Choice) -> Tensor:
        noises = tries.eps - residuals
        win, lose = residuals + (1.0 - self.options.rho) * noises
        views = moment.prior.views
        pull, push = item_norms(tries.classifier[0], views), item_norms(win - lose, views)
        ratio = torch.where(push > 0, pull / push.clamp_min(torch.finfo(push.dtype).tiny), 0.0)
        beta = ratio * choice.weights[1].to(ratio)[:, None, None, None]
        added = torch.where(beta != 0, beta * (win - lose), 0.0)  # 0 times NaN would be NaN
        merged: Tensor = residuals[0] + added.to(residuals)
        return merged

    def learn(self, moment: Moment, x_t: Tensor, tries: Guided, ensemble: RewardEnsemble) -> dict[str, float]:
        o = self.options
        rows = moment.views((moment.items(moment.t) <= o.t_limit).float()).nonzero().flatten()
        if not o.learn or moment.step % o.interval or not len(rows) or self._optimizer is None:
            return {}
        reward, gradients = self._reward_gradient(moment, rows, x_t, tries, ensemble)
        if not all(bool(torch.isfinite(z).all()) for z in (reward, *gradients)):
            return {"preference/bad_negative": 1.0}
        for value, gradient in zip(self._learned.values(), gradients, strict=True):
            value.grad = -gradient  # Adam descends
        left = (1.0 - moment.fraction) / max(o.anneal, 1e-9)
        self._optimizer.param_groups[0]["lr"] = o.lr * min(left, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {"preference/negative_reward": float(reward)}

    def _reward_gradient(
        self, moment: Moment, rows: Tensor, x_t: Tensor, tries: Guided, ensemble: RewardEnsemble
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mean reward of the estimates of some views, and its gradient with respect to the negative."""
        prior, t = moment.prior, moment.t[rows]
        learned = {name: value.detach().requires_grad_() for name, value in self._learned.items()}
        fixed = {name: value[rows] for name, value in moment.conditions.negative.items()}
        if tries.base is None or tries.direction is None:
            raise ValueError("psd learns its negative through guidance: give a guidance scale other than 1")
        e_y, aside = tries.conditional[rows], (tries.direction - tries.conditional + tries.base)[rows]
        with torch.enable_grad():
            negative = {**fixed, **repeat(learned, len(rows))}
            e_n = moment.denoiser.raw(x_t[rows], t, negative, moment.cameras[rows])
            eps = e_n + moment.scale * (e_y - e_n + aside)  # aside: Perp-Neg's part
            x0 = ddim_step(prior, x_t[rows], eps, t, torch.zeros_like(t))
            prompts = [moment.prompts[n] for n in rows.tolist()]
            raw = ensemble.each(prior.decode(x0).clamp(0.0, 1.0), prompts)
            reward = ensemble.fixed(raw).mean()
            gradients = torch.autograd.grad(reward, list(learned.values()))
        return reward.detach(), gradients

    def state_dict(self) -> dict[str, Any]:
        if self._optimizer is None:  # stopped before the first step
            return dict(self._saved or {})
        return {"negative": dict(self._learned), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        if self._optimizer is None:
            self._saved = state  # the first call of `negative` knows the shapes and the device
        else:
            self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, value in self._learned.items():
            value.copy_(state["negative"][name])
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        self._saved = None


def item_norms(z: Tensor, views: int) -> Tensor:
    """Norm over all elements of each item, for every view of it, [B, 1, 1, 1]; z is [B, C, h, w]."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))  # float16 would overflow
    norms: Tensor = z.reshape(len(z) // views, -1).norm(dim=1)
    return norms.repeat_interleave(views).view(-1, 1, 1, 1)
