"""A reward gradient into the render: DreamReward. Shapes: B views, H x W the render."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from splatgen.config import AscentOptions
from splatgen.guidance.denoiser import Guided
from splatgen.guidance.moment import Moment
from splatgen.guidance.preferences.base import Choice, Preference
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.scene.uploads import upload

PURE = 1e6  # weight of the reward where it guides alone


class Ascent(Preference):
    """DreamReward (arXiv 2403.14613): a reward gradient into the render, beside the plain score.

    form = "paper": G = w(t) (e - d_r - n) with d_r = weight dr/drender, r judged on the render, or on the
    one-step estimate at times up to `straight_through` (value of the estimate, gradient of the render).
    form = "code", the official one: weight c relu(target - r) is added to the loss |G|^2 / 2, where c is ten
    to the difference of their decimal digits; for the last steps the reward alone, of the render at any time,
    a million times.
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

        def rewards(part: Tensor, render: Tensor) -> Tensor:
            return ensemble.fixed(
                ensemble.each(self._looked(moment, part, x0, render), prompts_of(moment, part))
            )

        def slope(values: Tensor) -> Tensor:  # [B] of the loss, by the rewards [B]
            values = values.detach().requires_grad_()
            return torch.autograd.grad(self._loss(values, value, w, moment), [values])[0]

        parts = moment.denoiser.parts(torch.arange(len(moment.images)))
        with torch.enable_grad():
            if len(parts) == 1:
                render = moment.images.detach().clone().requires_grad_()
                found = rewards(parts[0], render)
                return torch.autograd.grad(found, [render], slope(found))[0]
            pictures = [moment.images[int(p[0]) : int(p[-1]) + 1].detach() for p in parts]
            with torch.no_grad():
                values = torch.cat([rewards(*z) for z in zip(parts, pictures, strict=True)])
            slopes = torch.split(slope(values), [len(p) for p in parts])
            leaves = [picture.clone().requires_grad_() for picture in pictures]
            gradients = [
                torch.autograd.grad(rewards(part, leaf), [leaf], each)[0]
                for part, leaf, each in zip(parts, leaves, slopes, strict=True)
            ]
            return torch.cat(gradients)

    def _looked(self, moment: Moment, rows: Tensor, x0: Tensor, render: Tensor) -> Tensor:
        """What the rewards of some views look at: the render, or the value of the estimate at small times."""
        looked = render.clamp(0.0, 1.0)
        if self._alone(moment):  # as the official code does
            return looked
        early = moment.times[rows] <= self.options.straight_through
        if not bool(early.any()):  # a decoder can cost as much as a step
            return looked
        on = upload(torch.stack([rows, early.long()]), render.device)
        with torch.no_grad():
            decoded = moment.prior.decode(x0[on[0]])
            seen = interpolate(decoded, size=render.shape[-2:], mode="bilinear", antialias=True)
        straight = seen.to(render).clamp(0.0, 1.0) + (render - render.detach())  # adds 0
        return torch.where(on[1].bool().view(-1, 1, 1, 1), straight, looked)

    def _loss(self, rewards: Tensor, value: Tensor, w: Tensor, moment: Moment) -> Tensor:
        """Of the rewards of all views [B]."""
        o = self.options
        if o.form == "paper":
            return -(w.flatten() * o.weight * rewards).sum() / len(rewards)
        missing = (o.target - rewards).clamp_min(0.0).mean()
        scale = digit_scale(0.5 * value.square().sum() / len(value), missing.detach())
        weight = torch.full_like(scale, PURE) if self._alone(moment) else o.weight * scale
        return weight.to(missing.dtype) * missing

    def _alone(self, moment: Moment) -> bool:
        return moment.fraction >= max(self.options.start, 1.0 - self.options.pure)


def prompts_of(moment: Moment, rows: Tensor) -> list[str]:
    return [moment.prompts[n] for n in rows.tolist()]


def digit_scale(loss: Tensor, other: Tensor) -> Tensor:
    """Ten to the difference of the decimal digits before the point of two losses, [] in float64."""
    powers = upload(torch.tensor([10.0**n for n in range(1, 39)], dtype=torch.float64), loss.device)

    def digits(value: Tensor) -> Tensor:  # of float32: no more than 39; what is not finite counts as one
        return ((value.double() >= powers) & torch.isfinite(value)).sum()

    return 10.0 ** (digits(loss) - digits(other)).double()
