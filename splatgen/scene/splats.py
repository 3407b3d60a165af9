"""The scene: a cloud of 3D Gaussians in the parametrisation that is optimised and written to disk.

Shapes: N splats, K = (degree + 1)^2 spherical-harmonic coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from splatgen.scene.harmonics import SH_C0


@dataclass(frozen=True, kw_only=True)
class Splats:
    """Raw parameters: scales are logs, opacities are logits, quats are wxyz and need not be unit."""

    means: Tensor  # [N, 3] world units
    quats: Tensor  # [N, 4] wxyz
    scales: Tensor  # [N, 3] log world units
    opacities: Tensor  # [N] logit
    sh: Tensor  # [N, K, 3] spherical-harmonic coefficients, K = (degree + 1)^2

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        return math.isqrt(self.sh.shape[1]) - 1

    def tensors(self) -> dict[str, Tensor]:
        """Name to tensor, in the order of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self, device: torch.device | str) -> Splats:
        return Splats(**{name: value.to(device) for name, value in self.tensors().items()})

    def detach(self) -> Splats:
        return Splats(**{name: value.detach() for name, value in self.tensors().items()})

    def select(self, index: Tensor) -> Splats:
        """The splats at an index or mask."""
        return Splats(**{name: value[index] for name, value in self.tensors().items()})


def check(splats: Splats) -> None:
    """Raise ValueError when shapes disagree; says which tensor and what was expected."""
    n, k = len(splats), splats.sh.shape[1] if splats.sh.ndim == 3 else -1
    expected = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "sh": (n, k, 3)}
    for name, value in splats.tensors().items():
        if tuple(value.shape) != expected[name]:
            raise ValueError(f"splats.{name} has shape {tuple(value.shape)}, expected {expected[name]}")
    if k not in (1, 4, 9, 16):
        raise ValueError(f"splats.sh has {k} coefficients, expected 1, 4, 9 or 16 (degrees 0 to 3)")


def rgb_to_sh(rgb: Tensor) -> Tensor:
    """Colour in 0..1 to the degree-0 coefficient."""
    return (rgb - 0.5) / SH_C0


def sh_to_rgb(f_dc: Tensor) -> Tensor:
    """Degree-0 coefficient to colour (not clamped)."""
    return 0.5 + SH_C0 * f_dc


def random_ball(
    generator: torch.Generator,
    *,
    count: int,
    radius: float,
    scale: float,
    opacity: float,
    sh_degree: int = 0,
    color_spread: float = 0.1,
) -> Splats:
    """Isotropic splats spread evenly through a ball, nearly grey.

    radius and scale (standard deviation) are in world units, opacity in 0..1.
    """
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    means = direction * radius * torch.rand(count, 1, generator=generator).pow(1 / 3)
    quats = torch.zeros(count, 4)
    quats[:, 0] = 1.0
    sh = torch.zeros(count, (sh_degree + 1) ** 2, 3)
    sh[:, 0] = rgb_to_sh(0.5 + color_spread * (torch.rand(count, 3, generator=generator) - 0.5))
    return Splats(
        means=means,
        quats=quats,
        scales=torch.full((count, 3), scale).log(),
        opacities=torch.logit(torch.full((count,), opacity)),
        sh=sh,
    )


def concatenate(parts: list[Splats]) -> Splats:
    """One cloud out of several of the same SH degree."""
    return Splats(**{name: torch.cat([p.tensors()[name] for p in parts]) for name in parts[0].tensors()})
