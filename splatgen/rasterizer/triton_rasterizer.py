"""`gsplat.rasterization` with kernels in Triton: the same arguments, conventions and meta dictionary.

For machines with a GPU and no compiler: Triton comes with torch's CUDA and ROCm builds. Projection is
`triton_projection`, the tiles' lists are torch's sorts and `triton_lists`, compositing is `triton_kernels`;
harmonics above degree 0 are plain torch. On CPU tensors the kernels run in Triton's interpreter
(TRITON_INTERPRET=1), thousands of times slower, for tests.

Waits for the device: one a render, for the length of the tiles' lists (`_tiles`), and one more when packed.

Shapes: C cameras, N Gaussians, D channels, M rows (C N, or the visible ones when packed).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatgen.rasterizer import _torch, triton_launch
from splatgen.rasterizer._tiles import TileLists, tile_lists
from splatgen.rasterizer.cpu import RenderMode, _check_all, _take, _with_depth
from splatgen.rasterizer.triton_launch import kernels

TILE = 16  # pixels, as in the kernels
ROWS = 8  # of a tile in one program: 65 to 100 registers a thread; 16 need 160, and give half the programs
WARPS = 1  # a program; see `triton_kernels`
BLOCK = 32  # Gaussians in a program of the projection, one a thread of its warp
LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
RECORD = 12
ALPHA_MIN = 1.0 / 255.0


def _records(means2d: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor, first: int) -> Tensor:
    """[M, RECORD]: mean, conic in units of log2(e) with the diagonal halved, opacity, four channels."""
    channels = colors[:, first : first + 4]
    unused = means2d.new_empty(len(means2d), RECORD - 6 - channels.shape[1]).zero_()
    out = torch.cat([means2d, conics, opacities[:, None], channels, unused], 1)
    out[:, 2:5].mul_(LOG2E)
    out[:, 2:5:2].mul_(0.5)
    return out


def _launch_tiles(kernel: Any, lists: TileLists, *args: Any, **constants: Any) -> None:
    programs = (len(lists.starts) - 1) * (TILE // ROWS)
    triton_launch.launch(kernel, programs, *args, **constants, ROWS=ROWS, num_warps=WARPS)


class _Project(torch.autograd.Function):
    """As `_torch.project`, whose intrinsics and opacities get no gradient here either."""

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, viewmats: Tensor,
        Ks: Tensor, size: tuple[int, int], planes: tuple[float, float], eps2d: float, radius_clip: float,
        antialiased: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        given = tuple(z.contiguous() for z in (means, quats, scales, opacities, viewmats, Ks))
        C, N = len(viewmats), len(means)
        radii = means.new_empty(C, N, 2, dtype=torch.int32)
        means2d, depths, conics, compensations = (
            means.new_empty(C, N, *last) for last in ((2,), (), (3,), ())
        )
        triton_launch.launch(
            kernels("triton_projection").project_forward, -(-N // BLOCK), *given, radii, means2d, depths,
            conics, compensations, N, C, *size, *planes, eps2d, radius_clip,
            ANTIALIASED=antialiased, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        ctx.mark_non_differentiable(radii)
        ctx.save_for_backward(*given[:3], *given[4:], radii, conics, compensations)
        ctx.size, ctx.eps2d, ctx.antialiased = size, eps2d, antialiased
        return radii, means2d, depths, conics, compensations

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, _: Tensor, *v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        means, quats, scales, viewmats, *_ = saved = ctx.saved_tensors
        found = [torch.empty_like(z) for z in (means, quats, scales)]
        views = torch.zeros_like(viewmats)
        triton_launch.launch(
            kernels("triton_projection").project_backward, -(-len(means) // BLOCK), *saved,
            *(z.contiguous() for z in v), *found, views, len(means), len(viewmats), *ctx.size, ctx.eps2d,
            ANTIALIASED=ctx.antialiased, VIEWS=ctx.needs_input_grad[4], BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        return (*found, None, views if ctx.needs_input_grad[4] else None, *(None,) * 6)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, backgrounds: Tensor,
        lists: TileLists, size: tuple[int, int], absgrad: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        (C, D), (width, height) = backgrounds.shape, size
        flat = means2d.reshape(-1, 2), conics.reshape(-1, 3), opacities.reshape(-1), colors.reshape(-1, D)
        image, T_end = means2d.new_empty(C, height, width, D), means2d.new_empty(C, height, width)
        last = torch.empty_like(T_end, dtype=torch.int32)
        backgrounds = backgrounds.contiguous()
        for first in range(0, D, 4):  # four channels a pass: RGB and depth go together
            _launch_tiles(
                kernels("triton_kernels").composite_forward, lists, _records(*flat, first), lists.entries,
                lists.starts, backgrounds, image, T_end, last, width, height, lists.across, lists.down,
                D, first,
            )  # fmt: skip
        ctx.save_for_backward(means2d, conics, colors, opacities, backgrounds, T_end, last)
        ctx.lists, ctx.size, ctx.absgrad = lists, size, absgrad
        return image, 1.0 - T_end

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, v_image: Tensor, v_alpha: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        means2d, conics, colors, opacities, backgrounds, T_end, last = ctx.saved_tensors
        D, (width, height), lists = backgrounds.shape[1], ctx.size, ctx.lists
        flat = means2d.reshape(-1, 2), conics.reshape(-1, 3), opacities.reshape(-1), colors.reshape(-1, D)
        v_image, v_alpha = v_image.contiguous(), v_alpha.contiguous()
        geometry, v_colors = means2d.new_zeros(len(flat[0]), RECORD), []
        for first in range(0, D, 4):
            moments = torch.zeros_like(geometry)
            _launch_tiles(
                kernels("triton_kernels").composite_backward, lists, _records(*flat, first), lists.entries,
                lists.starts, backgrounds, v_image, v_alpha, T_end, last, moments, width, height,
                lists.across, lists.down, D, first, ABSGRAD=ctx.absgrad,
            )  # fmt: skip
            v_colors.append(moments[:, 6 : 6 + min(4, D - first)])
            geometry = geometry + moments if first else moments
        v_means2d, v_conics, v_opacities = _from_moments(geometry, flat[1], flat[2])
        if ctx.absgrad:  # where gsplat's DefaultStrategy looks for it
            means2d.absgrad = (LN2 * geometry[:, 10:12]).view_as(means2d)
        v_backgrounds = (v_image * T_end[..., None]).sum((1, 2)) if ctx.needs_input_grad[4] else None
        return (
            v_means2d.view_as(means2d), v_conics.view_as(conics), torch.cat(v_colors, -1).view_as(colors),
            v_opacities.view_as(opacities), v_backgrounds, None, None, None,
        )  # fmt: skip


def _from_moments(moments: Tensor, conics: Tensor, opacities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of means2d [M, 2], conics [M, 3] and opacities [M].

    dL/dsigma = -g, so v_mean = -(a G_x + b G_y, b G_x + c G_y), v_conic = -(G_xx / 2, G_xy, G_yy / 2) and
    v_opacity = G / o.
    """
    G, x, y = moments[:, :3].unbind(-1)
    a, b, c = conics.unbind(-1)
    v_means2d = torch.stack([torch.addcmul(a * x, b, y), torch.addcmul(b * x, c, y)], -1).neg_()
    v_conics = moments[:, 3:6].neg()
    v_conics[:, ::2].mul_(0.5)
    return v_means2d, v_conics, G / opacities.clamp(min=ALPHA_MIN)  # fainter ones are in no list


def _check_device(means: Tensor) -> None:
    if means.device.type == "cpu":
        from triton import knobs

        if not knobs.runtime.interpret:
            raise ValueError(
                "the Triton rasterizer was given CPU tensors: move them to a GPU, render them with "
                "splatgen.rasterizer.cpu, or set TRITON_INTERPRET=1 to test the kernels"
            )


def _colors(colors: Tensor, means: Tensor, viewmats: Tensor, radii: Tensor, sh_degree: int | None) -> Tensor:
    """[C, N, D] from per-Gaussian values, per-camera values or harmonics."""
    if sh_degree is None:
        return colors if colors.ndim == 3 else colors.expand(viewmats.shape[0], *colors.shape)
    if sh_degree == 0:  # the same from everywhere; what is not seen is in no list
        return (_torch.SH[0] * colors[:, 0] + 0.5).clamp(min=0.0).expand(len(viewmats), -1, 3)
    inverse, _ = torch.linalg.inv_ex(viewmats)  # unlike torch.inverse, no wait for its error code
    return _torch.spherical_harmonics(sh_degree, means, inverse[:, :3, 3], colors, radii)


def rasterization(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4] wxyz, any norm but 0
    scales: Tensor,  # [N, 3] linear
    opacities: Tensor,  # [N] in 0..1
    colors: Tensor,  # [N, D] or [C, N, D]; [N, K, 3] with sh_degree
    viewmats: Tensor,  # [C, 4, 4] world to camera, OpenCV
    Ks: Tensor,  # [C, 3, 3] pixels
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    backgrounds: Tensor | None = None,  # [C, D]
    render_mode: RenderMode = "RGB",
    absgrad: bool = False,
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render; returns image [C, H, W, D(+1)], alpha [C, H, W, 1] and the meta dictionary.

    Follows gsplat 1.5.3. With absgrad, meta["means2d"].absgrad holds the sum over pixels of |dL/dmeans2d|
    after the backward. Raises ValueError for arguments that do not fit, ImportError without Triton.
    """
    _check_all(
        means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, width, height, sh_degree,
        device=means.device,
    )  # fmt: skip
    kernels("triton_kernels")
    _check_device(means)
    channels = (0 if render_mode in ("D", "ED") else colors.shape[-1]) + (render_mode != "RGB")
    if absgrad and channels > 4:
        raise ValueError(
            f"absgrad with {channels} channels: at most 4 share a pass of the kernels, so absolute values "
            "cannot be summed; render the colours with absgrad and the other channels without"
        )
    C, N = viewmats.shape[0], means.shape[0]
    antialiased = rasterize_mode == "antialiased"
    found = _Project.apply(  # type: ignore[no-untyped-call]
        means, quats, scales, opacities, viewmats, Ks, (width, height), (float(near_plane), float(far_plane)),
        float(eps2d), float(radius_clip), antialiased,
    )  # fmt: skip
    projected = _torch.Projected(*found)
    opacities = opacities.expand(C, N)
    if antialiased:
        opacities = opacities * projected.compensations
    colors = _colors(colors, means, viewmats, projected.radii, sh_degree)  # [C, N, D]
    ids: tuple[Tensor, Tensor] | None = None
    images = torch.arange(C, device=means.device).repeat_interleave(N, output_size=C * N)
    if packed:
        camera_ids, gaussian_ids = torch.where((projected.radii > 0).all(-1))  # the second wait
        ids, images = (camera_ids, gaussian_ids), camera_ids
    radii, means2d, depths, conics = (_take(v, ids) for v in projected[:4])
    opacities, colors = _take(opacities, ids), _take(colors, ids)
    if backgrounds is None:
        backgrounds = means.new_zeros(C, colors.shape[-1])
    colors, backgrounds = _with_depth(colors, depths, backgrounds, render_mode)
    with torch.no_grad():
        lists = tile_lists(
            means2d.reshape(-1, 2), radii.reshape(-1, 2), depths.reshape(-1), images,
            count=C, size=(width, height), tile=TILE,
        )  # fmt: skip
    image, alpha = _Composite.apply(  # type: ignore[no-untyped-call]
        means2d, conics, colors, opacities, backgrounds, lists, (width, height), absgrad
    )
    alpha = alpha[..., None]
    if render_mode in ("ED", "RGB+ED"):
        image = torch.cat([image[..., :-1], image[..., -1:] / alpha.clamp(min=1e-10)], -1)
    meta = {
        "batch_ids": None if ids is None else torch.zeros_like(ids[0]),
        "camera_ids": None if ids is None else ids[0],
        "gaussian_ids": None if ids is None else ids[1],
        "radii": radii, "means2d": means2d, "depths": depths, "conics": conics, "opacities": opacities,
        "tile_width": lists.across, "tile_height": lists.down, "tile_size": TILE,
        "tiles_per_gauss": lists.counts.view(radii.shape[:-1]), "flatten_ids": lists.entries,
        "isect_offsets": lists.starts[:-1].view(C, lists.down, lists.across),
        "width": width, "height": height, "n_batches": 1, "n_cameras": C,
    }  # fmt: skip
    return image, alpha, meta
