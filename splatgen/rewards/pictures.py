"""Pictures as the reward networks were trained to see them, differentiably.

The published code resizes with a bicubic filter and antialiasing, mostly through PIL and in 8 bits. Here the
same filter works on floats, so a picture keeps its gradient and is never rounded.

Shapes: B images, S the side that a network sees.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def cropped(images: Tensor, side: int) -> Tensor:
    """The shorter side to S by bicubic resizing, then the centre: [B, 3, H, W] to [B, 3, S, S] in 0..1.

    The longer side is cut to whole pixels and the offset rounded down, as transformers does; torchvision
    rounds the offset to the nearest even number, a pixel further for some pictures that are not square.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    images = resized(images, int(side * height / short), int(side * width / short))
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    return images[..., top : top + side, left : left + side]


def padded(images: Tensor, side: int) -> Tensor:
    """The longer side to S by bicubic resizing, then zeros around it: [B, 3, H, W] to [B, 3, S, S].

    HPSv2's package resizes floats, so what the filter overshoots stays: values leave 0..1 at hard edges.
    """
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    images = _bicubic(images, max(round(height * scale), 1), max(round(width * scale), 1))
    left, top = (side - images.shape[-1]) // 2, (side - images.shape[-2]) // 2
    return pad(images, (left, side - images.shape[-1] - left, top, side - images.shape[-2] - top))


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing; rows before columns, each clamped to 0..1, as PIL does in 8 bits.

    (The filter overshoots at hard edges, and a value that was cut off weighs less in the second pass.)
    """
    rows = _bicubic(images, images.shape[-2], width).clamp(0.0, 1.0)
    return _bicubic(rows, height, width).clamp(0.0, 1.0)


def normalised(
    images: Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
) -> Tensor:
    """Less the mean, by the standard deviation of each channel."""
    channels = zip(images.unbind(-3), mean, std, strict=True)
    return torch.stack([(channel - m) / s for channel, m, s in channels], -3)


def _bicubic(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return interpolate(images, size=(height, width), mode="bicubic", antialias=True)
