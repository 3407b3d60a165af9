"""Scores: where the noise of a step comes from, and what is subtracted from the prediction.

Not here: which candidate is better (preferences), and the weight of a time (distillation).
"""

from __future__ import annotations

from splatgen.config import Method
from splatgen.guidance.scores.base import Noised, Score
from splatgen.guidance.scores.delta import Delta
from splatgen.guidance.scores.ism import ISM
from splatgen.guidance.scores.refine import Refine
from splatgen.guidance.scores.sdi import SDI
from splatgen.guidance.scores.sds import CSD, SDS
from splatgen.guidance.scores.vsd import VSD
from splatgen.priors import Prior

__all__ = ["CSD", "ISM", "SDI", "SDS", "VSD", "Delta", "Noised", "Score", "make_score"]


def make_score(config: Method, prior: Prior) -> Score:
    """The score of a run."""
    match config.score:
        case "sds":
            return SDS()
        case "csd":
            return CSD()
        case "sdi":
            return SDI(config.sdi)
        case "ism":
            return ISM(config.ism)
        case "refine":
            return Refine(config.refine)
        case "vsd":
            return VSD(config.vsd, prior, config.seed)
