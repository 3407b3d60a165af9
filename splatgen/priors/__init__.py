"""Diffusion priors: the protocol that every one meets, and the table of those there are.

A prior speaks continuous time t in [0, 1] and predicts noise, whatever its network was trained on.
Shapes: B images or latents, C x h x w the prior's own space.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

from splatgen.hints import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from splatgen.cameras import Cameras
    from splatgen.config import PriorOptions

Conditioning = dict[str, "Tensor"]  # every tensor has the batch first: concatenate and index freely


class Prior(Protocol):
    """What guidance needs of a diffusion model."""

    name: str
    views: int  # images denoised together: 1, or 4 for a multi-view prior
    resolution: int  # image side in pixels that it was trained on
    x_range: tuple[float, float] | None  # of clean x in a pixel prior; None for latents

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to x [B, C, h, w], differentiably."""

    def decode(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] to images [B, 3, H, W] in 0..1."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise amplitudes at times t [B], each [B, 1, 1, 1]."""

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of prompts, batch first; raises ValueError for what it cannot read."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        """The noise in x_t [B, C, h, w] at t [B]; the caller decides about gradients."""


PRIORS = {  # name: "module:function", called with (PriorOptions, device)
    "toybox": "splatgen.priors.toybox:load",
    "toybox-mini": "splatgen.priors.toybox:load_mini",
}


def resolve(table: dict[str, str], name: str, what: str) -> object:
    """The object a table names; ValueError with the nearest name when it names none."""
    if name not in table:
        raise ValueError(f"no {what} {name[:60]!r}; {did_you_mean(name, table)}")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def load_prior(name: str, options: PriorOptions, device: str) -> Prior:
    """Load a prior by name; FileNotFoundError when its weights are missing."""
    return cast("Prior", resolve(PRIORS, name, "prior")(options, device))  # type: ignore[operator]
