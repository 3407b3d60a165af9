"""sRGB's display values and the light that they stand for (IEC 61966-2-1), both in 0..1."""

from __future__ import annotations

import torch
from torch import Tensor


def srgb_to_linear(rgb: Tensor) -> Tensor:
    """Light of display values."""
    rgb = rgb.clamp(0.0, 1.0)
    return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: Tensor) -> Tensor:
    """Display values of light."""
    light = light.clamp(0.0, 1.0)
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light.pow(1 / 2.4) - 0.055)
