"""Interval score matching. Shapes: B views, K candidates, M of them kept, C x h x w the prior's space."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from splatgen.config import ISMOptions
from splatgen.guidance.denoiser import Guided, amplitudes
from splatgen.guidance.inversion import ddim_step, rising_by, walk
from splatgen.guidance.moment import Moment, along
from splatgen.guidance.scores.base import Noised, Score, gaussian
from splatgen.scene.uploads import upload


class ISM(Score):
    """Interval score matching (Liang et al. 2023, LucidDreamer, eq. 17): G = sigma/alpha (e(x_t) - e_0(x_s)).

    From alpha x + sigma (n + 0.1 o) at t = 0.001, with n Gaussian and o a number for each channel, DDIM steps
    of 0.2 and a remainder lead to x_s, s = t less the interval, and one step from there to x_t. Both are
    predicted from the empty prompt, e_0, whatever the negative prompt, which guidance keeps. The interval
    falls linearly over a warm-up, as the official code's from 0.1 to 0.08 over 1,500 of 5,000 steps; the
    range of t, which is wider there, too, is --guidance.t-max and .anneal.
    """

    weighting = "sigma"

    def __init__(self, options: ISMOptions) -> None:
        self.options = options

    def interval(self, fraction: float) -> float:
        """From s to t at a fraction of the run."""
        o = self.options
        return along((0.0, o.warmup), fraction, o.interval_start or o.interval, o.interval)

    def noises(self, moment: Moment, count: int) -> Noised:
        o, told = self.options, moment.conditions.unprompted
        s = (moment.times - self.interval(moment.fraction)).clamp_min(o.start)
        levels = rising_by(o.step, o.start, s)
        x_s = walk(moment, self._begin(moment, count), levels, scale=0.0, plain=True, conditions=told)
        s = upload(s, moment.x.device)
        e_s = moment.guided(x_s, t=s, scale=0.0, plain=True, conditions=told).eps
        x_t = ddim_step(moment.prior, x_s, e_s, s, moment.t)
        alpha, sigma = moment.amplitudes()
        return Noised(noise=(x_t - alpha * moment.x) / sigma, baseline=e_s)

    def _begin(self, moment: Moment, count: int) -> Tensor:
        """The render at the first level, once for each candidate."""
        o, x = self.options, moment.x
        alpha, sigma = amplitudes(moment.prior, torch.full_like(moment.t, o.start))
        generator = moment.rng("offset")
        shift = torch.stack([torch.randn(1, x.shape[1], 1, 1, generator=generator) for _ in range(count)])
        noise = gaussian(moment, count) + o.offset * upload(shift, x.device).to(x.dtype)
        return alpha * x + sigma * noise

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        return cast("Tensor", noised.baseline)
