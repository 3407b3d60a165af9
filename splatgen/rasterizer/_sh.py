"""Spherical-harmonic colour kernels, degree 0 to 3, with the +0.5 and the clamp at 0 built in.

    colour = max(0.5 + sum_k Y_k(n) f_k, 0),   n = (mean - camera) / |mean - camera|

Real harmonics in the sign convention of 3D Gaussian splatting (Kerbl et al. 2023; gsplat 1.5.3,
csrc/SphericalHarmonicsCUDA.cu).

Shapes: C cameras, N Gaussians, K = (degree + 1)^2 coefficients.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from splatgen.rasterizer._jit import jit

F = np.float32
ZERO, HALF, ONE, TWO, THREE, FOUR, SIX = F(0.0), F(0.5), F(1.0), F(2.0), F(3.0), F(4.0), F(6.0)
N0 = F(0.28209479177387814)
N1 = F(0.4886025119029199)
N2 = F(1.0925484305920792)  # xy, yz, xz
N2A, N2B = F(0.9461746957575601), F(0.3153915652525201)  # 3 z^2 - 1
N2C = F(0.5462742152960396)  # x^2 - y^2
N3, N3A = F(0.5900435899266435), F(2.890611442640554)
N3B, N3C = F(2.285228997322329), F(0.4570457994644658)  # 5 z^2 - 1
N3D, N3E = F(1.865881662950577), F(1.119528997770346)  # 5 z^3 - 3 z
N3F = F(1.445305721320277)
BLOCK = 2048  # Gaussians a block, as in _project


@jit
def basis(degree: Any, x: Any, y: Any, z: Any, Y: Any) -> None:
    """Y[0:K] at the unit vector x, y, z."""
    Y[0] = N0
    if degree >= 1:
        Y[1], Y[2], Y[3] = -N1 * y, N1 * z, -N1 * x
    if degree >= 2:
        Y[4], Y[5], Y[7] = N2 * x * y, -N2 * y * z, -N2 * x * z
        Y[6], Y[8] = N2A * z * z - N2B, N2C * (x * x - y * y)
    if degree >= 3:
        ring = N3C - N3B * z * z
        Y[9], Y[15] = -N3 * y * (THREE * x * x - y * y), -N3 * x * (x * x - THREE * y * y)
        Y[10], Y[14] = N3A * x * y * z, N3F * z * (x * x - y * y)
        Y[11], Y[13] = ring * y, ring * x
        Y[12] = z * (N3D * z * z - N3E)


@jit
def slope(degree: Any, x: Any, y: Any, z: Any, w: Any) -> Any:
    """Gradient of sum_k w_k Y_k with respect to x, y, z, as polynomials off the sphere."""
    gx, gy, gz = -N1 * w[3], -N1 * w[1], N1 * w[2]
    if degree >= 2:
        gx += N2 * (w[4] * y - w[7] * z) + TWO * N2C * w[8] * x
        gy += N2 * (w[4] * x - w[5] * z) - TWO * N2C * w[8] * y
        gz += TWO * N2A * w[6] * z - N2 * (w[5] * y + w[7] * x)
    if degree >= 3:
        ring = N3C - N3B * z * z
        square = x * x - y * y
        gx += -SIX * N3 * w[9] * x * y + N3A * w[10] * y * z + ring * w[13]
        gx += TWO * N3F * w[14] * x * z - THREE * N3 * w[15] * square
        gy += -THREE * N3 * w[9] * square + N3A * w[10] * x * z + ring * w[11]
        gy += -TWO * N3F * w[14] * y * z + SIX * N3 * w[15] * x * y
        gz += N3A * w[10] * x * y - TWO * N3B * z * (w[11] * y + w[13] * x)
        gz += w[12] * (THREE * N3D * z * z - N3E) + N3F * w[14] * square
    return gx, gy, gz


@jit
def direction(means: Any, centres: Any, c: Any, g: Any) -> Any:
    """Unit vector from camera c to Gaussian g, and 1/distance (0 where they coincide)."""
    x, y, z = means[g, 0] - centres[c, 0], means[g, 1] - centres[c, 1], means[g, 2] - centres[c, 2]
    square = x * x + y * y + z * z
    inv = ONE / np.sqrt(square) if square > ZERO else ZERO
    return x * inv, y * inv, z * inv, inv


@jit
def sh_forward(
    lo: Any, hi: Any, degree: Any, means: Any, centres: Any, coeffs: Any, radii: Any, colors: Any
) -> None:
    """colors [C, N, 3] for Gaussians lo..hi; culled ones keep what is there."""
    Y = np.zeros(16, np.float32)
    count = (degree + 1) ** 2
    for g in range(lo, hi):
        for c in range(centres.shape[0]):
            if radii[c, g, 0] <= 0 or radii[c, g, 1] <= 0:
                continue
            x, y, z, _ = direction(means, centres, c, g)
            basis(degree, x, y, z, Y)
            red = green = blue = HALF
            for k in range(count):
                red += Y[k] * coeffs[g, k, 0]
                green += Y[k] * coeffs[g, k, 1]
                blue += Y[k] * coeffs[g, k, 2]
            colors[c, g, 0] = max(red, ZERO)
            colors[c, g, 1] = max(green, ZERO)
            colors[c, g, 2] = max(blue, ZERO)


@jit
def sh_backward(
    lo: Any, hi: Any, degree: Any, means: Any, centres: Any, coeffs: Any, colors: Any, v_colors: Any,
    v_means: Any, v_centres: Any, v_coeffs: Any,
) -> None:  # fmt: skip
    """Gradients for blocks lo..hi; v_centres [blocks, C, 3] is float64.

    A clamped channel has colour 0 and passes nothing on; a culled Gaussian has no gradient coming in.
    """
    Y, w = np.zeros(16, np.float32), np.zeros(16, np.float32)
    count = (degree + 1) ** 2
    for block in range(lo, hi):
        for g in range(block * BLOCK, min((block + 1) * BLOCK, means.shape[0])):
            for c in range(centres.shape[0]):
                v0 = v_colors[c, g, 0] if colors[c, g, 0] > ZERO else ZERO
                v1 = v_colors[c, g, 1] if colors[c, g, 1] > ZERO else ZERO
                v2 = v_colors[c, g, 2] if colors[c, g, 2] > ZERO else ZERO
                if v0 == ZERO and v1 == ZERO and v2 == ZERO:
                    continue
                x, y, z, inv = direction(means, centres, c, g)
                basis(degree, x, y, z, Y)
                for k in range(count):
                    w[k] = coeffs[g, k, 0] * v0 + coeffs[g, k, 1] * v1 + coeffs[g, k, 2] * v2
                    v_coeffs[g, k, 0] += Y[k] * v0
                    v_coeffs[g, k, 1] += Y[k] * v1
                    v_coeffs[g, k, 2] += Y[k] * v2
                if degree == 0:
                    continue
                gx, gy, gz = slope(degree, x, y, z, w)
                along = gx * x + gy * y + gz * z  # normalising removes the radial part
                gx, gy, gz = (gx - along * x) * inv, (gy - along * y) * inv, (gz - along * z) * inv
                v_means[g, 0] += gx
                v_means[g, 1] += gy
                v_means[g, 2] += gz
                v_centres[block, c, 0] -= gx
                v_centres[block, c, 1] -= gy
                v_centres[block, c, 2] -= gz
