"""Splats before the cameras: what is out of view, or tiny, is moved and scaled, and can be put back.

Shapes: N splats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from splatgen.scene.splats import Splats

Fit = Literal["auto", "always", "never"]
SHARE = 0.95  # of the opacity that must be in view: a few stray splats do not count
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


def quantile(values: Tensor, weights: Tensor, share: float) -> float:
    """The value [] of values [N] below which `share` of the weight [N] lies."""
    order = values.argsort()
    below = weights[order].cumsum(0)
    position = int((below < share * below[-1]).sum())
    return float(values[order][min(position, len(values) - 1)])


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
    means, weights = splats.means.double(), splats.opacities.double().sigmoid()
    sizes = splats.scales.double().amax(-1).exp()  # a splat reaches beyond its centre
    if fit == "auto" and in_view[0] <= quantile(means.norm(dim=-1) + sizes, weights, SHARE) <= in_view[1]:
        return IDENTITY
    rest = (1.0 - SHARE) / 2.0
    ends = [[quantile(axis, weights, p) for axis in means.unbind(-1)] for p in (rest, 1.0 - rest)]
    center = tuple((low + high) / 2.0 for low, high in zip(*ends, strict=True))
    reach = (means - means.new_tensor(center)).norm(dim=-1) + sizes
    size = quantile(reach, weights, SHARE) / radius
    if not math.isfinite(size) or size <= 0.0:
        raise ValueError(f"{name} has a radius of {size * radius:g}: remove its broken splats")
    return Placement(center=(center[0], center[1], center[2]), size=size)
