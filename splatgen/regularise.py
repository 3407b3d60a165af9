"""Penalties on the splats themselves: kept in frame, kept round, kept crisp.

They act on the parameters, never through the picture, so that they cannot drive densification.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splatgen.config import RegulariseOptions


def outside(means: Tensor, limit: float) -> Tensor:
    """Mean squared distance beyond a radius, of means [N, 3]."""
    return (means.norm(dim=-1) - limit).clamp_min(0.0).square().mean()


def needle(scales: Tensor, limit: float) -> Tensor:
    """How far the longest axis exceeds `limit` times the middle one, in log units; scales [N, 3] are logs."""
    ordered = scales.sort(dim=-1).values
    return (ordered[:, 2] - ordered[:, 1] - torch.tensor(limit).log().to(scales)).clamp_min(0.0).mean()


def penalty(params: Mapping[str, Tensor], options: RegulariseOptions) -> Tensor:
    """The weighted sum; terms with weight 0 are not computed."""
    terms = [
        (options.radius, lambda: outside(params["means"], options.max_radius)),
        (options.scale, lambda: params["scales"].exp().mean()),
        (options.aspect, lambda: needle(params["scales"], options.max_aspect)),
        (options.opacity, lambda: params["opacities"].sigmoid().mean()),
    ]
    total = params["means"].new_zeros(())
    for factor, term in terms:
        if factor > 0:
            total = total + factor * term()
    return total
