"""Clouds to write, and what to compare them by."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from splatgen.scene.splats import Splats

COUNTS = (0, 1, 255, 256, 257)


def cloud(count: int, degree: int = 0, seed: int = 0) -> Splats:
    """Random visible splats with unit quaternions, within what every format holds."""
    g = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.randn(count, 3, generator=g),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1),
        scales=torch.randn(count, 3, generator=g) - 4,
        opacities=2 * torch.randn(count, generator=g),
        sh=0.2 * torch.randn(count, (degree + 1) ** 2, 3, generator=g),
    )


def rotations(quats: Tensor | np.ndarray) -> np.ndarray:
    """Matrices [N, 3, 3] of quaternions wxyz [N, 4] of any length, float64."""
    q = np.asarray(quats, np.float64)
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def covariances(quats: Tensor | np.ndarray, log_scales: Tensor | np.ndarray) -> np.ndarray:
    """R S S R^T [N, 3, 3]: what a renderer sees of a rotation, whatever axes the splat calls its own."""
    axes = rotations(quats) * np.exp(np.asarray(log_scales, np.float64))[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def angles(a: Tensor, b: Tensor) -> np.ndarray:
    """Of the rotation between two quaternions, in degrees, [N]."""
    p, q = (torch.nn.functional.normalize(quats.double(), dim=-1) for quats in (a, b))
    return np.degrees(2 * np.arccos(np.clip((p * q).sum(-1).abs().numpy(), 0, 1)))


def sh_basis(d: np.ndarray) -> np.ndarray:
    """The 16 functions of gsplat and Inria at directions [M, 3], [M, 16]."""
    x, y, z = d.T
    xx, yy, zz = x * x, y * y, z * z
    return np.stack(
        [
            0.28209479177387814 * np.ones_like(x),
            -0.4886025119029199 * y,
            0.4886025119029199 * z,
            -0.4886025119029199 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        -1,
    )


def seen(splats: Splats, directions: np.ndarray) -> np.ndarray:
    """Colours [N, M, 3] less one half, along directions [M, 3]."""
    k = splats.sh.shape[1]
    return np.einsum("mk,nkc->nmc", sh_basis(directions)[:, :k], splats.sh.double().numpy())


def directions(count: int = 50) -> np.ndarray:
    """Unit vectors [M, 3]."""
    found = np.random.default_rng(0).normal(size=(count, 3))
    return found / np.linalg.norm(found, axis=1, keepdims=True)
