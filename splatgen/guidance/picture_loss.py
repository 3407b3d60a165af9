"""How far renders are from pictures: L1 and structural similarity.

Shapes: B images, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW, SPREAD = 11, 1.5  # pixels: side and standard deviation of the Gaussian that SSIM weighs with
C1, C2 = 0.01**2, 0.03**2  # its constants, for a range of 1


def picture_loss(images: Tensor, pictures: Tensor, ssim_share: float) -> Tensor:
    """(1 - s) mean |a - b| + s (1 - SSIM(a, b)), [], of two [B, 3, H, W] in 0..1.

    The loss of 3D Gaussian Splatting (Kerbl et al. 2023, eq. 7), where s is 0.2.
    """
    absolute = (images - pictures).abs().mean()
    if ssim_share == 0.0:
        return absolute
    return (1.0 - ssim_share) * absolute + ssim_share * (1.0 - ssim(images, pictures).mean())


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity at every pixel whose window lies in the image (Wang et al. 2004, eq. 13).

    [B, 3, h, w] of two [B, 3, H, W], each channel by itself; smaller images take a smaller window.
    """
    kernel = window(min(WINDOW, a.shape[-2], a.shape[-1])).to(a).expand(a.shape[1], 1, -1, -1)

    def mean(z: Tensor) -> Tensor:
        return conv2d(z, kernel, groups=z.shape[1])

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    likeness = (2.0 * mean_a * mean_b + C1) * (2.0 * covariance + C2)
    return likeness / ((mean_a**2 + mean_b**2 + C1) * (variance_a + variance_b + C2))


def window(side: int) -> Tensor:
    """Weights [side, side] of a Gaussian in its middle; they come to 1."""
    x = torch.arange(side, dtype=torch.float64) - (side - 1) / 2.0
    line = torch.exp(-0.5 * (x / SPREAD) ** 2)
    line = line / line.sum()
    return line[:, None] * line[None]
