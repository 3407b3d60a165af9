"""Sets of views as the papers evaluate with them, on white, and how like two pictures are.

Shapes: V views, S image side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from splatgen.rasterizer import render
from splatgen.runs.rng import rng
from splatgen.scene.cameras import Cameras, sample_orbit, turntable
from splatgen.scene.splats import Splats

CHUNK = 10  # views rendered at once


def _random(count: int) -> Callable[[int], Cameras]:
    return lambda size: sample_orbit(
        rng(0, 0, f"evaluation/{count}"), views=count, size=size, elevation=(0.0, 30.0)
    )


VIEWS: dict[str, Callable[[int], Cameras]] = {  # name: size to cameras
    "random-10": _random(10),  # RewardSDS, tables 3 and 7
    "random-50": _random(50),  # Score Distillation via Inversion, table 1
    "turntable-120": lambda size: turntable(120, size=size),  # one turn, the front first
}


def pictures(splats: Splats, cameras: Cameras) -> Tensor:
    """Splats on white, [V, 3, S, S] in 0..1, on the CPU."""
    device = splats.means.device
    white = torch.ones(3, device=device)
    parts = []
    with torch.no_grad():
        for n in range(0, len(cameras), CHUNK):
            seen = render(splats, cameras[n : n + CHUNK].to(device), white)
            parts.append(seen.rgb.clamp(0, 1).cpu())
    return torch.cat(parts)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity [V] of pictures [V, 3, S, S] in 0..1, over colours and places.

    Wang et al. 2004: a Gaussian window of 11 pixels, sigma 1.5, K = 0.01, 0.03; valid places only.
    """
    place = torch.arange(11, dtype=a.dtype) - 5
    line = torch.exp(-place.square() / (2 * 1.5**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(3, 1, 11, 11)

    def mean(x: Tensor) -> Tensor:
        return conv2d(x, window, groups=3)

    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mu_a.square(), mean(b * b) - mu_b.square()
    both = mean(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mu_a * mu_b + c1) * (2 * both + c2)
    return (top / ((mu_a.square() + mu_b.square() + c1) * (var_a + var_b + c2))).mean((1, 2, 3))
