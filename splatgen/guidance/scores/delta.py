"""The difference of two scores: delta denoising score, for edits."""

from __future__ import annotations

from torch import Tensor

from splatgen.guidance.denoiser import Guided
from splatgen.guidance.moment import Moment
from splatgen.guidance.scores.base import Noised, Score


class Delta(Score):
    """Delta denoising score (Hertz et al. 2023, eq. 4): the same step for what an edit started from.

    G = w(t) (e(x_t, target) - e(source_t, source)) with one noise and one time for both. Any preference
    ranks by the target (RewardDDS; the RewardSDS paper does not say whether its two branches share noises,
    here they do).
    """

    asks = True

    def __init__(self, base: Score) -> None:
        self.base = base
        self.times, self.weighting = base.times, base.weighting

    def noises(self, moment: Moment, count: int) -> Noised:
        return self.base.noises(moment, count)

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        if moment.source is None:
            raise ValueError("a delta score compares with a source: this run has none")
        x_t = moment.noised(noised.noise, moment.source.x)
        return moment.guided(x_t, conditions=moment.source.conditions).eps
