"""Noise-free score distillation. Shapes: B views, M kept candidates, C x h x w the prior's space."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from splatgen.config import NFSDOptions
from splatgen.guidance.denoiser import Guided
from splatgen.guidance.moment import Moment
from splatgen.guidance.scores.base import Noised, Score, gaussian
from splatgen.scene.uploads import upload


class NFSD(Score):
    """Noise-free score distillation (Katzir et al. 2023, arXiv 2310.17590): no noise is subtracted.

        G = w(t) (d_D + s (e_y - e_0)),   d_D = e_0 for t < 0.2, else e_0 - e_n

    with e_0 of the empty prompt, e_n of the negative one, which is words for flaws, and s the guidance scale
    (published: 7.5). So guidance here is always away from the empty prompt.
    """

    asks = True

    def __init__(self, options: NFSDOptions) -> None:
        self.options = options

    def seen(self, moment: Moment) -> Moment:
        return replace(moment, conditions=moment.conditions.unprompted)

    def noises(self, moment: Moment, count: int) -> Noised:
        return Noised(noise=gaussian(moment, count))

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        late = moment.times >= self.options.limit
        if not bool(late.any()):
            return guided.adjustment
        flaws = moment.guided(moment.noised(noised.noise), scale=0.0, plain=True).eps
        there = upload(late, flaws.device).view(-1, 1, 1, 1)
        return torch.where(there, flaws, 0.0) + guided.adjustment
