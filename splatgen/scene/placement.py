"""Splats before the cameras: what is out of view, or tiny, is moved and scaled, and can be put back.

Shapes: N splats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from splatgen.scene.extent import SHARE, box, quantile
from splatgen.scene.splats import Splats

Fit = Literal["auto", "always", "never"]
IN_VIEW = (0.5, 1.0)  # radius of an object that is left where it is; 1.17 would fill the picture
FITTED = 0.8  # radius of an object that is moved


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A shift and a scale, there and back: y = (x - center) / size. No rotation, so SH stay as they are."""

    center: tuple[float, float, float]
    size: float

    def place(self, splats: Splats) -> Splats:
        """Splats before the cameras."""
        if self == IDENTITY:
            return splats
        means = (splats.means.double() - self._center(splats)) / self.size
        return self._scaled(splats, means, -math.log(self.size))

    def put_back(self, splats: Splats) -> Splats:
        """Splats where they came from, up to float32's rounding."""
        if self == IDENTITY:
            return splats
        means = splats.means.double() * self.size + self._center(splats)
        return self._scaled(splats, means, math.log(self.size))

    def _center(self, splats: Splats) -> Tensor:
        return torch.tensor(self.center, dtype=torch.float64, device=splats.means.device)

    @staticmethod
    def _scaled(splats: Splats, means: Tensor, shift: float) -> Splats:
        scales = (splats.scales.double() + shift).to(splats.scales)
        return replace(splats, means=means.to(splats.means), scales=scales)


IDENTITY = Placement(center=(0.0, 0.0, 0.0), size=1.0)


def placement(
    splats: Splats,
    fit: Fit,
    *,
    in_view: tuple[float, float] = IN_VIEW,
    radius: float = FITTED,
    name: str = "the source",
) -> Placement:
    """How to bring splats into view; raises ValueError for a cloud without any extent in numbers.

    in_view are the radii of an object that auto leaves where it is, radius is that of one that is moved.

    Splats count by their opacity, so that a few floaters move nothing. The centre is the middle of the box
    that holds SHARE of it along each axis, the radius that of the ball around it. Whatever is in view and
    not tiny stays (auto): priors know where objects stand, and a cone's middle is not its centroid.
    """
    if fit == "never":
        return IDENTITY
    exact = {name: value.detach().cpu().double() for name, value in splats.tensors().items()}
    means, weights = exact["means"].numpy(), exact["opacities"].sigmoid().numpy()
    sizes = exact["scales"].amax(-1).exp().numpy()  # a splat reaches beyond its centre
    here = quantile(np.linalg.norm(means, axis=-1) + sizes, weights, SHARE)
    if fit == "auto" and in_view[0] <= here <= in_view[1]:
        return IDENTITY
    center = box(means, weights).mean(0)
    size = quantile(np.linalg.norm(means - center, axis=-1) + sizes, weights, SHARE) / radius
    if not math.isfinite(size) or size <= 0.0:
        raise ValueError(f"{name} has a radius of {size * radius:g}: remove its broken splats")
    x, y, z = center.tolist()
    return Placement(center=(x, y, z), size=size)
