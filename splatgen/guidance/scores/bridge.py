"""Two pairs of prompts in turn. Shapes: M kept candidates, B views, C x h x w the prior's space."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from splatgen.config import BridgeOptions
from splatgen.guidance.denoiser import Guided
from splatgen.guidance.moment import Moment
from splatgen.guidance.scores.base import Noised, Score, gaussian


class Bridge(Score):
    """Score distillation as a bridge (McAllister et al. 2024, arXiv 2406.09417): SDS, then a pair.

        first   G = w(t) (e - n)
        second  G = w(t) s (e_{y, quality} - e_{y, flaws}),   from half of the run on

    with s the guidance scale and no noise in the second phase. Published: s 40 and sigma^2 in 2D, where the
    pair is from step 500 of 1,000 on; 100 and uniform on a NeRF, from 20,000 of 25,000 on.
    """

    def __init__(self, options: BridgeOptions) -> None:
        self.options = options

    def _second(self, moment: Moment) -> bool:
        return moment.fraction >= self.options.start

    def seen(self, moment: Moment) -> Moment:
        if not self._second(moment):
            return moment
        if moment.pair is None:
            raise ValueError("a bridge needs its second pair of prompts: this run has none")
        return replace(moment, conditions=moment.pair())

    def noises(self, moment: Moment, count: int) -> Noised:
        return Noised(noise=gaussian(moment, count))

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        if not self._second(moment):
            return noised.noise
        base = guided.base
        if base is None:  # one prediction was enough for guidance
            base = self.seen(moment).guided(moment.noised(noised.noise), scale=0.0, plain=True).eps
        return base + guided.adjustment
