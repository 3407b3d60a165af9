"""Gaussian noise: SDS, which subtracts it, and CSD, which subtracts the conditional prediction."""

from __future__ import annotations

from torch import Tensor

from splatgen.guidance.denoiser import Guided
from splatgen.guidance.moment import Moment
from splatgen.guidance.scores.base import Noised, Score, gaussian


class SDS(Score):
    """Score distillation (Poole et al. 2022, eq. 3): G = w(t) (e - n) with Gaussian noise n.

    threestudio and DreamGaussian weigh with sigma^2 (--guidance.weighting sds); the mean over items and
    the plain sum over pixels are theirs too.
    """

    def noises(self, moment: Moment, count: int) -> Noised:
        return Noised(noise=gaussian(moment, count))

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        return noised.noise


class CSD(Score):
    """Classifier score distillation (Yu et al. 2023): G = w(t) (scale - 1) (e_y - e_n), no noise at all."""

    def noises(self, moment: Moment, count: int) -> Noised:
        return Noised(noise=gaussian(moment, count))

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        return guided.conditional + guided.adjustment
