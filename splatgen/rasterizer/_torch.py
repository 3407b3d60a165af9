"""The CPU rasterizer in plain torch with autograd: an oracle for the kernels and a yardstick.

Same three functions as `_functions` and 10 to 20 times slower. All tiles advance together through
their lists, padded to a multiple of CHUNK, and leave when all their pixels are opaque.

Shapes: C cameras, N Gaussians, M rows (C N, or the visible ones when packed), D channels,
t tiles in a batch, P pixels a tile, L splats blended at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

TILE = 8  # pixels, as in the kernels
CHUNK = 64  # splats blended at a time (L)
BATCH = 1024  # tiles blended at a time: 16 MB for each intermediate [t, P, L]
ALPHA_MAX, ALPHA_MIN, T_STOP = 0.999, 1.0 / 255.0, 1e-4
EXTENT = 3.33
SH = (
    0.28209479177387814, 0.4886025119029199, 1.0925484305920792, 0.9461746957575601, 0.3153915652525201,
    0.5462742152960396, 0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154,
    1.445305721320277,
)  # fmt: skip


def prepare() -> None:
    """Nothing to compile."""


class Projected(NamedTuple):
    radii: Tensor  # [C, N, 2] int32
    means2d: Tensor  # [C, N, 2]
    depths: Tensor  # [C, N]
    conics: Tensor  # [C, N, 3]
    compensations: Tensor  # [C, N]


def _rotations(quats: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of wxyz quaternions of any norm."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def _jacobians(points: Tensor, Ks: Tensor, size: tuple[int, int]) -> Tensor:
    """[C, N, 2, 3] at x/z, y/z clamped to the image plus 30 % of the half field of view."""
    z, rows = points[..., 2], []
    for axis in range(2):
        focal, centre = Ks[:, axis, axis, None], Ks[:, axis, 2, None]
        edge = 0.15 * size[axis] / focal
        ratio = (points[..., axis] / z).clamp(-centre / focal - edge, (size[axis] - centre) / focal + edge)
        row = [torch.zeros_like(z), torch.zeros_like(z), -focal * ratio / z]
        row[axis] = focal / z
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def _product(A: Tensor, B: Tensor) -> Tensor:
    """A @ B of small matrices in float32. On a GPU `@` may round to ten bits: splats move by pixels."""
    return (A[..., :, :, None] * B[..., None, :, :]).sum(-2)


def project(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, viewmats: Tensor, Ks: Tensor, *,
    size: tuple[int, int], planes: tuple[float, float], eps2d: float, radius_clip: float, antialiased: bool,
) -> Projected:  # fmt: skip
    """As `_functions.project`."""
    R, t = viewmats[:, None, :3, :3], viewmats[:, None, :3, 3]
    points = _product(R, means[:, :, None])[..., 0] + t  # [C, N, 3]
    in_range = (points[..., 2] >= planes[0]) & (points[..., 2] <= planes[1])
    ahead = torch.eye(3, device=points.device)[2]  # keeps 1/0 out of the gradient
    points = torch.where(in_range[..., None], points, ahead)
    A = _product(_product(_jacobians(points, Ks, size), R), _rotations(quats) * scales[:, None, :])
    p, q = A.unbind(-2)
    xx, xy, yy = (p * p).sum(-1), (p * q).sum(-1), (q * q).sum(-1)
    sharp = torch.linalg.cross(p, q).square().sum(-1)  # |A A^T|
    det = sharp + eps2d * (xx + yy) + eps2d * eps2d
    xx, yy = xx + eps2d, yy + eps2d
    kept = sharp > 0  # a root's slope at 0 is infinite
    comps = torch.where(kept, torch.sqrt(torch.where(kept, sharp / det, 1.0)), 0.0)
    comps = comps if antialiased else torch.ones_like(det)
    f, c = torch.stack([Ks[:, 0, 0], Ks[:, 1, 1]], -1), Ks[:, :2, 2]
    means2d = points[..., :2] / points[..., 2:] * f[:, None] + c[:, None]
    with torch.no_grad():
        opacity = opacities * comps
        extent = torch.sqrt(2 * torch.log(opacity / ALPHA_MIN)).clamp(max=EXTENT)
        radii = torch.ceil(extent[..., None] * torch.stack([xx, yy], -1).sqrt())  # [C, N, 2]
        low, high = means2d - radii, means2d + radii
        inside = (high > 0).all(-1) & (low[..., 0] < size[0]) & (low[..., 1] < size[1])
        valid = in_range & (det > 0) & (opacity >= ALPHA_MIN) & inside & (radii > radius_clip).any(-1)
        radii = torch.where(valid[..., None], radii.clamp(max=1e9), 0.0).int()
    conics = torch.stack([yy / det, -xy / det, xx / det], -1)
    kept = valid[..., None]
    return Projected(
        radii=radii,
        means2d=torch.where(kept, means2d, 0.0),
        depths=torch.where(valid, points[..., 2], 0.0),
        conics=torch.where(kept, conics, 0.0),
        compensations=torch.where(valid, comps, 0.0),
    )


def spherical_harmonics(degree: int, means: Tensor, centres: Tensor, coeffs: Tensor, radii: Tensor) -> Tensor:
    """As `_functions.spherical_harmonics`."""
    x, y, z = torch.nn.functional.normalize(means - centres[:, None], dim=-1).unbind(-1)  # [C, N]
    xx, yy, zz = x * x, y * y, z * z
    Y = [torch.full_like(x, SH[0])]
    if degree >= 1:
        Y += [-SH[1] * y, SH[1] * z, -SH[1] * x]
    if degree >= 2:
        Y += [SH[2] * x * y, -SH[2] * y * z, SH[3] * zz - SH[4], -SH[2] * x * z, SH[5] * (xx - yy)]
    if degree >= 3:
        Y += [-SH[6] * y * (3 * xx - yy), SH[7] * x * y * z, SH[8] * y * (1 - 5 * zz)]
        Y += [SH[9] * z * (5 * zz - 3), SH[8] * x * (1 - 5 * zz), SH[10] * z * (xx - yy)]
        Y += [-SH[6] * x * (xx - 3 * yy)]
    colors = sum((y[..., None] * coeffs[:, k] for k, y in enumerate(Y)), torch.zeros_like(x[..., None]))
    visible = (radii > 0).all(-1, keepdim=True)
    return torch.where(visible, (colors + 0.5).clamp(min=0.0), 0.0)


def blend(
    splats: Tensor,  # [t, L, 6 + D] mean x, y, conic a, b, c, opacity (0 in the padding), colour
    origins: Tensor,  # [t, 2] pixel of each tile's corner
    T: Tensor,  # [t, P] transmittance in front of these splats
    done: Tensor,  # [t, P] pixels that stopped before them
    record: Callable[[Tensor, int], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [t, P, D], T and done behind the next L splats; formulas in `_composite`."""
    steps = torch.arange(TILE, dtype=T.dtype) + 0.5
    ys, xs = torch.meshgrid(steps, steps, indexing="ij")
    x, y, a, b, c, o = (values[:, None] for values in splats[..., :6].unbind(-1))  # [t, 1, L]
    dx = x - (origins[:, :1] + xs.reshape(-1))[..., None]  # [t, P, L]
    dy = y - (origins[:, 1:] + ys.reshape(-1))[..., None]
    if record is not None:
        record(dx, 0)
        record(dy, 1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (o * torch.exp(-sigma)).clamp(max=ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, 0.0)
    after = T[..., None] * torch.cumprod(1 - alpha, -1)
    kept = (after > T_STOP) & ~done[..., None]
    before = torch.cat([T[..., None], after], -1)
    weights = torch.where(kept, alpha * before[..., :-1], 0.0)
    T = before.gather(-1, kept.sum(-1, keepdim=True))[..., 0]  # `after` only falls: kept is a prefix
    return weights @ splats[..., 6:], T, done | ~kept[..., -1]


def _entries(
    means2d: Tensor, radii: Tensor, opacities: Tensor, depths: Tensor, images: Tensor, size: Any
) -> Any:
    """Splat row and tile of every list entry, tile by tile and front to back."""
    grid = torch.tensor([-(-size[0] // TILE), -(-size[1] // TILE)])
    visible = ((radii > 0).all(-1) & (opacities >= ALPHA_MIN))[:, None]
    low = ((means2d - radii) / TILE).floor().clamp(min=0).minimum(grid).long()
    high = (((means2d + radii) / TILE).floor() + 1).clamp(min=0).minimum(grid).long()
    span = torch.where(visible, (high - low).clamp(min=0), 0)  # [M, 2]
    counts = span.prod(-1)
    row = torch.repeat_interleave(counts)
    index = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    x, y = low[row, 0] + index % span[row, 0], low[row, 1] + index // span[row, 0]
    tile = (images[row] * grid[1] + y) * grid[0] + x
    order = torch.argsort(depths[row], stable=True)
    order = order[torch.argsort(tile[order], stable=True)]
    return row[order], tile[order], grid.tolist()


def _recorder(means2d: Tensor, rows: Tensor) -> Callable[[Tensor, int], None]:
    """Adds |gradient| of every pixel's own copy of the means to means2d.absgrad."""
    if not hasattr(means2d, "absgrad"):
        means2d.absgrad = torch.zeros(means2d.shape)  # type: ignore[attr-defined]
    target = means2d.absgrad.view(-1, 2)  # type: ignore[attr-defined]

    def record(offsets: Tensor, axis: int) -> None:
        def add(gradient: Tensor) -> None:  # [t, P, L]
            target[:, axis].index_add_(0, rows.reshape(-1), gradient.abs().sum(1).reshape(-1))

        if offsets.requires_grad:
            offsets.register_hook(add)  # type: ignore[no-untyped-call]

    return record


def composite(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, backgrounds: Tensor, *,
    depths: Tensor, radii: Tensor, rows: np.ndarray[Any, Any], size: tuple[int, int], absgrad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `_functions.composite`."""
    C, D = backgrounds.shape
    flat = means2d.reshape(-1, 2), conics.reshape(-1, 3), colors.reshape(-1, D), opacities.reshape(-1)
    images = torch.repeat_interleave(torch.arange(C), torch.from_numpy(np.diff(rows)))
    with torch.no_grad():
        row, tile, (tiles_x, tiles_y) = _entries(
            flat[0], radii.reshape(-1, 2), flat[3], depths.reshape(-1), images, size
        )
    table = torch.cat([flat[0], flat[1], flat[3][:, None], flat[2]], -1)  # [M, 6 + D]
    lengths = torch.bincount(tile, minlength=C * tiles_x * tiles_y)
    starts = lengths.cumsum(0) - lengths
    image, T_end = table.new_zeros(len(lengths), TILE * TILE, D), table.new_ones(len(lengths), TILE * TILE)
    done = torch.zeros_like(T_end, dtype=torch.bool)
    for begin in range(0, int(lengths.max()), CHUNK):  # nearest splats first, so that full tiles drop out
        unfinished = ((lengths > begin) & ~done.all(-1)).nonzero()[:, 0]
        for batch in torch.split(unfinished, BATCH):  # type: ignore[no-untyped-call]
            place = begin + torch.arange(CHUNK)
            real = place < lengths[batch, None]  # [t, L]
            ids = row[torch.where(real, starts[batch, None] + place, 0)]
            corner = torch.stack([batch % tiles_x, batch // tiles_x % tiles_y], -1) * TILE
            record = _recorder(means2d, ids) if absgrad else None
            splats = torch.where(real[..., None], table[ids], 0.0)
            colour, T, stopped = blend(splats, corner, T_end[batch], done[batch], record)
            image, T_end = image.index_add(0, batch, colour), T_end.index_copy(0, batch, T)
            done[batch] = stopped
    image = _untile(image, C, tiles_x, tiles_y, size)
    T_end = _untile(T_end[..., None], C, tiles_x, tiles_y, size)
    return image + T_end * backgrounds[:, None, None], 1.0 - T_end[..., 0]


def _untile(values: Tensor, C: int, tiles_x: int, tiles_y: int, size: tuple[int, int]) -> Tensor:
    """[C tiles, P, D] to [C, H, W, D]."""
    D = values.shape[-1]
    values = values.reshape(C, tiles_y, tiles_x, TILE, TILE, D).permute(0, 1, 3, 2, 4, 5)
    return values.reshape(C, tiles_y * TILE, tiles_x * TILE, D)[:, : size[1], : size[0]]
