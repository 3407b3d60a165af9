"""Preferences: how the candidates of a step are merged into one direction."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Preference(Protocol):
    """One way to merge candidates."""

    candidates: int  # noises an item

    def combine(self, residuals: Tensor) -> Tensor:
        """Residuals [K, B, C, h, w] to one direction [B, C, h, w]."""


class NoPreference:
    """The plain score: a single candidate."""

    candidates = 1

    def combine(self, residuals: Tensor) -> Tensor:
        return residuals[0]


PREFERENCES = {"none": NoPreference}
