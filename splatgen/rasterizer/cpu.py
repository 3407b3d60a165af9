"""`gsplat.rasterization` for CPU tensors: the same arguments, conventions and meta dictionary.

Shapes: C cameras, N Gaussians, K = (degree + 1)^2 coefficients, D channels, M visible rows.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Backend = Literal["numba", "torch"]
RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
CPU = torch.device("cpu")


def _operations(backend: Backend) -> Any:
    """The module with project, spherical_harmonics and composite. numba is imported here, not earlier."""
    if backend not in ("numba", "torch"):
        raise ValueError(f"unknown CPU rendering backend {backend!r}: choose 'numba' or 'torch'")
    name = {"numba": "_functions", "torch": "_torch"}[backend]
    try:
        module = importlib.import_module(f"splatgen.rasterizer.{name}")
    except ImportError as error:
        raise ImportError(
            f"rendering on the CPU needs numba, which cannot be imported ({error}): `pip install numba`, "
            "or pass backend='torch' for a version without it that is 10 to 20 times slower"
        ) from error
    except RuntimeError as error:  # numba found no folder for its compiled kernels
        raise RuntimeError(
            f"numba cannot keep compiled kernels ({error}): set NUMBA_CACHE_DIR to a folder that is writable"
        ) from error
    module.prepare()
    return module


def _check(name: str, tensor: Tensor, device: torch.device, *shapes: tuple[int, ...]) -> None:
    if tensor.dtype != torch.float32 or tensor.device != device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}, expected torch.float32 on {device}: "
            f"convert it with {name}.to('{device}', torch.float32)"
        )
    if tuple(tensor.shape) not in shapes:
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")


def _check_all(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor,
    Ks: Tensor, backgrounds: Tensor | None, width: int, height: int, sh_degree: int | None,
    device: torch.device = CPU,
) -> None:  # fmt: skip
    N, C = means.shape[0], viewmats.shape[0]
    _check("means", means, device, (N, 3))
    _check("quats", quats, device, (N, 4))
    _check("scales", scales, device, (N, 3))
    _check("opacities", opacities, device, (N,))
    _check("viewmats", viewmats, device, (C, 4, 4))
    _check("Ks", Ks, device, (C, 3, 3))
    last = colors.shape[-1]
    if sh_degree is None:
        _check("colors", colors, device, (N, last), (C, N, last))
    else:
        _check("colors", colors, device, (N, colors.shape[-2], 3))
        if not 0 <= sh_degree <= 3 or colors.shape[1] < (sh_degree + 1) ** 2:
            raise ValueError(
                f"sh_degree {sh_degree} does not fit colors of shape {tuple(colors.shape)}: "
                "degrees 0 to 3 need 1, 4, 9 or 16 coefficients"
            )
    if backgrounds is not None:
        _check("backgrounds", backgrounds, device, (C, last))
    if width < 1 or height < 1 or C < 1:
        raise ValueError(f"nothing to render: {C} cameras of {width}x{height} pixels; each must be positive")


def _take(values: Tensor, ids: tuple[Tensor, Tensor] | None) -> Tensor:
    """The visible (camera, Gaussian) pairs of [C, N, ...], or all of it when not packed."""
    return values if ids is None else values[ids]


def _colors(
    ops: Any, colors: Tensor, means: Tensor, viewmats: Tensor, radii: Tensor, sh_degree: int | None
) -> Tensor:
    """[C, N, D] from per-Gaussian values, per-camera values or harmonics."""
    if sh_degree is not None:
        centres = torch.inverse(viewmats)[:, :3, 3]  # [C, 3]
        out: Tensor = ops.spherical_harmonics(sh_degree, means, centres, colors, radii)
        return out
    return colors if colors.ndim == 3 else colors.expand(viewmats.shape[0], *colors.shape)


def _with_depth(colors: Tensor, depths: Tensor, backgrounds: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Append depth as a channel with background 0, or use it alone."""
    if mode == "RGB":
        return colors, backgrounds
    depth, nothing = depths[..., None], backgrounds.new_zeros(backgrounds.shape[0], 1)
    if mode in ("D", "ED"):
        return depth, nothing
    return torch.cat([colors, depth], -1), torch.cat([backgrounds, nothing], -1)


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
    *,
    backend: Backend = "numba",
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render; returns image [C, H, W, D(+1)], alpha [C, H, W, 1] and the meta dictionary.

    Follows gsplat 1.5.3 (conventions in `_project`, `_sh` and `_composite`). With absgrad,
    meta["means2d"].absgrad holds the sum over pixels of |dL/dmeans2d| after the backward.
    """
    _check_all(means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, width, height, sh_degree)
    channels = (0 if render_mode in ("D", "ED") else colors.shape[-1]) + (render_mode != "RGB")
    if absgrad and channels > 4:
        raise ValueError(
            f"absgrad with {channels} channels: at most 4 share a pass on the CPU, so absolute values "
            "cannot be summed; render the colours with absgrad and the other channels without"
        )
    ops, C, N = _operations(backend), viewmats.shape[0], means.shape[0]
    antialiased = rasterize_mode == "antialiased"
    projected = ops.project(
        means, quats, scales, opacities, viewmats, Ks, size=(width, height), planes=(near_plane, far_plane),
        eps2d=eps2d, radius_clip=radius_clip, antialiased=antialiased,
    )  # fmt: skip
    opacities = opacities.expand(C, N)
    if antialiased:
        opacities = opacities * projected.compensations
    colors = _colors(ops, colors, means, viewmats, projected.radii, sh_degree)  # [C, N, D]
    ids: tuple[Tensor, Tensor] | None = None
    rows = np.arange(C + 1) * N
    if packed:
        visible = (projected.radii > 0).all(-1)  # [C, N]
        rows = np.concatenate([[0], visible.sum(-1).cumsum(0).numpy()])
        camera_ids, gaussian_ids = torch.where(visible)
        ids = camera_ids, gaussian_ids
    radii, means2d, depths, conics = (_take(v, ids) for v in projected[:4])
    opacities, colors = _take(opacities, ids), _take(colors, ids)
    if backgrounds is None:
        backgrounds = torch.zeros(C, colors.shape[-1])
    colors, backgrounds = _with_depth(colors, depths, backgrounds, render_mode)
    image, alpha = ops.composite(
        means2d, conics, colors, opacities, backgrounds, depths=depths, radii=radii, rows=rows,
        size=(width, height), absgrad=absgrad,
    )  # fmt: skip
    alpha = alpha[..., None]
    if render_mode in ("ED", "RGB+ED"):
        image = torch.cat([image[..., :-1], image[..., -1:] / alpha.clamp(min=1e-10)], -1)
    meta = {
        "batch_ids": None if ids is None else torch.zeros_like(ids[0]),
        "camera_ids": None if ids is None else ids[0],
        "gaussian_ids": None if ids is None else ids[1],
        "radii": radii, "means2d": means2d, "depths": depths, "conics": conics, "opacities": opacities,
        "width": width, "height": height, "n_batches": 1, "n_cameras": C,
    }  # fmt: skip
    return image, alpha, meta
