"""Scores: where the noise of a step comes from, and what is subtracted from the prediction."""

from __future__ import annotations

from splatgen.config import Method
from splatgen.priors import Prior
from splatgen.scores.base import Noised, Score
from splatgen.scores.delta import Delta
from splatgen.scores.ism import ISM
from splatgen.scores.sdi import SDI
from splatgen.scores.sds import CSD, SDS
from splatgen.scores.vsd import VSD

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
        case "vsd":
            return VSD(config.vsd, prior, config.seed)
