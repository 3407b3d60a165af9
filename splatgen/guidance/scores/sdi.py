"""Score distillation via inversion.

Shapes: B views, K candidates, M of them kept, C x h x w the prior's space.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from splatgen.config import SDIOptions
from splatgen.guidance.denoiser import Guided, amplitudes
from splatgen.guidance.inversion import rising, walk
from splatgen.guidance.moment import Moment
from splatgen.guidance.scores.base import LATEST, Noised, Score, gaussian
from splatgen.scene.uploads import upload


class SDI(Score):
    """Score distillation via inversion (Lukoianov et al. 2024, eq. 10 and algorithm 2).

    G = sigma/alpha (e - k) = x - x0, where k is the noise that DDIM inversion, conditional and with a
    negative guidance scale, finds for x: up to t + tau, with tau ~ U(0, 1/30), in the whole part of 10 t
    steps; k gets 0.3 sigma of fresh noise once. One time for all views falls over the run.

    The official code differs: it adds noise at every inversion step (entropy_at = "steps"), hands the
    latents of t + tau to the denoiser as if they were of t (renoise = False), takes tau up to a tenth, and
    inverts on a grid of 100 from a first label of -99. All candidates of an item share one inversion and
    differ by their fresh noise.

    With reverse > 1 the estimate x0 is where as many equal, guided DDIM steps lead from x_t, in place of the
    one step that e stands for: probability-flow distillation (arXiv 2605.09071), G = x - x0 again. Of that
    paper the abstract was at hand; how many steps it takes is not known to us.
    """

    times = "annealed"
    weighting = "sigma"

    def __init__(self, options: SDIOptions) -> None:
        self.options = options
        self.asks = options.reverse > 1

    def noises(self, moment: Moment, count: int) -> Noised:
        o = self.options
        times = moment.times
        share = torch.rand(len(moment.items(times)), generator=moment.rng("tau")).to(times)
        end = (times + o.tau * moment.views(share)).clamp_max(LATEST)
        if o.entropy_at == "steps":  # every candidate has noises of its own on the way
            start = moment.x.expand(count, *moment.x.shape)
            top = self._invert(moment, start, end, jitter=moment.rng("noise"))
        else:
            top = self._invert(moment, moment.x[None], end, jitter=None)
        if o.renoise:
            alpha, sigma = amplitudes(moment.prior, upload(end, moment.t.device))
        else:
            alpha, sigma = moment.amplitudes()
        inverted = (top - alpha * moment.x) / sigma
        if o.entropy_at == "end":
            inverted = inverted + o.entropy * moment.amplitudes()[1] * gaussian(moment, count)
        return Noised(noise=inverted)

    def _invert(
        self, moment: Moment, start: Tensor, end: Tensor, *, jitter: torch.Generator | None
    ) -> Tensor:
        o = self.options
        counts = (
            (o.steps * moment.times + 1e-6).floor().clamp_min(1.0)
        )  # the paper's int(10 t); 1e-6 for float32
        scale = -moment.scale if o.scale is None else o.scale
        levels = rising(end, counts)
        return walk(moment, start, levels, scale=scale, plain=True, jitter=jitter, eta=o.entropy)

    def refined(self, moment: Moment, x_t: Tensor, guided: Guided) -> Guided:
        if self.options.reverse == 1:
            return guided
        shares = 1.0 - torch.arange(self.options.reverse + 1).to(moment.times) / self.options.reverse
        levels = shares[:, None] * moment.times
        null_scale = moment.null_scale
        x0 = walk(moment, x_t, levels, scale=moment.scale, null_scale=null_scale, plain=False, first=guided)
        alpha, sigma = moment.amplitudes()
        return replace(guided, eps=(x_t - alpha * x0) / sigma, x0=x0)

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        return noised.noise
