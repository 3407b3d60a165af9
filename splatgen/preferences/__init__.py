"""Preferences: how the candidates of a step are merged into one direction, by their rewards."""

from __future__ import annotations

from splatgen.config import Method
from splatgen.preferences.ascent import Ascent
from splatgen.preferences.base import Choice, NoPreference, Preference
from splatgen.preferences.dpo import DPO
from splatgen.preferences.psd import PSD
from splatgen.preferences.weighted import Weighted

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
