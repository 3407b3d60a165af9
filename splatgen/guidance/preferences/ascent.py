"""A reward gradient into the render: DreamReward. Shapes: B views, H x W the render."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from splatgen.config import AscentOptions
from splatgen.guidance.denoiser import Guided
from splatgen.guidance.moment import Moment
from splatgen.guidance.preferences.base import Choice, Preference
from splatgen.rewards.ensemble import RewardEnsemble

PURE = 1e6  # weight of the reward where it guides alone


class Ascent(Preference):
    """DreamReward (arXiv 2403.14613): a reward gradient into the render, beside the plain score.

    form = "paper": G = w(t) (e - d_r - n) with d_r = weight dr/drender, r judged on the render, or on the
    one-step estimate at times up to `straight_through` (value of the estimate, gradient of the render).
    form = "code", the official one: weight c relu(target - r) is added to the loss |G|^2 / 2, where c is ten
    to the difference of their decimal digits; for the last steps the reward alone, a million times.
    """

    def __init__(self, options: AscentOptions) -> None:
        self.options = options

    def combine(self, moment: Moment, tries: Guided, residuals: Tensor, choice: Choice) -> Tensor:
        plain = Preference.combine(self, moment, tries, residuals, choice)
        return torch.zeros_like(plain) if self._alone(moment) else plain

    def on_render(
        self, moment: Moment, x0: Tensor, value: Tensor, w: Tensor, ensemble: RewardEnsemble
    ) -> Tensor | None:
        o = self.options
        if moment.fraction < o.start:
            return None
        render = moment.images.detach().clone().requires_grad_()
        with torch.enable_grad():
            looked = render.clamp(0.0, 1.0)
            early = (moment.t <= o.straight_through).view(-1, 1, 1, 1)
            if bool(early.any()):  # a decoder can cost as much as a step
                seen = interpolate(
                    moment.prior.decode(x0).detach(), size=render.shape[-2:], mode="bilinear", antialias=True
                )
                straight = seen.to(render).clamp(0.0, 1.0) + (render - render.detach())  # adds 0
                looked = torch.where(early, straight, looked)
            rewards = ensemble.fixed(ensemble.each(looked, moment.prompts))  # [B]
            if o.form == "paper":
                loss = -(w.flatten() * o.weight * rewards).sum() / len(rewards)
            else:
                missing = (o.target - rewards).clamp_min(0.0).mean()
                scale = digit_scale(0.5 * value.square().sum() / len(value), missing.detach())
                loss = (PURE if self._alone(moment) else o.weight * scale) * missing
            (gradient,) = torch.autograd.grad(loss, [render])
        return gradient

    def _alone(self, moment: Moment) -> bool:
        return moment.fraction >= max(self.options.start, 1.0 - self.options.pure)


def digit_scale(loss: Tensor, other: Tensor) -> float:
    """Ten to the difference of the decimal digits before the point of two losses."""

    def digits(value: float) -> int:
        return len(str(int(value))) if math.isfinite(value) else 1

    return float(10.0 ** (digits(float(loss)) - digits(float(other))))
