"""Scores: where the noise of a step comes from, and what is subtracted from the prediction.

Not here: which candidate is better (preferences), and the weight of a time (distillation).
"""

from __future__ import annotations

from collections.abc import Callable

from splatgen.config import Method
from splatgen.guidance.scores.base import Noised, Score
from splatgen.guidance.scores.bridge import Bridge
from splatgen.guidance.scores.delta import Delta
from splatgen.guidance.scores.ism import ISM
from splatgen.guidance.scores.nfsd import NFSD
from splatgen.guidance.scores.refine import Refine
from splatgen.guidance.scores.sdi import SDI
from splatgen.guidance.scores.sds import CSD, SDS
from splatgen.guidance.scores.vsd import VSD
from splatgen.priors import Prior

__all__ = ["CSD", "ISM", "NFSD", "SDI", "SDS", "VSD", "Bridge", "Delta", "Noised", "Score", "make_score"]


def make_score(config: Method, prior: Prior) -> Score:
    """The score of a run."""
    scores: dict[str, Callable[[], Score]] = {
        "sds": SDS,
        "csd": CSD,
        "sdi": lambda: SDI(config.sdi),
        "ism": lambda: ISM(config.ism),
        "nfsd": lambda: NFSD(config.nfsd),
        "bridge": lambda: Bridge(config.bridge),
        "refine": lambda: Refine(config.refine),
        "vsd": lambda: VSD(config.vsd, prior, config.seed),
    }
    return scores[config.score]()
