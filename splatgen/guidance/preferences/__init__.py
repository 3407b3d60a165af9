"""Preferences: how the candidates of a step are merged into one direction, by their rewards.

Not here: the rewards that judge them, and the noise that makes them (scores).
"""

from __future__ import annotations

from splatgen.config import Method
from splatgen.guidance.preferences.ascent import Ascent
from splatgen.guidance.preferences.base import Choice, NoPreference, Preference
from splatgen.guidance.preferences.dpo import DPO
from splatgen.guidance.preferences.psd import PSD
from splatgen.guidance.preferences.weighted import Weighted

__all__ = ["DPO", "PSD", "Ascent", "Choice", "NoPreference", "Preference", "Weighted", "make_preference"]


def make_preference(config: Method) -> Preference:
    """The preference of a run."""
    match config.preference:
        case "none":
            return NoPreference()
        case "weighted":
            return Weighted(config.weighted)
        case "dpo":
            return DPO(config.dpo)
        case "psd":
            return PSD(config.psd)
        case "ascent":
            return Ascent(config.ascent)
