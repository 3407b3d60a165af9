"""Interval score matching. Shapes: B views, K candidates, M of them kept, C x h x w the prior's space."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from splatgen.config import ISMOptions
from splatgen.guidance.denoiser import Guided
from splatgen.guidance.inversion import ddim_step, rising, walk
from splatgen.guidance.moment import Moment
from splatgen.guidance.scores.base import Noised, Score, gaussian
from splatgen.scene.uploads import upload


class ISM(Score):
    """Interval score matching (Liang et al. 2023, LucidDreamer, eq. 17): G = sigma/alpha (e(x_t) - e_0(x_s)).

    x_s comes from x by equal unconditional DDIM steps of at most 0.2, x_t from x_s by one step of the
    interval. The official code warms the interval and the range of t up and starts from x with a little
    noise; here the interval is constant.
    """

    weighting = "sigma"

    def __init__(self, options: ISMOptions) -> None:
        self.options = options

    def noises(self, moment: Moment, count: int) -> Noised:
        o = self.options
        s = (moment.times - o.interval).clamp_min(0.0)
        x = moment.x + o.noise * gaussian(moment, count)
        counts = (s / o.step - 1e-6).ceil().clamp_min(1.0)
        x_s = walk(moment, x, rising(s, counts), scale=0.0, plain=True)
        s = upload(s, x.device)
        e_s = moment.guided(x_s, t=s, scale=0.0, plain=True).eps
        x_t = ddim_step(moment.prior, x_s, e_s, s, moment.t)
        alpha, sigma = moment.amplitudes()
        return Noised(noise=(x_t - alpha * moment.x) / sigma, baseline=e_s)

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        return cast("Tensor", noised.baseline)
