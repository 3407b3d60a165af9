"""Splats moved by a node of a file: turned, grown evenly and shifted.

Shapes: N splats, K = (degree + 1)^2 spherical-harmonic coefficients, M directions.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from splatgen.scene.splats import Splats

CLOSE = 1e-3  # relative: rotations come as float32, and out of products of many
Array = NDArray[np.float64]


def placed(splats: Splats, matrix: Array) -> Splats:
    """Splats under a matrix [4, 4] = (s R, t; 0 1) that takes columns.

    Raises ValueError for one that mirrors, shears, or stretches one axis more than another: then an ellipsoid
    remains one, but spherical harmonics do not.
    """
    if (matrix == np.eye(4)).all():
        return splats
    scale, rotation = _parts(matrix)
    linear, shift = torch.from_numpy(matrix[:3, :3].copy()), torch.from_numpy(matrix[:3, 3].copy())
    turn = torch.from_numpy(harmonics_matrix(rotation)[: splats.sh.shape[1], : splats.sh.shape[1]].copy())
    return replace(
        splats,
        means=(splats.means.double() @ linear.T + shift).float(),
        quats=_product(torch.from_numpy(quaternion(rotation)), splats.quats.double()).float(),
        scales=(splats.scales.double() + math.log(scale)).float(),
        sh=torch.einsum("jk,nkc->njc", turn, splats.sh.double()).float(),
    )


def _parts(matrix: Array) -> tuple[float, Array]:
    """Scale and rotation [3, 3]."""
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    scale = float(lengths.mean())
    if not math.isfinite(scale) or scale < 1e-30 or not np.allclose(lengths, scale, rtol=CLOSE, atol=0):
        raise ValueError("a node stretches its splats unevenly: apply its transform, and save it again")
    rotation = matrix[:3, :3] / scale
    straight = np.allclose(rotation @ rotation.T, np.eye(3), atol=CLOSE)
    if not straight or np.linalg.det(rotation) < 0 or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise ValueError("a node mirrors or shears its splats: apply its transform, and save it again")
    return scale, rotation


def quaternion(rotation: Array) -> Array:
    """The unit quaternion wxyz [4] of a rotation [3, 3], to the sign.

    It is the eigenvector of the largest eigenvalue of a symmetric matrix (Bar-Itzhack 2000).
    """
    r = rotation
    lower = np.zeros((4, 4))
    lower[0, 0] = np.trace(r)
    lower[1:, 0] = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]
    lower[1:, 1:] = r + r.T - np.trace(r) * np.eye(3)
    found: Array = np.linalg.eigh(lower)[1][:, -1]
    return found


def _product(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The rotation q, then p, wxyz: [4] and [N, 4] to [N, 4]."""
    a, b, c, d = p
    left = torch.stack(
        [
            torch.stack([a, -b, -c, -d]),
            torch.stack([b, a, -d, c]),
            torch.stack([c, d, a, -b]),
            torch.stack([d, -c, b, a]),
        ]
    )
    return q @ left.T


def harmonics_matrix(rotation: Array) -> Array:
    """What turns coefficients of up to degree 3 along with the splats, [16, 16].

    The colour seen along R d is the one that was seen along d: Y(R d) f' = Y(d) f for every d, solved over
    more directions than there are coefficients, which leaves one answer.
    """
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(64, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    turned, fixed = _basis(directions @ rotation.T), _basis(directions)
    return np.linalg.lstsq(turned, fixed, rcond=None)[0].astype(np.float64)


def _basis(directions: Array) -> Array:
    """The 16 real spherical harmonics of 3D Gaussian splatting along unit vectors [M, 3], [M, 16]."""
    x, y, z = directions.T
    one, planar, squares = np.ones_like(x), x * x - y * y, 5 * z * z - 1
    degrees = [
        (0.28209479177387814, one),
        (-0.4886025119029199, y), (0.4886025119029199, z), (-0.4886025119029199, x),
        (1.0925484305920792, x * y), (-1.0925484305920792, y * z), (0.31539156525252005, 3 * z * z - 1),
        (-1.0925484305920792, x * z), (0.5462742152960396, planar),
        (-0.5900435899266435, y * (3 * x * x - y * y)), (2.890611442640554, x * y * z),
        (-0.4570457994644658, y * squares), (0.3731763325901154, z * (squares - 2)),
        (-0.4570457994644658, x * squares), (1.445305721320277, z * planar),
        (-0.5900435899266435, x * (x * x - 3 * y * y)),
    ]  # fmt: skip
    return np.stack([factor * function for factor, function in degrees], -1)
