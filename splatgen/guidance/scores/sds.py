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
    """Classifier score distillation (Yu et al. 2023): no noise at all.

        G = w(t) ((w - 1) (e_y - e_n) + w_0 (e_y - e_0))

    with e_0 of the empty prompt and w_0 the null scale. Its published branches are e_y + a e_n + b e_0 with
    1 + a + b = 0, from (a, b) = (0, -1) to (-1, 0) over half of the run for a shape, from (-1, 0) to (-0.5,
    -0.5) for a texture: scale 1 - a and null scale -b.
    """

    def noises(self, moment: Moment, count: int) -> Noised:
        return Noised(noise=gaussian(moment, count))

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        if moment.scale == 0.0 and guided.base is None:  # guided.conditional is e_n: ask for e_y, too
            e_y = moment.guided(moment.noised(noised.noise), scale=1.0, plain=True).conditional
            return e_y + guided.adjustment
        return guided.conditional + guided.adjustment
