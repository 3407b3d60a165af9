"""Penalties on what is seen, differentiated apart from the guidance, whose gradient drives densification."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splatgen.config import RegulariseOptions
from splatgen.rasterizer import Render
from splatgen.scene.cameras import Cameras
from splatgen.scene.penalties import seen_penalty
from splatgen.scene.uploads import upload


def apart(
    options: RegulariseOptions, params: Mapping[str, Tensor], out: Render, cameras: Cameras
) -> dict[str, Tensor]:
    """Gradients of the penalties on a render, by parameter; the graph stays for the guidance's."""
    total = seen_penalty(out.rgb, out.depth, upload(cameras.K, out.depth.device), options)
    if total is None:
        return {}
    found = torch.autograd.grad(total, list(params.values()), retain_graph=True, allow_unused=True)
    out.info["means2d"].grad = None  # which densification reads; a gradient that is kept is kept here, too
    return {name: g for name, g in zip(params, found, strict=True) if g is not None}


def add(params: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    """To those that the parameters have already."""
    for name, gradient in gradients.items():
        p = params[name]
        p.grad = gradient if p.grad is None else p.grad + gradient
