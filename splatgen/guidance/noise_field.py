"""One field of noise around the object, seen by all views: consistent Gaussian noise.

Shapes: B views, K candidates, H x W the render, C x h x w the prior's space, V cells of space.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from splatgen.config import GuidanceOptions
from splatgen.scene.cameras import Cameras
from splatgen.scene.uploads import upload

SEEN = 0.5  # coverage from which a pixel shows the surface
# Steele, Lea and Flood 2014, splitmix64: its increment, and its finaliser's two factors, as signed numbers
GOLDEN, FIRST, SECOND = (z - 2**64 for z in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What the views of a step see of the object."""

    points: Tensor  # [B, H, W, 3] in the world
    seen: Tensor  # [B, H, W] whether the object is there
    cell: float  # world units
    field: float  # which field: whole numbers are fields of their own, between two there is a mixture


def surface(
    depth: Tensor,  # [B, 1, H, W] along the axis
    alpha: Tensor,  # [B, 1, H, W]
    cameras: Cameras,
    *,
    cell: float,
    field: float,
) -> Surface:
    """Where the pixels of a render are."""
    height, width = depth.shape[-2:]
    K, c2w = upload(cameras.K, depth.device).to(depth), upload(cameras.c2w, depth.device).to(depth)
    u = torch.arange(width, device=depth.device).to(depth) + 0.5
    v = torch.arange(height, device=depth.device).to(depth) + 0.5
    z = depth[:, 0].detach()  # [B, H, W]
    x = z * ((u - K[:, 0, 2, None]) / K[:, 0, 0, None])[:, None]
    y = z * ((v - K[:, 1, 2, None]) / K[:, 1, 1, None])[:, :, None]
    local = torch.stack([x, -y, -z], -1)  # OpenGL
    points = torch.einsum("bij,bhwj->bhwi", c2w[:, :3, :3], local) + c2w[:, None, None, :3, 3]
    return Surface(points=points, seen=alpha[:, 0].detach() >= SEEN, cell=cell, field=field)


def chosen_surface(
    options: GuidanceOptions, fraction: float, depth: Tensor, alpha: Tensor, cameras: Cameras
) -> Surface | None:
    """What the views see, where the noise is of one field; None where it is fresh."""
    if options.noise != "world":
        return None
    field = options.noise_renewals * fraction
    return surface(depth, alpha, cameras, cell=options.noise_cell, field=field)


def consistent(at: Surface, shape: torch.Size, seed: int) -> Tensor:
    """Noise [B, C, h, w], standard normal and white in each view, the same where views see the same.

    Space is cut into cells, each with a normal number a channel. A pixel of x gets the sum over the cells
    that its part of the render shows, over the root of their count; a cell that several pixels show belongs
    to the first, so that no two pixels of a view share one. Pixels that own no cell, such as those of the
    background, have a field of their own on the screen, the same for all views. After Consistent Flow
    Distillation (Yan et al. 2025), which sums the texels of a surface.

    Between two fields, f and f + 1, it is sqrt(1 - s) of the one and sqrt(s) of the other. On CUDA this waits
    for the device: which cells are seen is known only there.
    """
    first, share = int(math.floor(at.field)), at.field - math.floor(at.field)
    found = _field(at, shape, seed, first)
    if share == 0.0:
        return found
    return math.sqrt(1.0 - share) * found + math.sqrt(share) * _field(at, shape, seed, first + 1)


def _field(at: Surface, shape: torch.Size, seed: int, field: int) -> Tensor:
    views, channels, h, w = shape
    device = at.points.device
    screen = normal(torch.arange(channels * h * w, device=device), mixed(seed, field, -1)).view(channels, -1)
    rows = torch.arange(at.seen.shape[1], device=device) * h // at.seen.shape[1]
    columns = torch.arange(at.seen.shape[2], device=device) * w // at.seen.shape[2]
    pixel = rows[:, None] * w + columns  # [H, W] of x
    keys = cell_keys((at.points / at.cell).floor().long())  # [B, H, W]
    out = []
    for b in range(views):
        cells, which = torch.unique(keys[b][at.seen[b]], return_inverse=True)
        shown = pixel[at.seen[b]]
        owner = torch.full_like(cells, h * w).scatter_reduce(0, which, shown, "amin")  # [V]
        count = torch.zeros(h * w, device=device, dtype=torch.float64).index_add_(
            0, owner, torch.ones_like(owner, dtype=torch.float64)
        )
        total = torch.stack(
            [
                torch.zeros_like(count).index_add_(0, owner, normal(cells, mixed(seed, field, c)))
                for c in range(channels)
            ]
        )
        out.append(torch.where(count > 0, total / count.clamp_min(1.0).sqrt(), screen).view(channels, h, w))
    return torch.stack(out)


def cell_keys(cells: Tensor) -> Tensor:
    """A number for each cell of space [..., 3], [...]: exact within a million cells of the origin."""
    x, y, z = (cells + 2**20).clamp(0, 2**21 - 1).unbind(-1)
    return (x << 42) | (y << 21) | z


def field_seed(seed: int, purpose: str, candidate: int) -> int:
    """Of the field of a candidate."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{candidate}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mixed(seed: int, field: int, channel: int) -> int:
    """A starting point for each seed, field and channel."""
    whole = (seed * 0x2545F4914F6CDD1D + field * 0x100000001B3 + channel * 0xD6E8FEB86659FD93) % 2**64
    return whole - 2**64 if whole >= 2**63 else whole


def normal(keys: Tensor, start: int) -> Tensor:
    """Standard normal numbers in float64 out of whole ones [...], on any device the same (Box and Muller)."""
    a = scrambled(keys * 2 + start)
    b = scrambled(keys * 2 + 1 + start)
    u, v = ((((z >> 11) & (2**53 - 1)).double() + 0.5) / 2**53 for z in (a, b))
    return (-2.0 * u.log()).sqrt() * (2.0 * math.pi * v).cos()


def scrambled(z: Tensor) -> Tensor:
    """splitmix64's finaliser, on signed numbers that wrap around."""
    z = z * GOLDEN
    z = (z ^ ((z >> 30) & (2**34 - 1))) * FIRST
    z = (z ^ ((z >> 27) & (2**37 - 1))) * SECOND
    return z ^ ((z >> 31) & (2**33 - 1))
