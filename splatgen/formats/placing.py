"""Splats moved by a node of a file: turned, grown evenly and shifted.

Shapes: N splats, K = (degree + 1)^2 spherical-harmonic coefficients, M directions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatgen.formats.splat_file import SplatFile

CLOSE = 1e-3  # relative: rotations come as float32, and out of products of many
Array = NDArray[np.float64]


def placed(file: SplatFile, matrix: Array) -> SplatFile:
    """Splats under a matrix [4, 4] = (s R, t; 0 1) that takes columns.

    Raises ValueError for one that mirrors, shears, or stretches one axis more than another: then an ellipsoid
    remains one, but spherical harmonics do not.
    """
    if (matrix == np.eye(4)).all():
        return file
    scale, rotation = _parts(matrix)
    return replace(
        file,
        means=file.means @ matrix[:3, :3].T + matrix[:3, 3],
        quats=product(quaternion(rotation), file.quats.astype(np.float64)).astype(np.float32),
        scales=(file.scales.astype(np.float64) + math.log(scale)).astype(np.float32),
        sh=turned_harmonics(file.sh, rotation),
    )


def turned_harmonics(sh: NDArray[Any], rotation: Array) -> NDArray[Any]:
    """Coefficients [N, K, 3] of splats that an orthogonal matrix [3, 3] turns."""
    k = sh.shape[1]
    turn = harmonics_matrix(rotation)[:k, :k]
    found: NDArray[Any] = np.einsum("jk,nkc->njc", turn, sh.astype(np.float64)).astype(np.float32)
    return found


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


def product(p: Array, q: Array) -> Array:
    """The rotation q, then p, wxyz: [4] and [N, 4] to [N, 4]."""
    a, b, c, d = p
    left = np.array([[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]])
    found: Array = q @ left.T
    return found


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
