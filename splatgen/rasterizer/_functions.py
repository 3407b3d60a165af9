"""The numba kernels as differentiable torch operations: project, spherical_harmonics, composite.

`_torch` offers the same three functions in plain torch; `cpu.rasterization` uses either module.

Shapes: C cameras, N Gaussians, M rows (C N, or the visible ones when packed), D channels.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatgen.rasterizer import _bin, _composite, _project, _sh
from splatgen.rasterizer._jit import TILE, is_cached
from splatgen.rasterizer._pool import parallel

log = logging.getLogger("splatgen.rasterizer")

GRAIN = 1024  # Gaussians worth handing to another thread
GRAIN_TILES = 16
BANDS = 16  # horizontal bands an image is cut into for the backward, at most; fixed, see _composite


@functools.cache
def prepare() -> None:
    """Announce the one-off compilation when the disk cache has no kernels yet."""
    if not is_cached(_composite.composite_backward):
        log.info("compiling CPU kernels, about 10 s, once")


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.detach().numpy())


def _f32(*values: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(value) for value in values)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        view: Tensor,
        opacities: Tensor,
        Ks: Tensor,
        size: tuple[int, int],
        planes: tuple[float, float],
        eps2d: float,
        radius_clip: float,
        antialiased: bool,
    ) -> tuple[Tensor, ...]:
        C, N = view.shape[0], means.shape[0]
        radii = torch.zeros(C, N, 2, dtype=torch.int32)
        means2d, depths = torch.zeros(C, N, 2), torch.zeros(C, N)
        conics, comps = torch.zeros(C, N, 3), torch.zeros(C, N)
        inputs = [_array(t) for t in (means, quats, scales, opacities, view, Ks)]
        outputs = [t.numpy() for t in (radii, means2d, depths, conics, comps)]
        scalars = (_f32(*size), *_f32(*planes, eps2d, radius_clip), antialiased)
        parallel(_project.project_forward, N, GRAIN, *inputs, *scalars, *outputs)
        ctx.save_for_backward(means, quats, scales, view, Ks, conics, comps)
        ctx.size, ctx.eps2d = size, eps2d
        ctx.mark_non_differentiable(radii)
        return radii, means2d, depths, conics, comps

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, _v_radii: Any, *v_outputs: Tensor) -> tuple[Tensor | None, ...]:
        means, quats, scales, view, Ks, conics, comps = ctx.saved_tensors
        blocks = -(-means.shape[0] // _project.BLOCK)
        v_means, v_quats, v_scales = (torch.zeros(t.shape) for t in (means, quats, scales))
        wanted = ctx.needs_input_grad[3]
        v_view = np.zeros((blocks, view.shape[0] if wanted else 0, 3, 4))
        inputs = [_array(t) for t in (means, quats, scales, view, Ks)]
        saved = [_array(t) for t in (conics, comps, *v_outputs)]
        outputs = [t.numpy() for t in (v_means, v_quats, v_scales)]
        scalars = (_f32(*ctx.size), np.float32(ctx.eps2d))
        parallel(_project.project_backward, blocks, 1, *inputs, *scalars, *saved, *outputs, v_view)
        v_viewmats = torch.zeros_like(view) if wanted else None
        if v_viewmats is not None:
            v_viewmats[:, :3] = torch.from_numpy(v_view.sum(0))
        return v_means, v_quats, v_scales, v_viewmats, *[None] * 7


class Projected(NamedTuple):
    radii: Tensor  # [C, N, 2] int32; 0 where culled
    means2d: Tensor  # [C, N, 2] pixels
    depths: Tensor  # [C, N]
    conics: Tensor  # [C, N, 3] xx, xy, yy of the inverse covariance
    compensations: Tensor  # [C, N] antialiasing factor on the opacity


def project(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N], for the radii only: no gradient
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    *,
    size: tuple[int, int],
    planes: tuple[float, float],
    eps2d: float,
    radius_clip: float,
    antialiased: bool,
) -> Projected:
    """Screen ellipses; see `_project`."""
    return Projected(
        *_Project.apply(  # type: ignore[no-untyped-call]
            means, quats, scales, viewmats, opacities, Ks, size, planes, eps2d, radius_clip, antialiased
        )
    )


class _SphericalHarmonics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means: Tensor, centres: Tensor, coeffs: Tensor, radii: Tensor, degree: int
    ) -> Tensor:
        C, N = radii.shape[:2]
        colors = torch.zeros(C, N, 3)
        inputs = [_array(t) for t in (means, centres, coeffs, radii)]
        parallel(_sh.sh_forward, N, GRAIN, degree, *inputs, colors.numpy())
        ctx.save_for_backward(means, centres, coeffs, colors)
        ctx.degree = degree
        return colors

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, v_colors: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        means, centres, coeffs, colors = ctx.saved_tensors
        blocks = -(-means.shape[0] // _sh.BLOCK)
        v_means, v_coeffs = torch.zeros(means.shape), torch.zeros(coeffs.shape)
        v_centres = np.zeros((blocks, *centres.shape))
        inputs = [_array(t) for t in (means, centres, coeffs, colors, v_colors)]
        outputs = (v_means.numpy(), v_centres, v_coeffs.numpy())
        parallel(_sh.sh_backward, blocks, 1, ctx.degree, *inputs, *outputs)
        return v_means, torch.from_numpy(v_centres.sum(0)).to(centres.dtype), v_coeffs, None, None


def spherical_harmonics(
    degree: int,
    means: Tensor,  # [N, 3]
    centres: Tensor,  # [C, 3] camera positions
    coeffs: Tensor,  # [N, K, 3]
    radii: Tensor,  # [C, N, 2]; rows with a 0 are skipped
) -> Tensor:
    """Colours [C, N, 3], offset and clamped; see `_sh`."""
    colors: Tensor = _SphericalHarmonics.apply(  # type: ignore[no-untyped-call]
        means, centres, coeffs, radii, degree
    )
    return colors


class _Bins(NamedTuple):
    rec: np.ndarray[Any, Any]
    ext: np.ndarray[Any, Any]
    toff: np.ndarray[Any, Any]
    entries: np.ndarray[Any, Any]
    tiles_x: int
    tiles_y: int
    offsets: np.ndarray[Any, Any]  # [M + 1] rows of the backward's accumulator
    base: np.ndarray[Any, Any]  # [M] row of splat r in band b = base[r] + b

    @property
    def band_tiles(self) -> int:
        return -(-self.tiles_y // BANDS)

    @property
    def bands(self) -> int:
        return -(-self.tiles_y // self.band_tiles)


def _bins(
    means2d: Tensor, conics: Tensor, opacities: Tensor, depths: Tensor, radii: Tensor, rows: Any, size: Any
) -> _Bins:
    M, C = opacities.shape[0], len(rows) - 1
    width, height = size
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    band = TILE * -(-tiles_y // BANDS)
    rec, ext = np.empty((M, 8), np.float32), np.empty((M, 4), np.int32)
    tiles, bands = np.zeros(M + 1, np.int32), np.zeros(M + 1, np.int32)
    inputs = [_array(t) for t in (means2d, conics, opacities, radii)]
    parallel(_bin.pack, M, GRAIN, *inputs, width, height, band, rec, ext, tiles, bands)
    offsets = np.cumsum(bands, dtype=np.int64)
    start = np.concatenate([[0], np.cumsum(tiles, dtype=np.int64)[rows[1:]]])
    toff = np.empty((C, tiles_x * tiles_y + 1), np.int64)
    entries = np.empty(start[-1], np.int32)
    bits = _array(depths).view(np.uint32)
    parallel(_bin.bin_tiles, C, 1, rows, bits, ext, tiles, start, tiles_x, tiles_y, toff, entries)
    return _Bins(rec, ext, toff, entries, tiles_x, tiles_y, offsets, offsets[:-1] - ext[:, 2] // band)


def _channels(values: Tensor, first: int) -> np.ndarray[Any, Any]:
    """Channels first..first+4 of [M, D], padded with zeros to four."""
    out = np.zeros((values.shape[0], 4), np.float32)
    chunk = values.detach().numpy()[:, first : first + 4]
    out[:, : chunk.shape[1]] = chunk
    return out


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        colors: Tensor,
        opacities: Tensor,
        backgrounds: Tensor,
        depths: Tensor,
        radii: Tensor,
        rows: np.ndarray[Any, Any],
        size: tuple[int, int],
        absgrad: bool,
    ) -> tuple[Tensor, Tensor]:
        width, height = size
        C, D = backgrounds.shape
        flat = means2d.reshape(-1, 2), conics.reshape(-1, 3), opacities.reshape(-1), depths.reshape(-1)
        bins = _bins(*flat, radii.reshape(-1, 2), rows, size)
        image, T_end = torch.empty(C, height, width, D), torch.empty(C, height, width)
        last = np.empty((C, height, width), np.int32)
        lists = (bins.toff, bins.entries, bins.tiles_x)
        outputs = (image.numpy(), T_end.numpy(), last)
        for first in range(0, D, 4):  # four channels a pass: RGB and depth go together
            col = _channels(colors.reshape(-1, D), first)
            args = (bins.rec, bins.ext, col, *lists, _array(backgrounds), first, *outputs)
            parallel(_composite.composite_forward, C * bins.tiles_x * bins.tiles_y, GRAIN_TILES, *args)
        ctx.save_for_backward(means2d, conics, colors, opacities, backgrounds, T_end)
        ctx.bins, ctx.last, ctx.absgrad = bins, last, absgrad
        return image, 1.0 - T_end

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, v_image: Tensor, v_alpha: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        means2d, conics, colors, opacities, backgrounds, T_end = ctx.saved_tensors
        bins, (C, D) = ctx.bins, backgrounds.shape
        gradients = [torch.zeros(t.shape) for t in (means2d, conics, opacities, colors, means2d)]
        shapes = ((-1, 2), (-1, 3), (-1,), (-1, D), (-1, 2))
        outputs = [t.view(shape).numpy() for t, shape in zip(gradients, shapes, strict=True)]
        lists = (bins.toff, bins.entries, bins.tiles_x, _array(backgrounds))
        pixels = (_array(v_image), _array(v_alpha), _array(T_end), ctx.last)
        for first in range(0, D, 4):
            acc = np.zeros((bins.offsets[-1], _composite.MOMENTS), np.float32)
            where = (bins.band_tiles, bins.bands, bins.base, acc)
            col = _channels(colors.reshape(-1, D), first)
            args = (bins.rec, bins.ext, col, *lists, first, *pixels, *where)
            parallel(_composite.composite_backward, C * bins.bands, 1, *args)
            parallel(_composite.gather, len(bins.base), GRAIN, bins.rec, bins.offsets, acc, first, *outputs)
        v_means2d, v_conics, v_opacities, v_colors, absolute = gradients
        if ctx.absgrad:
            means2d.absgrad = absolute  # where gsplat's DefaultStrategy looks for it
        # by rows: a matrix product would add up in an order that depends on the number of threads
        seen = (v_image * T_end[..., None]).sum(2).sum(1) if ctx.needs_input_grad[4] else None
        return v_means2d, v_conics, v_colors, v_opacities, seen, *[None] * 5


def composite(
    means2d: Tensor,  # [C, N, 2] or [M, 2]; with absgrad, means2d.absgrad is set in the backward
    conics: Tensor,  # [C, N, 3] or [M, 3]
    colors: Tensor,  # [C, N, D] or [M, D]
    opacities: Tensor,  # [C, N] or [M]
    backgrounds: Tensor,  # [C, D]
    *,
    depths: Tensor,  # [C, N] or [M]; the order, no gradient
    radii: Tensor,  # [C, N, 2] or [M, 2] int32
    rows: np.ndarray[Any, Any],  # [C + 1] where each image's rows begin
    size: tuple[int, int],  # width, height
    absgrad: bool,
) -> tuple[Tensor, Tensor]:
    """Image [C, H, W, D] and alpha [C, H, W]; see `_composite`."""
    image, alpha = _Composite.apply(  # type: ignore[no-untyped-call]
        means2d, conics, colors, opacities, backgrounds, depths.detach(), radii, rows, size, absgrad
    )
    return image, alpha
