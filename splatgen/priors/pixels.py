"""Images as pixel priors read them: averaged down to the side of the model, in -1..1.

Shapes: B images, H x W pixels, S the model's side.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


def averaged(images: Tensor, side: int) -> Tensor:
    """Images [B, C, H, W] at the model's side, [B, C, S, S], by averages where S divides H and W."""
    height, width = images.shape[-2:]
    if height % side == 0 and width % side == 0:
        return avg_pool2d(images, (height // side, width // side))
    small: Tensor = interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return small


def to_side(images: Tensor, side: int) -> Tensor:
    """Images [B, 3, H, W] in 0..1 to [B, 3, S, S] in -1..1."""
    return 2.0 * averaged(images, side) - 1.0


def from_pixels(x: Tensor) -> Tensor:
    """[B, 3, S, S] in -1..1 to images in 0..1."""
    return (0.5 * (x + 1.0)).clamp(0.0, 1.0)
