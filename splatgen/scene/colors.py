"""sRGB's display values and the light that they stand for (IEC 61966-2-1), both in 0..1.

Written for arrays of NumPy and of torch alike, and imports neither: formats need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

A = TypeVar("A", "Tensor", "NDArray[Any]")


def srgb_to_linear(rgb: A) -> A:
    """Light of display values."""
    rgb = rgb.clip(0.0, 1.0)
    dark = rgb <= 0.04045
    return dark * (rgb / 12.92) + ~dark * ((rgb + 0.055) / 1.055) ** 2.4


def linear_to_srgb(light: A) -> A:
    """Display values of light."""
    light = light.clip(0.0, 1.0)
    dark = light <= 0.0031308
    return dark * (12.92 * light) + ~dark * (1.055 * light ** (1 / 2.4) - 0.055)
