"""Projection in Triton: 3D Gaussians to screen ellipses and back, in one kernel each way.

In plain torch these were some two hundred small operations a render, and a GPU waited for the CPU to launch
them. Formulas and conventions are those of `_project`, which derives them: A = J R Q S [2, 3] as rows p, q;
u, v are the rows of J R; NaN fails every test. A program takes BLOCK Gaussians, one a thread, through all
cameras, so that no two add to a Gaussian's gradient.

Shapes: C cameras, N Gaussians.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import constexpr, tensor

# mypy: disable-error-code="untyped-decorator"

ALPHA_MIN: constexpr = constexpr(1.0 / 255.0)
EXTENT: constexpr = constexpr(3.33)  # standard deviations; sqrt(2 ln 255) is where alpha = 1/255
WIDEST: constexpr = constexpr(1e9)  # a splat around the camera can have a radius beyond int32

# Not specialised on: one binary serves every number of splats and cameras.
NUMBERS = ["count", "cameras", "width", "height"]


@triton.jit
def three(at: tensor, mask: tensor) -> tensor:
    return (
        tl.load(at, mask=mask, other=0.0),
        tl.load(at + 1, mask=mask, other=0.0),
        tl.load(at + 2, mask=mask, other=0.0),
    )


@triton.jit
def put(at: tensor, x: tensor, y: tensor, z: tensor, mask: tensor) -> None:
    tl.store(at, x, mask=mask)
    tl.store(at + 1, y, mask=mask)
    tl.store(at + 2, z, mask=mask)


@triton.jit
def rotation(quats: tensor, g: tensor, here: tensor) -> tensor:
    """Normalised wxyz and 1/norm, then the nine entries of the rotation matrix, row by row."""
    w = tl.load(quats + 4 * g, mask=here, other=1.0)
    x, y, z = three(quats + 4 * g + 1, here)
    inv = 1.0 / tl.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * inv, x * inv, y * inv, z * inv
    a0, a1, a2 = 1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)
    b0, b1, b2 = 2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)
    d0, d1, d2 = 2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)
    return w, x, y, z, inv, a0, a1, a2, b0, b1, b2, d0, d1, d2


@triton.jit
def row(view: tensor, mx: tensor, my: tensor, mz: tensor) -> tensor:
    """A row of x_c = R m + t."""
    return tl.load(view) * mx + tl.load(view + 1) * my + tl.load(view + 2) * mz + tl.load(view + 3)


@triton.jit
def clamped(ratio: tensor, focal: tensor, centre: tensor, size: tensor) -> tensor:
    """x/z within the image plus 30 % of the half field of view; and whether it was inside."""
    edge = 0.15 * size / focal
    low, high = -centre / focal - edge, (size - centre) / focal + edge
    return tl.minimum(high, tl.maximum(low, ratio)), (low <= ratio) & (ratio <= high)


@triton.jit
def jacobian(K: tensor, x: tensor, y: tensor, z: tensor, width: tensor, height: tensor) -> tensor:
    """J's entries (0, 0), (0, 2), (1, 1), (1, 2), and where x/z and y/z were not clamped."""
    fx, fy = tl.load(K), tl.load(K + 4)
    rx, free_x = clamped(x / z, fx, tl.load(K + 2), width)
    ry, free_y = clamped(y / z, fy, tl.load(K + 5), height)
    return fx / z, -fx * rx / z, fy / z, -fy * ry / z, free_x, free_y


@triton.jit
def across(j: tensor, k: tensor, first: tensor, third: tensor) -> tensor:
    """A row of J R, of two rows of the camera's rotation."""
    return (
        j * tl.load(first) + k * tl.load(third),
        j * tl.load(first + 1) + k * tl.load(third + 1),
        j * tl.load(first + 2) + k * tl.load(third + 2),
    )


@triton.jit
def turned(
    u0: tensor, u1: tensor, u2: tensor, a0: tensor, a1: tensor, a2: tensor,
    b0: tensor, b1: tensor, b2: tensor, d0: tensor, d1: tensor, d2: tensor,
    s0: tensor, s1: tensor, s2: tensor,
) -> tensor:  # fmt: skip
    """u Q S, a row of A."""
    return (
        (a0 * u0 + b0 * u1 + d0 * u2) * s0,
        (a1 * u0 + b1 * u1 + d1 * u2) * s1,
        (a2 * u0 + b2 * u1 + d2 * u2) * s2,
    )


@triton.jit(do_not_specialize=NUMBERS)
def project_forward(
    means: tensor, quats: tensor, scales: tensor, opacities: tensor, views: tensor, Ks: tensor,
    radii: tensor, means2d: tensor, depths: tensor, conics: tensor, compensations: tensor,
    count: tensor, cameras: tensor, width: tensor, height: tensor,
    near: tensor, far: tensor, eps2d: tensor, clip: tensor, ANTIALIASED: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Fill [C, N, ...]; pairs that are not seen get zeros."""
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = g < count
    mx, my, mz = three(means + 3 * g, here)
    s0, s1, s2 = three(scales + 3 * g, here)
    opacity = tl.load(opacities + g, mask=here, other=0.0)
    _w, _x, _y, _z, _inv, a0, a1, a2, b0, b1, b2, d0, d1, d2 = rotation(quats, g, here)
    for c in range(0, cameras):
        view, K = views + 16 * c, Ks + 9 * c
        z = row(view + 8, mx, my, mz)
        ahead = here & (z >= near) & (z <= far)
        x = tl.where(ahead, row(view, mx, my, mz), 0.0)
        y = tl.where(ahead, row(view + 4, mx, my, mz), 0.0)
        z = tl.where(ahead, z, 1.0)
        j0, j1, j2, j3, _free_x, _free_y = jacobian(K, x, y, z, width, height)
        u0, u1, u2 = across(j0, j1, view, view + 8)
        v0, v1, v2 = across(j2, j3, view + 4, view + 8)
        p0, p1, p2 = turned(u0, u1, u2, a0, a1, a2, b0, b1, b2, d0, d1, d2, s0, s1, s2)
        q0, q1, q2 = turned(v0, v1, v2, a0, a1, a2, b0, b1, b2, d0, d1, d2, s0, s1, s2)
        n0, n1, n2 = p1 * q2 - p2 * q1, p2 * q0 - p0 * q2, p0 * q1 - p1 * q0
        xx, yy = p0 * p0 + p1 * p1 + p2 * p2, q0 * q0 + q1 * q1 + q2 * q2
        xy = p0 * q0 + p1 * q1 + p2 * q2
        sharp = n0 * n0 + n1 * n1 + n2 * n2  # |A A^T|: nothing cancels
        det = sharp + eps2d * (xx + yy) + eps2d * eps2d
        xx, yy, comp = xx + eps2d, yy + eps2d, tl.sqrt(sharp / det)
        seen = opacity * comp if ANTIALIASED else opacity
        valid = ahead & (det > 0.0) & (seen >= ALPHA_MIN)
        extent = tl.minimum(EXTENT, tl.sqrt(2.0 * tl.log(tl.where(valid, seen, 1.0) / ALPHA_MIN)))
        rx, ry = tl.ceil(extent * tl.sqrt(xx)), tl.ceil(extent * tl.sqrt(yy))
        px = tl.load(K) * x / z + tl.load(K + 2)
        py = tl.load(K + 4) * y / z + tl.load(K + 5)
        valid = valid & (px + rx > 0.0) & (px - rx < width) & (py + ry > 0.0) & (py - ry < height)
        valid = valid & ((rx > clip) | (ry > clip))
        at = c * count + g
        tl.store(radii + 2 * at, tl.where(valid, tl.minimum(rx, WIDEST), 0.0).to(tl.int32), mask=here)
        tl.store(radii + 2 * at + 1, tl.where(valid, tl.minimum(ry, WIDEST), 0.0).to(tl.int32), mask=here)
        tl.store(means2d + 2 * at, tl.where(valid, px, 0.0), mask=here)
        tl.store(means2d + 2 * at + 1, tl.where(valid, py, 0.0), mask=here)
        tl.store(depths + at, tl.where(valid, z, 0.0), mask=here)
        det = tl.where(valid, det, 1.0)
        xx, xy, yy = tl.where(valid, xx, 0.0), tl.where(valid, xy, 0.0), tl.where(valid, yy, 0.0)
        put(conics + 3 * at, yy / det, -xy / det, xx / det, here)
        tl.store(compensations + at, tl.where(valid, comp, 0.0), mask=here)


@triton.jit
def covariance_gradient(
    conics: tensor, compensations: tensor, v_conics: tensor, v_compensations: tensor,
    at: tensor, seen: tensor, eps2d: tensor, ANTIALIASED: constexpr,
) -> tensor:  # fmt: skip
    """Twice G = dL/dcov (xx, xy, yy), each off-diagonal entry holding half of the gradient."""
    a, b, d = three(conics + 3 * at, seen)
    va, vb, vd = three(v_conics + 3 * at, seen)
    vb = 0.5 * vb
    r0, r1, r2, r3 = a * va + b * vb, a * vb + b * vd, b * va + d * vb, b * vb + d * vd
    gxx, gxy, gyy = -(r0 * a + r1 * b), -(r0 * b + r1 * d), -(r2 * b + r3 * d)
    if ANTIALIASED:
        comp = tl.load(compensations + at, mask=seen, other=1.0)
        v_rho = 0.5 * tl.load(v_compensations + at, mask=seen, other=0.0) / comp
        rest, trace = 1.0 - comp * comp, eps2d * (a * d - b * b)
        gxx += v_rho * (rest * a - trace)
        gxy += v_rho * rest * b
        gyy += v_rho * (rest * d - trace)
    return 2.0 * gxx, 2.0 * gxy, 2.0 * gyy


@triton.jit
def outer(
    M0: tensor, M1: tensor, M2: tensor, seen: tensor, u: tensor, v: tensor,
    P0: tensor, P1: tensor, P2: tensor, Q0: tensor, Q1: tensor, Q2: tensor,
) -> tensor:  # fmt: skip
    """A row of dL/dM with one camera's share, u P + v Q, added where it is seen."""
    return (
        M0 + tl.where(seen, u * P0 + v * Q0, 0.0),
        M1 + tl.where(seen, u * P1 + v * Q1, 0.0),
        M2 + tl.where(seen, u * P2 + v * Q2, 0.0),
    )


@triton.jit
def dot(u0: tensor, u1: tensor, u2: tensor, at: tensor) -> tensor:
    """With three numbers in memory."""
    return u0 * tl.load(at) + u1 * tl.load(at + 1) + u2 * tl.load(at + 2)


@triton.jit
def add_row(
    at: tensor, seen: tensor, v: tensor, mx: tensor, my: tensor, mz: tensor,
    j: tensor, U0: tensor, U1: tensor, U2: tensor, k: tensor, V0: tensor, V1: tensor, V2: tensor,
) -> None:  # fmt: skip
    """Add v m^T + j U^T + k V^T, and v, summed over the Gaussians seen, to a row of a camera's gradient."""
    tl.atomic_add(at, tl.sum(tl.where(seen, v * mx + j * U0 + k * V0, 0.0), 0))
    tl.atomic_add(at + 1, tl.sum(tl.where(seen, v * my + j * U1 + k * V1, 0.0), 0))
    tl.atomic_add(at + 2, tl.sum(tl.where(seen, v * mz + j * U2 + k * V2, 0.0), 0))
    tl.atomic_add(at + 3, tl.sum(v, 0))


@triton.jit
def quaternion_gradient(
    w: tensor, x: tensor, y: tensor, z: tensor, inv: tensor, A0: tensor, A1: tensor, A2: tensor,
    B0: tensor, B1: tensor, B2: tensor, D0: tensor, D1: tensor, D2: tensor,
) -> tensor:  # fmt: skip
    """From dL/dQ to the raw quaternion, through its normalisation, which removes the radial part."""
    vw = 2.0 * (x * (D1 - B2) + y * (A2 - D0) + z * (B0 - A1))
    vx = 2.0 * (y * (A1 + B0) + z * (A2 + D0) + w * (D1 - B2) - 2.0 * x * (B1 + D2))
    vy = 2.0 * (x * (A1 + B0) + z * (B2 + D1) + w * (A2 - D0) - 2.0 * y * (A0 + D2))
    vz = 2.0 * (x * (A2 + D0) + y * (B2 + D1) + w * (B0 - A1) - 2.0 * z * (A0 + B1))
    along = w * vw + x * vx + y * vy + z * vz
    return (vw - along * w) * inv, (vx - along * x) * inv, (vy - along * y) * inv, (vz - along * z) * inv


@triton.jit(do_not_specialize=NUMBERS)
def project_backward(
    means: tensor, quats: tensor, scales: tensor, views: tensor, Ks: tensor,
    radii: tensor, conics: tensor, compensations: tensor,
    v_means2d: tensor, v_depths: tensor, v_conics: tensor, v_compensations: tensor,
    v_means: tensor, v_quats: tensor, v_scales: tensor, v_views: tensor,
    count: tensor, cameras: tensor, width: tensor, height: tensor, eps2d: tensor,
    ANTIALIASED: constexpr, VIEWS: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Fill v_means, v_scales [N, 3] and v_quats [N, 4]; with VIEWS, add to v_views [C, 4, 4]."""
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = g < count
    mx, my, mz = three(means + 3 * g, here)
    s0, s1, s2 = three(scales + 3 * g, here)
    qw, qx, qy, qz, inv, a0, a1, a2, b0, b1, b2, d0, d1, d2 = rotation(quats, g, here)
    gx, gy, gz = mx * 0.0, mx * 0.0, mx * 0.0
    A0, A1, A2, B0, B1, B2, D0, D1, D2 = gx, gx, gx, gx, gx, gx, gx, gx, gx  # dL/dM, M = Q S
    for c in range(0, cameras):
        view, K, at = views + 16 * c, Ks + 9 * c, c * count + g
        seen = here & (tl.load(radii + 2 * at, mask=here, other=0) > 0)
        x = tl.where(seen, row(view, mx, my, mz), 0.0)
        y = tl.where(seen, row(view + 4, mx, my, mz), 0.0)
        z = tl.where(seen, row(view + 8, mx, my, mz), 1.0)
        j0, j1, j2, j3, free_x, free_y = jacobian(K, x, y, z, width, height)
        u0, u1, u2 = across(j0, j1, view, view + 8)
        v0, v1, v2 = across(j2, j3, view + 4, view + 8)
        p0, p1, p2 = turned(u0, u1, u2, a0, a1, a2, b0, b1, b2, d0, d1, d2, s0, s1, s2)
        q0, q1, q2 = turned(v0, v1, v2, a0, a1, a2, b0, b1, b2, d0, d1, d2, s0, s1, s2)
        G0, G1, G2 = covariance_gradient(
            conics, compensations, v_conics, v_compensations, at, seen, eps2d, ANTIALIASED
        )
        P0, P1, P2 = G0 * p0 + G1 * q0, G0 * p1 + G1 * q1, G0 * p2 + G1 * q2  # dL/dA
        Q0, Q1, Q2 = G1 * p0 + G2 * q0, G1 * p1 + G2 * q1, G1 * p2 + G2 * q2
        A0, A1, A2 = outer(A0, A1, A2, seen, u0, v0, P0, P1, P2, Q0, Q1, Q2)
        B0, B1, B2 = outer(B0, B1, B2, seen, u1, v1, P0, P1, P2, Q0, Q1, Q2)
        D0, D1, D2 = outer(D0, D1, D2, seen, u2, v2, P0, P1, P2, Q0, Q1, Q2)
        P0, P1, P2, Q0, Q1, Q2 = P0 * s0, P1 * s1, P2 * s2, Q0 * s0, Q1 * s1, Q2 * s2
        U0, U1 = a0 * P0 + a1 * P1 + a2 * P2, b0 * P0 + b1 * P1 + b2 * P2  # dL/dJR
        V0, V1 = a0 * Q0 + a1 * Q1 + a2 * Q2, b0 * Q0 + b1 * Q1 + b2 * Q2
        U2, V2 = d0 * P0 + d1 * P1 + d2 * P2, d0 * Q0 + d1 * Q1 + d2 * Q2
        k0, k1 = dot(U0, U1, U2, view), dot(U0, U1, U2, view + 8)  # dL/dJ
        k2, k3 = dot(V0, V1, V2, view + 4), dot(V0, V1, V2, view + 8)
        # where x/z is clamped to r, J is -fx r/z, and the derivative goes to z alone
        vx = j0 * tl.load(v_means2d + 2 * at, mask=seen, other=0.0)
        vy = j2 * tl.load(v_means2d + 2 * at + 1, mask=seen, other=0.0)
        vz = tl.load(v_depths + at, mask=seen, other=0.0) - (vx * x + vy * y + j0 * k0 + j2 * k2) / z
        vz -= (j1 * k1 * tl.where(free_x, 2.0, 1.0) + j3 * k3 * tl.where(free_y, 2.0, 1.0)) / z
        vx = tl.where(seen, vx - tl.where(free_x, j0 * k1 / z, 0.0), 0.0)
        vy = tl.where(seen, vy - tl.where(free_y, j2 * k3 / z, 0.0), 0.0)
        vz = tl.where(seen, vz, 0.0)
        gx += tl.load(view) * vx + tl.load(view + 4) * vy + tl.load(view + 8) * vz
        gy += tl.load(view + 1) * vx + tl.load(view + 5) * vy + tl.load(view + 9) * vz
        gz += tl.load(view + 2) * vx + tl.load(view + 6) * vy + tl.load(view + 10) * vz
        if VIEWS:
            out = v_views + 16 * c
            add_row(out, seen, vx, mx, my, mz, j0, U0, U1, U2, 0.0, V0, V1, V2)
            add_row(out + 4, seen, vy, mx, my, mz, 0.0, U0, U1, U2, j2, V0, V1, V2)
            add_row(out + 8, seen, vz, mx, my, mz, j1, U0, U1, U2, j3, V0, V1, V2)
    put(v_means + 3 * g, gx, gy, gz, here)
    put(
        v_scales + 3 * g,
        A0 * a0 + B0 * b0 + D0 * d0, A1 * a1 + B1 * b1 + D1 * d1, A2 * a2 + B2 * b2 + D2 * d2, here,
    )  # fmt: skip
    vw, vx, vy, vz = quaternion_gradient(
        qw, qx, qy, qz, inv,
        A0 * s0, A1 * s1, A2 * s2, B0 * s0, B1 * s1, B2 * s2, D0 * s0, D1 * s1, D2 * s2,
    )  # fmt: skip
    tl.store(v_quats + 4 * g, vw, mask=here)
    put(v_quats + 4 * g + 1, vx, vy, vz, here)
