"""Preference score distillation: win/lose pairs, an adaptive scale, a learned negative embedding.

Shapes: B views, R of them, G items, K = 2 candidates, C x h x w the prior's space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from splatgen.config import PSDOptions
from splatgen.guidance.conditioning import repeat, take
from splatgen.guidance.denoiser import Guided
from splatgen.guidance.inversion import ddim_step
from splatgen.guidance.moment import Moment
from splatgen.guidance.preferences.base import Choice, Preference, judge, reward_metrics
from splatgen.guidance.preferences.pairs import compare
from splatgen.guidance.scores.base import Metrics
from splatgen.priors import Conditioning
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.scene.uploads import upload


class PSD(Preference):
    """Preference score distillation (arXiv 2603.01594): win/lose pair, adaptive scale, learned negative.

        G = w(t) (d_gen + gamma d_cls + beta d_pref),     gamma = guidance scale - 1
        d_gen + gamma d_cls = e_win - n_win,   d_pref = (e_win - rho n_win) - (e_lose - rho n_lose)
        beta = gamma |d_cls| / |d_pref| sigmoid(-(r_win - r_lose) / temperature)

    with the norms over all elements of an item, in float32 or better; with rescaling, gamma d_cls is what
    guidance comes to after it, e_win - e_y. Only the paper's abstract and a blog
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
            paired=True,
            metrics={
                **reward_metrics(rewards),
                "preference/gap": pair.gap.nan_to_num().mean(),
                "preference/strength": strength.mean(),
            },
        )

    def combine(self, moment: Moment, tries: Guided, residuals: Tensor, choice: Choice) -> Tensor:
        noises = tries.eps - residuals
        win, lose = residuals + (1.0 - self.options.rho) * noises
        views = moment.prior.views
        guidance = tries.classifier[0]
        if moment.denoiser.options.rescale > 0:  # what it comes to in e_win, from which the pair is, too
            guidance = guidance + tries.adjustment[0]
        pull, push = item_norms(guidance, views), item_norms(win - lose, views)
        ratio = torch.where(push > 0, pull / push.clamp_min(torch.finfo(push.dtype).tiny), 0.0)
        beta = ratio * choice.weights[1].to(ratio)[:, None, None, None]
        added = torch.where(beta != 0, beta * (win - lose), 0.0)  # 0 times NaN would be NaN
        merged: Tensor = residuals[0] + added.to(residuals)
        return merged

    def learn(self, moment: Moment, x_t: Tensor, tries: Guided, ensemble: RewardEnsemble) -> Metrics:
        o = self.options
        rows = moment.views((moment.items(moment.times) <= o.t_limit).float()).nonzero().flatten()
        if not o.learn or moment.step % o.interval or not len(rows) or self._optimizer is None:
            return {}
        reward, gradients = self._reward_gradient(moment, rows, x_t, tries, ensemble)
        if not torch.stack([torch.isfinite(z).all() for z in (reward, *gradients)]).all():
            return {"preference/bad_negative": 1.0}
        for value, gradient in zip(self._learned.values(), gradients, strict=True):
            value.grad = -gradient  # Adam descends
        left = (1.0 - moment.fraction) / max(o.anneal, 1e-9)
        self._optimizer.param_groups[0]["lr"] = o.lr * min(left, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {"preference/negative_reward": reward}

    def _reward_gradient(
        self, moment: Moment, rows: Tensor, x_t: Tensor, tries: Guided, ensemble: RewardEnsemble
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mean reward of the estimates of some views, and its gradient with respect to the negative.

        In parts that fit memory: sums over the views are sums over the parts.
        """
        if tries.base is None or tries.direction is None:
            raise ValueError("psd learns its negative through guidance: give a guidance scale other than 1")
        found = [
            self._part_gradient(moment, part, len(rows), x_t, tries, ensemble)
            for part in moment.denoiser.parts(rows)
        ]
        rewards, gradients = zip(*found, strict=True)
        return sum(rewards[1:], rewards[0]), tuple(sum(z[1:], z[0]) for z in zip(*gradients, strict=True))

    def _part_gradient(
        self, moment: Moment, rows: Tensor, of: int, x_t: Tensor, tries: Guided, ensemble: RewardEnsemble
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The share of some of `of` views.

        First from the reward to the estimate, then from there to the negative. Where memory is short the
        estimate is taken from the step, so that reward, decoder and denoiser make their graphs one after the
        other, and need not be there at once.
        """
        prior, on = moment.prior, upload(rows, x_t.device)
        learned = {name: value.detach().requires_grad_() for name, value in self._learned.items()}
        fixed = take(moment.conditions.negative, on)
        guided, t = tries.map(lambda z: z[on]), moment.t[on]
        assert guided.base is not None
        assert guided.direction is not None
        aside = guided.direction - guided.conditional + guided.base  # Perp-Neg's part
        prompts = [moment.prompts[n] for n in rows.tolist()]

        def estimate() -> Tensor:
            negative = {**fixed, **repeat(learned, len(rows))}
            e_n = moment.denoiser.raw(x_t[on], t, negative, moment.cameras[rows])
            eps = e_n + moment.scale * (guided.conditional - e_n + aside)
            eps = eps if guided.beyond is None else eps + guided.beyond
            return ddim_step(prior, x_t[on], eps, t, torch.zeros_like(t))

        def pictures(x0: Tensor) -> Tensor:
            return prior.decode(x0).clamp(0.0, 1.0)

        def judged(images: Tensor) -> Tensor:
            return ensemble.fixed(ensemble.each(images, prompts)).sum() / of

        with torch.enable_grad():
            if moment.denoiser.learning:
                eps = guided.classifier + guided.conditional
                known = ddim_step(prior, x_t[on], eps, t, torch.zeros_like(t))
                reward, slope = one_by_one(known, pictures, judged)
                x0 = estimate()
            else:
                x0 = estimate()
                leaf = x0.detach().requires_grad_()
                reward = judged(pictures(leaf))
                (slope,) = torch.autograd.grad(reward, [leaf])
            return reward.detach(), torch.autograd.grad(x0, list(learned.values()), slope)

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


def one_by_one(
    x: Tensor, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """second(first(x)) [] and its gradient with respect to x, with the graph of one of them at a time."""
    with torch.no_grad():
        middle = first(x).requires_grad_()
    value = second(middle)
    (slope,) = torch.autograd.grad(value, [middle])
    leaf = x.detach().requires_grad_()
    return value, torch.autograd.grad(first(leaf), [leaf], slope)[0]


def item_norms(z: Tensor, views: int) -> Tensor:
    """Norm over all elements of each item, for every view of it, [B, 1, 1, 1]; z is [B, C, h, w]."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))  # float16 would overflow
    norms: Tensor = z.reshape(len(z) // views, -1).norm(dim=1)
    return norms.repeat_interleave(views).view(-1, 1, 1, 1)
