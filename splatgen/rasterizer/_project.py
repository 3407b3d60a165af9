"""Projection kernels: 3D Gaussians to screen ellipses (EWA, Zwicker et al. 2001) and back.

Conventions of gsplat 1.5.3 (cuda/include/Utils.cuh, csrc/ProjectionEWA3DGSFused.cu). With x the
mean in the camera (x_c = R m + t), J the Jacobian of the pinhole at x, Q the rotation of the
normalised quaternion and S the diagonal of scales:

    A = J R Q S [2, 3],   cov = A A^T + eps2d I,   conic = cov^-1,   compensation = sqrt(|A A^T| / |cov|)

A is kept instead of the 3D covariance: |A A^T| is then the squared norm of a cross product, which
cannot cancel, and the backward needs only dA = 2 G A for a symmetric G = dL/dcov.

Shapes: C cameras, N Gaussians.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from splatgen.rasterizer._jit import ALPHA_MIN, jit

ZERO, HALF, ONE, TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
MARGIN = np.float32(0.3)  # the Jacobian is evaluated no further than this outside the image
EXTENT = np.float32(3.33)  # standard deviations; sqrt(2 ln 255) = 3.329 is where alpha = 1/255
BLOCK = 2048  # Gaussians a block: fixed, so that sums over blocks do not depend on the threads


@jit
def rotation(quats: Any, g: Any) -> Any:
    """Normalised wxyz and 1/norm, then the nine entries of the rotation matrix, row by row."""
    w, x, y, z = quats[g, 0], quats[g, 1], quats[g, 2], quats[g, 3]
    inv = ONE / np.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * inv, x * inv, y * inv, z * inv
    row0 = (ONE - TWO * (y * y + z * z), TWO * (x * y - w * z), TWO * (x * z + w * y))
    row1 = (TWO * (x * y + w * z), ONE - TWO * (x * x + z * z), TWO * (y * z - w * x))
    row2 = (TWO * (x * z - w * y), TWO * (y * z + w * x), ONE - TWO * (x * x + y * y))
    return (w, x, y, z, inv), row0, row1, row2


@jit
def to_camera(view: Any, c: Any, means: Any, g: Any) -> Any:
    """x_c = R m + t."""
    x, y, z = means[g, 0], means[g, 1], means[g, 2]
    return (
        view[c, 0, 0] * x + view[c, 0, 1] * y + view[c, 0, 2] * z + view[c, 0, 3],
        view[c, 1, 0] * x + view[c, 1, 1] * y + view[c, 1, 2] * z + view[c, 1, 3],
        view[c, 2, 0] * x + view[c, 2, 1] * y + view[c, 2, 2] * z + view[c, 2, 3],
    )


@jit
def clamp_ratio(ratio: Any, focal: Any, centre: Any, size: Any) -> Any:
    """x/z kept within the image plus 30 % of the half field of view; and whether it was inside."""
    edge = MARGIN * HALF * size / focal
    low, high = -centre / focal - edge, (size - centre) / focal + edge
    return min(high, max(low, ratio)), low <= ratio <= high


@jit
def dot(a: Any, b: Any) -> Any:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@jit
def times(M: Any, a: Any) -> Any:
    """M a, for a 3x3 M kept as nine numbers row by row."""
    return dot(M[0:3], a), dot(M[3:6], a), dot(M[6:9], a)


@jit
def transposed(M: Any, a: Any) -> Any:
    """M^T a."""
    return (
        M[0] * a[0] + M[3] * a[1] + M[6] * a[2],
        M[1] * a[0] + M[4] * a[1] + M[7] * a[2],
        M[2] * a[0] + M[5] * a[1] + M[8] * a[2],
    )


@jit
def footprint(view: Any, Ks: Any, c: Any, xc: Any, size: Any, M: Any) -> Any:
    """B = J R as rows u, v, then A = B M, the Jacobian's third column and the clamping flags."""
    fx, fy, rz = Ks[c, 0, 0], Ks[c, 1, 1], ONE / xc[2]
    rx, free_x = clamp_ratio(xc[0] * rz, fx, Ks[c, 0, 2], size[0])
    ry, free_y = clamp_ratio(xc[1] * rz, fy, Ks[c, 1, 2], size[1])
    j0, j1, j2, j3 = fx * rz, -fx * rx * rz, fy * rz, -fy * ry * rz
    u0 = j0 * view[c, 0, 0] + j1 * view[c, 2, 0]
    u1 = j0 * view[c, 0, 1] + j1 * view[c, 2, 1]
    u2 = j0 * view[c, 0, 2] + j1 * view[c, 2, 2]
    v0 = j2 * view[c, 1, 0] + j3 * view[c, 2, 0]
    v1 = j2 * view[c, 1, 1] + j3 * view[c, 2, 1]
    v2 = j2 * view[c, 1, 2] + j3 * view[c, 2, 2]
    u, v = (u0, u1, u2), (v0, v1, v2)
    return u, v, transposed(M, u), transposed(M, v), (j0, j1, j2, j3), free_x, free_y


@jit
def determinants(p: Any, q: Any, eps2d: Any) -> Any:
    """|A A^T| = |p x q|^2, and |A A^T + eps I| with the trace's terms added: nothing cancels."""
    x = p[1] * q[2] - p[2] * q[1]
    y = p[2] * q[0] - p[0] * q[2]
    z = p[0] * q[1] - p[1] * q[0]
    sharp = x * x + y * y + z * z
    return sharp, sharp + eps2d * (dot(p, p) + dot(q, q)) + eps2d * eps2d


@jit
def scaled_rotation(quats: Any, scales: Any, g: Any) -> Any:
    """M = Q S, row by row."""
    _, a, b, d = rotation(quats, g)
    s0, s1, s2 = scales[g, 0], scales[g, 1], scales[g, 2]
    return (a[0] * s0, a[1] * s1, a[2] * s2, b[0] * s0, b[1] * s1, b[2] * s2, d[0] * s0, d[1] * s1, d[2] * s2)


@jit
def project_forward(
    lo: Any, hi: Any, means: Any, quats: Any, scales: Any, opacities: Any, view: Any, Ks: Any,
    size: Any, near: Any, far: Any, eps2d: Any, clip: Any, antialiased: Any,
    radii: Any, means2d: Any, depths: Any, conics: Any, compensations: Any,
) -> None:  # fmt: skip
    """Fill rows lo..hi of N; culled (camera, Gaussian) pairs keep the zeros they came with.

    Every test is written so that NaN fails it.
    """
    for g in range(lo, hi):
        M = scaled_rotation(quats, scales, g)
        for c in range(view.shape[0]):
            xc = to_camera(view, c, means, g)
            if not (xc[2] >= near and xc[2] <= far):
                continue
            _, _, p, q, _, _, _ = footprint(view, Ks, c, xc, size, M)
            sharp, det = determinants(p, q, eps2d)
            comp = np.sqrt(sharp / det)
            opacity = opacities[g] * comp if antialiased else opacities[g]
            if not (det > ZERO and opacity >= ALPHA_MIN):
                continue
            xx, xy, yy = dot(p, p) + eps2d, dot(p, q), dot(q, q) + eps2d
            extent = min(EXTENT, np.sqrt(TWO * np.log(opacity / ALPHA_MIN)))
            rx, ry = np.ceil(extent * np.sqrt(xx)), np.ceil(extent * np.sqrt(yy))
            x = Ks[c, 0, 0] * xc[0] / xc[2] + Ks[c, 0, 2]
            y = Ks[c, 1, 1] * xc[1] / xc[2] + Ks[c, 1, 2]
            inside = x + rx > ZERO and x - rx < size[0] and y + ry > ZERO and y - ry < size[1]
            if not (inside and (rx > clip or ry > clip)):
                continue
            # A splat around the camera can have a radius beyond int32; the image is smaller anyway.
            radii[c, g, 0] = np.int32(min(rx, np.float32(1e9)))
            radii[c, g, 1] = np.int32(min(ry, np.float32(1e9)))
            means2d[c, g, 0], means2d[c, g, 1], depths[c, g] = x, y, xc[2]
            conics[c, g, 0], conics[c, g, 1], conics[c, g, 2] = yy / det, -xy / det, xx / det
            compensations[c, g] = comp


@jit
def covariance_gradient(conic: Any, v_conic: Any, comp: Any, v_comp: Any, eps2d: Any) -> Any:
    """G = dL/dcov (xx, xy, yy), each off-diagonal entry holding half of the gradient.

    Through the inverse: -P V P. Through the compensation, with rho = comp^2 and cov = A A^T + eps I:
    d rho/dcov = (1 - rho) cov^-1 - eps |cov^-1| I.
    """
    a, b, d = conic
    va, vb, vd = v_conic[0], HALF * v_conic[1], v_conic[2]
    r0, r1 = a * va + b * vb, a * vb + b * vd  # rows of P V
    r2, r3 = b * va + d * vb, b * vb + d * vd
    gxx, gxy, gyy = -(r0 * a + r1 * b), -(r0 * b + r1 * d), -(r2 * b + r3 * d)
    if v_comp != ZERO:
        v_rho = HALF * v_comp / comp
        rest, trace = ONE - comp * comp, eps2d * (a * d - b * b)
        gxx += v_rho * (rest * a - trace)
        gxy += v_rho * rest * b
        gyy += v_rho * (rest * d - trace)
    return gxx, gxy, gyy


@jit
def quaternion_gradient(unit: Any, V: Any) -> Any:
    """From dL/dQ to the raw quaternion, through its normalisation."""
    w, x, y, z, inv = unit
    vw = TWO * (x * (V[7] - V[5]) + y * (V[2] - V[6]) + z * (V[3] - V[1]))
    vx = TWO * (y * (V[1] + V[3]) + z * (V[2] + V[6]) + w * (V[7] - V[5]) - TWO * x * (V[4] + V[8]))
    vy = TWO * (x * (V[1] + V[3]) + z * (V[5] + V[7]) + w * (V[2] - V[6]) - TWO * y * (V[0] + V[8]))
    vz = TWO * (x * (V[2] + V[6]) + y * (V[5] + V[7]) + w * (V[3] - V[1]) - TWO * z * (V[0] + V[4]))
    along = w * vw + x * vx + y * vy + z * vz
    return (vw - along * w) * inv, (vx - along * x) * inv, (vy - along * y) * inv, (vz - along * z) * inv


@jit
def project_backward(
    lo: Any, hi: Any, means: Any, quats: Any, scales: Any, view: Any, Ks: Any, size: Any, eps2d: Any,
    conics: Any, compensations: Any, v_means2d: Any, v_depths: Any, v_conics: Any, v_comps: Any,
    v_means: Any, v_quats: Any, v_scales: Any, v_view: Any,
) -> None:  # fmt: skip
    """Gradients for blocks lo..hi; cameras run inside, so no two writers meet.

    v_view [blocks, C, 3, 4] is float64: it sums over all Gaussians with both signs. Its second size
    is 0 when nobody asks for the cameras' gradient.
    """
    v_M = np.zeros(9, np.float32)
    for block in range(lo, hi):
        for g in range(block * BLOCK, min((block + 1) * BLOCK, means.shape[0])):
            touched = False
            for c in range(view.shape[0]):
                if not has_gradient(c, g, conics, v_means2d, v_depths, v_conics, v_comps):
                    continue
                if not touched:
                    touched, M, v_M[:] = True, scaled_rotation(quats, scales, g), ZERO
                conic = (conics[c, g, 0], conics[c, g, 1], conics[c, g, 2])
                G = covariance_gradient(conic, v_conics[c, g], compensations[c, g], v_comps[c, g], eps2d)
                pixel = (v_means2d[c, g, 0], v_means2d[c, g, 1], v_depths[c, g])
                camera_gradient(means, view, Ks, size, c, g, M, G, pixel, v_M, v_means, v_view[block])
            if touched:
                splat_gradient(quats, scales, g, v_M, v_quats, v_scales)


@jit
def has_gradient(
    c: Any, g: Any, conics: Any, v_means2d: Any, v_depths: Any, v_conics: Any, v_comps: Any
) -> Any:
    """False for culled splats, whose conic is 0, and for hidden ones: most of a dense cloud.

    NaN counts as a gradient: it has to reach the caller.
    """
    if conics[c, g, 0] == ZERO:
        return False
    mean = v_means2d[c, g, 0] != ZERO or v_means2d[c, g, 1] != ZERO
    conic = v_conics[c, g, 0] != ZERO or v_conics[c, g, 1] != ZERO or v_conics[c, g, 2] != ZERO
    return mean or conic or v_depths[c, g] != ZERO or v_comps[c, g] != ZERO


@jit
def splat_gradient(quats: Any, scales: Any, g: Any, v_M: Any, v_quats: Any, v_scales: Any) -> None:
    """From dL/dM, M = Q S, to scales and quaternion."""
    unit, a, b, d = rotation(quats, g)
    for j in range(3):
        v_scales[g, j] = v_M[j] * a[j] + v_M[3 + j] * b[j] + v_M[6 + j] * d[j]
        s = scales[g, j]
        v_M[j], v_M[3 + j], v_M[6 + j] = v_M[j] * s, v_M[3 + j] * s, v_M[6 + j] * s
    gradient = quaternion_gradient(unit, v_M)
    for j in range(4):
        v_quats[g, j] = gradient[j]


@jit
def camera_gradient(
    means: Any, view: Any, Ks: Any, size: Any, c: Any, g: Any, M: Any, G: Any, pixel: Any,
    v_M: Any, v_means: Any, v_view: Any,
) -> None:  # fmt: skip
    """Add one camera's share to v_M [9], v_means [N, 3] and v_view [C or 0, 3, 4]."""
    xc = to_camera(view, c, means, g)
    u, v, p, q, J, free_x, free_y = footprint(view, Ks, c, xc, size, M)
    G = (TWO * G[0], TWO * G[1], TWO * G[2])
    rz = ONE / xc[2]
    vp = (G[0] * p[0] + G[1] * q[0], G[0] * p[1] + G[1] * q[1], G[0] * p[2] + G[1] * q[2])  # dL/dA
    vq = (G[1] * p[0] + G[2] * q[0], G[1] * p[1] + G[2] * q[1], G[1] * p[2] + G[2] * q[2])
    for i in range(3):
        for j in range(3):
            v_M[3 * i + j] += u[i] * vp[j] + v[i] * vq[j]
    v_u, v_v = times(M, vp), times(M, vq)  # dL/dB = dL/dA M^T
    w0, w1, w2 = view[c, 0], view[c, 1], view[c, 2]
    j0, j1, j2, j3 = dot(v_u, w0), dot(v_u, w2), dot(v_v, w1), dot(v_v, w2)
    # J = (fx/z, -fx x/z^2; fy/z, -fy y/z^2). Where x/z is clamped to r it is -fx r/z instead, and
    # the derivative goes to z alone.
    fx, fy = J[0], J[2]  # over z
    x, y = fx * pixel[0], fy * pixel[1]
    z = pixel[2] - (x * xc[0] + y * xc[1]) * rz - (fx * j0 + fy * j2) * rz
    z -= (J[1] * j1 * (TWO if free_x else ONE) + J[3] * j3 * (TWO if free_y else ONE)) * rz
    x -= fx * rz * j1 if free_x else ZERO
    y -= fy * rz * j3 if free_y else ZERO
    for i in range(3):
        v_means[g, i] += w0[i] * x + w1[i] * y + w2[i] * z
    if v_view.shape[0] == 0:
        return
    for i in range(3):
        v_view[c, 0, i] += x * means[g, i] + J[0] * v_u[i]
        v_view[c, 1, i] += y * means[g, i] + J[2] * v_v[i]
        v_view[c, 2, i] += z * means[g, i] + J[1] * v_u[i] + J[3] * v_v[i]
    v_view[c, 0, 3] += x
    v_view[c, 1, 3] += y
    v_view[c, 2, 3] += z
