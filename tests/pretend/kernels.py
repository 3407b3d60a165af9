"""gsplat's CUDA kernels from its own reference in torch, for the pretended device.

Five functions that `gsplat.rendering` calls are replaced; its `rasterization`, with all its checks and the
keys of its meta, stays as it is. Every pixel looks at every visible splat, so scenes must be small.
"""

from __future__ import annotations

import sys
import types
from itertools import pairwise

import torch
from gsplat import rendering
from gsplat.cuda import _torch_impl as reference
from torch import Tensor

from pretend.state import setting, wait
from pretend.tensors import Cuda

ALPHA_MAX, ALPHA_MIN, T_STOP = 0.999, 1.0 / 255.0, 1e-4  # of gsplat 1.5.3


def require(**tensors: Tensor | None) -> None:
    """As the kernels do: on the device, in float32."""
    for name, z in tensors.items():
        if z is not None and (not isinstance(z, Cuda) or z.dtype != torch.float32):
            raise RuntimeError(f"gsplat: {name} must be a float32 CUDA tensor, got {z.dtype} on {z.device}")


def projection(means, covars, quats, scales, viewmats, Ks, width, height, **options):  # type: ignore[no-untyped-def]
    opacities, packed = options.pop("opacities"), options.pop("packed")
    require(means=means, quats=quats, scales=scales, viewmats=viewmats, Ks=Ks, opacities=opacities)
    options = {k: v for k, v in options.items() if k not in ("radius_clip", "sparse_grad")}
    covars, _ = reference._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    found = reference._fully_fused_projection(means, covars, viewmats, Ks, width, height, **options)
    if not packed:
        return found
    camera, gaussian = (found[0] > 0).all(-1).nonzero(as_tuple=True)
    picked = [None if z is None else z[camera, gaussian] for z in found]
    return (torch.zeros_like(camera).int(), camera.int(), gaussian.int(), *picked)


def harmonics(degree, dirs, coeffs, masks=None):  # type: ignore[no-untyped-def]
    require(dirs=dirs, coeffs=coeffs)
    found = reference._spherical_harmonics(degree, dirs, coeffs)
    return found if masks is None else torch.where(masks[..., None], found, 0.0)


def intersect(means2d, radii, depths, size, width, height, **options):  # type: ignore[no-untyped-def]
    """All visible splats of an image are in all of its tiles: [M] each, by image and depth."""
    wait("gsplat intersect_tile")  # the kernel's caller reads how many there are
    with setting("quiet", True):
        rows = torch.arange(options["n_images"], device=radii.device)[:, None].expand(radii.shape[:-1])
        images = (options["image_ids"] if options["packed"] else rows).flatten()
        seen = (radii > 0).all(-1)
        kept = seen.flatten().nonzero().flatten()
        order = (images[kept].double() * 2.0**32 + depths.detach().flatten()[kept]).argsort()
        return seen.int(), images[kept][order].long(), kept[order]


def offsets(images, count, width, height):  # type: ignore[no-untyped-def]
    first = torch.searchsorted(images, torch.arange(count, device=images.device))
    return first.int()[:, None, None].expand(count, height, width)


def pixels(means2d, conics, colors, opacities, width, height, size, offset, order, **options):  # type: ignore[no-untyped-def]
    backgrounds, absgrad = options["backgrounds"], options["absgrad"]
    require(means2d=means2d, conics=conics, colors=colors, opacities=opacities, backgrounds=backgrounds)
    if absgrad:
        raise NotImplementedError("the pretended kernels have no absgrad")
    with setting("quiet", True):
        starts = [*offset[:, 0, 0].tolist(), len(order)]
    flat = [z.reshape(-1, *z.shape[means2d.dim() - 1 :]) for z in (means2d, conics, colors, opacities)]
    axes = (torch.arange(n, device=means2d.device) + 0.5 for n in (height, width))
    at = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).reshape(-1, 1, 2)  # [P, 1, 2]
    made = []
    for n, (first, last) in enumerate(pairwise(starts)):
        mean, conic, rgb, opacity = (z[order[first:last]] for z in flat)
        x, y = (at - mean).unbind(-1)  # [P, M]
        power = 0.5 * (conic[:, 0] * x**2 + conic[:, 2] * y**2) + conic[:, 1] * x * y
        alpha = (opacity * torch.exp(-power)).clamp(max=ALPHA_MAX)
        alpha = torch.where((power >= 0) & (alpha >= ALPHA_MIN), alpha, 0.0)
        through = torch.cumprod(torch.cat([torch.ones_like(x[:, :1]), 1.0 - alpha], 1), 1)
        weights = torch.where(through[:, 1:] > T_STOP, alpha * through[:, :-1], 0.0)
        covered = weights.sum(1, keepdim=True)
        behind = 0.0 if backgrounds is None else backgrounds[n] * (1.0 - covered)
        made.append((weights @ rgb + behind, covered))
    return tuple(torch.stack(z).reshape(len(made), height, width, -1) for z in zip(*made, strict=True))


rendering.fully_fused_projection, rendering.spherical_harmonics = projection, harmonics
rendering.isect_tiles, rendering.isect_offset_encode = intersect, offsets
rendering.rasterize_to_pixels = pixels
sys.modules["gsplat.csrc"] = types.ModuleType("gsplat.csrc")  # by which built kernels are known
