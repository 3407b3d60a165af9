"""From where a run looks at its splats, and what is behind them; functions of seed and step.

Shapes: B views.
"""

from __future__ import annotations

from torch import Tensor

from splatgen.config import Config
from splatgen.priors import PRIORS
from splatgen.runs.rng import rng
from splatgen.scene.backgrounds import backgrounds
from splatgen.scene.cameras import Cameras, sample_orbit


def viewpoints(config: Config, step: int, size: int, *, count: int = 0, purpose: str = "cameras") -> Cameras:
    """Cameras of a step with pictures of so many pixels: config.views.count of them, or another count."""
    v = config.views
    return sample_orbit(
        rng(config.seed, step, purpose),
        views=count or v.count,
        size=size,
        elevation=v.elevation,
        distance=v.distance,
        fov=v.fov,
        group=PRIORS[config.prior].views,
        relative=v.relative,
        law=v.elevation_law,
    )


def background(config: Config, step: int, cameras: Cameras, purpose: str = "background") -> Tensor:
    """What is behind the splats in each view of a step, [B, 3]."""
    group = PRIORS[config.prior].views
    return backgrounds(config.views.background, rng(config.seed, step, purpose), len(cameras), group)


def size_at(config: Config, fraction: float) -> int:
    """Pixels of the renders at a fraction of the run or stage."""
    sizes = config.views.size
    return sizes[min(int(fraction * len(sizes)), len(sizes) - 1)]
