"""Penalties on the splats themselves: kept in frame, kept round, kept crisp.

They act on the parameters, never through the picture, so that they cannot drive densification.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from splatgen.config import RegulariseOptions


def outside(means: Tensor, limit: float) -> Tensor:
    """Mean squared distance beyond a radius, of means [N, 3]."""
    beyond: Tensor = means.norm(dim=-1) - limit
    return beyond.clamp_min(0.0).square().mean()


def needle(scales: Tensor, limit: float) -> Tensor:
    """How far the longest axis exceeds `limit` times the middle one, in log units; scales [N, 3] are logs."""
    ordered = scales.sort(dim=-1).values
    excess: Tensor = ordered[:, 2] - ordered[:, 1] - math.log(limit)
    return excess.clamp_min(0.0).mean()


def penalty(params: Mapping[str, Tensor], options: RegulariseOptions) -> Tensor:
    """The weighted sum; terms with weight 0 are not computed."""
    means, scales, opacities = params["means"], params["scales"], params["opacities"]
    total = means.new_zeros(())
    if options.radius > 0:
        total = total + options.radius * outside(means, options.max_radius)
    if options.scale > 0:
        total = total + options.scale * scales.exp().mean()
    if options.aspect > 0:
        total = total + options.aspect * needle(scales, options.max_aspect)
    if options.opacity > 0:
        total = total + options.opacity * opacities.sigmoid().mean()
    return total
