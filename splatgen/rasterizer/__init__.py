"""Rendering: splats and cameras to images, differentiable in everything.

gsplat's kernels or our own in Triton serve CUDA tensors (`backends` says which), `splatgen.rasterizer.cpu`
the others.

Not here: what is in the scene, and films or sheets made of pictures.

Shapes: B cameras, N splats, H x W pixels.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from splatgen.rasterizer.backends import pick_backend
from splatgen.scene.cameras import Cameras, viewmats
from splatgen.scene.splats import Splats, check
from splatgen.scene.uploads import upload_together

BACKEND_VARIABLE = "SPLATGEN_CPU_BACKEND"  # numba (the default) or torch


@dataclass(frozen=True, kw_only=True)
class Render:
    """What a batch of cameras sees. Colours are not clamped above 1; depth is the expected z."""

    rgb: Tensor  # [B, 3, H, W]
    alpha: Tensor  # [B, 1, H, W]
    depth: Tensor  # [B, 1, H, W] alpha-weighted mean distance along the axis, 0 where nothing is
    info: dict[str, Any] = field(repr=False)  # gsplat's meta: means2d, radii, gaussian_ids, width, ...


def _check_finite(splats: Splats) -> None:
    """One broken splat spreads NaN over the image and, a step later, over every parameter."""
    for name, value in splats.tensors().items():
        rows = value.detach().reshape(len(splats), -1)
        # A sum is finite if all terms are (below 1e30 or so), and twice as cheap as looking at each.
        if not torch.isfinite(rows.sum()):
            bad = int((~torch.isfinite(rows)).any(-1).sum())
            if bad:
                raise ValueError(
                    f"splats.{name} has {bad} of {len(splats)} rows that are not finite: "
                    "remove them, or lower the learning rate that produced them"
                )
    zero = int((splats.quats.detach().square().sum(-1) == 0).sum())
    if zero:
        raise ValueError(
            f"splats.quats has {zero} of {len(splats)} rows of norm 0, which are no rotation: "
            "set them to (1, 0, 0, 0)"
        )


def _backgrounds(background: Tensor | None, cameras: Cameras, like: Tensor) -> Tensor:
    """[B, 3]; black by default."""
    if background is None:
        return like.new_zeros(len(cameras), 3)
    if background.shape not in ((3,), (len(cameras), 3)):
        raise ValueError(
            f"background has shape {tuple(background.shape)}, expected (3,) or ({len(cameras)}, 3): "
            "one colour, or one per camera"
        )
    return background.to(like.dtype).expand(len(cameras), 3)


def _blank(splats: Splats, cameras: Cameras, backgrounds: Tensor) -> Render:
    """No splats: the background, connected to the (empty) parameters so that backward() works."""
    B, H, W = len(cameras), cameras.height, cameras.width
    nothing = sum((value.sum() for value in splats.tensors().values()), backgrounds.new_zeros(()))
    info: dict[str, Any] = {
        "means2d": splats.means[:, :2].expand(B, 0, 2) * 1.0,
        "radii": torch.zeros(B, 0, 2, dtype=torch.int32, device=splats.means.device),
        "gaussian_ids": None,
        "camera_ids": None,
        "width": W,
        "height": H,
        "n_cameras": B,
    }
    zeros = backgrounds.new_zeros(B, 1, H, W) + nothing
    return Render(rgb=backgrounds[:, :, None, None] + zeros, alpha=zeros, depth=zeros, info=info)


def _rasterization(splats: Splats, backend: str | None) -> Callable[..., Any]:
    """The function that renders these splats, with gsplat's arguments."""
    if splats.means.is_cuda:
        backend = pick_backend(backend or "auto")
    else:
        _check_finite(splats)  # on CUDA it would wait for the device
        if backend in (None, "auto"):
            backend = os.environ.get(BACKEND_VARIABLE, "numba")
    if backend == "gsplat":
        import gsplat

        return gsplat.rasterization  # type: ignore[no-any-return]
    if backend == "triton":
        from splatgen.rasterizer import triton_rasterizer

        return triton_rasterizer.rasterization
    from splatgen.rasterizer import cpu

    chosen: Any = backend  # which cpu checks
    return functools.partial(cpu.rasterization, backend=chosen)


def render(
    splats: Splats,
    cameras: Cameras,
    background: Tensor | None = None,  # [3] or [B, 3]
    *,
    antialiased: bool = False,
    absgrad: bool = False,
    packed: bool = False,
    backend: str | None = None,
) -> Render:
    """Render splats from every camera.

    info is what gsplat's strategies read; call info["means2d"].retain_grad() before the backward.
    backend on CUDA is "gsplat", "triton" or "auto", the default: gsplat where its kernels are built, else
    Triton. On the CPU it is "numba", "torch" (slow, for comparison), or "triton" in Triton's interpreter; the
    default is the environment's SPLATGEN_CPU_BACKEND, else numba. Raises BackendError where there is none.
    """
    check(splats)
    device = splats.means.device
    backgrounds = _backgrounds(background, cameras, splats.means)
    w2c, Ks, backgrounds = upload_together((viewmats(cameras), cameras.K, backgrounds), device)
    if len(splats) == 0:
        return _blank(splats, cameras, backgrounds)
    arguments: dict[str, Any] = {
        "means": splats.means,
        "quats": splats.quats,
        "scales": splats.scales.exp(),
        "opacities": splats.opacities.sigmoid(),
        "colors": splats.sh,
        "viewmats": w2c,
        "Ks": Ks,
        "width": cameras.width,
        "height": cameras.height,
        "sh_degree": splats.sh_degree,
        "backgrounds": backgrounds,
        "render_mode": "RGB+ED",
        "rasterize_mode": "antialiased" if antialiased else "classic",
        "absgrad": absgrad,
        "packed": packed,
    }
    image, alpha, info = _rasterization(splats, backend)(**arguments)
    image, alpha = image.permute(0, 3, 1, 2), alpha.permute(0, 3, 1, 2)
    return Render(rgb=image[:, :3], alpha=alpha, depth=image[:, 3:], info=info)
