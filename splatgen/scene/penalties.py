"""Penalties on the splats themselves: kept in frame, kept round, kept crisp; and on what is seen of them.

The former act on the parameters, never through the picture. The latter do, and so are differentiated with
respect to the parameters apart from the guidance's gradient, from which alone densification takes its own.

Shapes: N splats, B views, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
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
    if options.position > 0:
        total = total + options.position * means.norm(dim=-1).mean()
    if options.mass > 0:  # threestudio-3dgs: sum of |s| alpha, s held
        total = total + options.mass * (scales.exp().norm(dim=-1).detach() * opacities.sigmoid()).sum()
    if options.axes > 0:
        total = total + options.axes * scales.exp().sum()
    return total


def variation(image: Tensor) -> Tensor:
    """Total variation of [B, C, H, W]: 2 (mean squared difference of rows + that of columns).

    As LucidDreamer and threestudio-3dgs compute it.
    """
    rows, columns = image.diff(dim=-2).square().mean(), image.diff(dim=-1).square().mean()
    total: Tensor = 2.0 * (rows + columns)
    return total


def normals(depth: Tensor, K: Tensor) -> Tensor:
    """Unit normals [B, 3, H - 1, W - 1] of depth [B, 1, H, W] (z along the axis), K [B, 3, 3].

    Pixels go back to where they are seen, z ((u - c) / f, (v - c) / f, 1); the normal is the cross product
    of the steps to the next column and to the next row. Zero where a step is.
    """
    height, width = depth.shape[-2:]
    u = torch.arange(width, device=depth.device).to(depth) + 0.5
    v = torch.arange(height, device=depth.device).to(depth) + 0.5
    x = (u - K[:, 0, 2, None]) / K[:, 0, 0, None]  # [B, W]
    y = (v - K[:, 1, 2, None]) / K[:, 1, 1, None]  # [B, H]
    rays = torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], 1)
    points = depth * torch.cat([rays, torch.ones_like(depth)], 1)  # [B, 3, H, W]
    across, down = points.diff(dim=-1)[:, :, :-1], points.diff(dim=-2)[..., :-1]
    return torch.nn.functional.normalize(torch.linalg.cross(across, down, dim=1), dim=1, eps=1e-12)


def seen_penalty(rgb: Tensor, depth: Tensor, K: Tensor, options: RegulariseOptions) -> Tensor | None:
    """The weighted sum of those on a render, rgb [B, 3, H, W], depth [B, 1, H, W]; None where all are off."""
    if not (options.tv or options.depth_tv or options.normal_tv):
        return None
    total = rgb.new_zeros(())
    if options.tv > 0:
        total = total + options.tv * variation(rgb)
    if options.depth_tv > 0:
        total = total + options.depth_tv * variation(depth)
    if options.normal_tv > 0:
        total = total + options.normal_tv * variation(normals(depth, K))
    return total
