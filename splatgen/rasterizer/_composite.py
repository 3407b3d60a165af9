"""Compositing kernels: blend each tile's splats front to back, and the gradients back to front.

For pixel centre p and splat i (mean m, conic a b c, opacity o), with d = m - p:

    sigma = (a dx^2 + c dy^2) / 2 + b dx dy,   alpha = min(0.999, o exp(-sigma)),
    rgb = sum_i c_i alpha_i T_i + T_end background,   T_{i+1} = T_i (1 - alpha_i)

Skipped if sigma < 0 or alpha < 1/255; a pixel ends before the splat that would take T to 1e-4
(gsplat 1.5.3, csrc/RasterizeToPixels3DGSFwd.cu and Bwd.cu).

What keeps LLVM vectorising the 64-lane loops (six times slower otherwise, a test looks at the
machine code): unsigned indices into ONE flat scratch array, since numba's handling of negative
indices is a branch; all loads first and all stores last; single-level conditional expressions;
float32 constants; no libm call, for exp has no vector form in numba's wheels.

Scratch S, 64 lanes each: T, x, y, last, four channels (forward: colour sums; backward: dL/dcolour)
and in the backward R. T < 0 marks a finished pixel, |T| being its final T: no mask array needed.
`last` is a splat's place in the tile's list, as a float (exact up to 2^24).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from splatgen.rasterizer._jit import ALPHA_MAX, ALPHA_MIN, T_STOP, TILE, jit

LANES = TILE * TILE
S_SIZE = 9 * LANES
AT_X, AT_Y, AT_LAST = np.uint64(LANES), np.uint64(2 * LANES), np.uint64(3 * LANES)
AT_0, AT_1, AT_2, AT_3 = (np.uint64(k * LANES) for k in (4, 5, 6, 7))
AT_R = np.uint64(8 * LANES)
ZERO, HALF, ONE, TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
LN2 = np.float32(np.log(2.0))
MOMENTS = 12  # floats summed per splat: g, g dx, g dy, g dx^2, g dx dy, g dy^2, 4 colours, 2 absgrad
LOW = np.float32(-40.0)
# 2^f on (-1, 0], Chebyshev of degree 6, relative error 3e-9 before rounding
C0, C1, C2, C3, C4, C5, C6 = (
    np.float32(c)
    for c in (9.99999999e-01, 6.93147045e-01, 2.40224331e-01, 5.54909321e-02, 9.57985997e-03, 1.27554014e-03,
              1.09328924e-04)
)  # fmt: skip


@intrinsic  # type: ignore[untyped-decorator]
def power_of_two(_typing: Any, n: Any) -> Any:
    """2^n for int32 n in -126..127: n + 127 in the exponent bits of a float32."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        exponent = builder.add(args[0], ir.Constant(word, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(word, 23)), ir.FloatType())

    return types.float32(types.int32), codegen


@jit
def exp2(t: Any) -> Any:
    """2^t for t <= 0. Below -40 it stays 2^-40: unclamped, the exponent bits would wrap and far
    away, narrow splats would become opaque."""
    t = t if t > LOW else LOW
    n = np.int32(t)
    f = t - np.float32(n)
    return (((((((C6 * f + C5) * f + C4) * f + C3) * f + C2) * f) + C1) * f + C0) * power_of_two(n)


@jit
def splat_forward(S: Any, lo: Any, hi: Any, rec: Any, col: Any, r: Any, index: Any) -> None:
    """Blend splat r, the tile's index-th, into lanes lo..hi."""
    mx, my, A, B, C, o = rec[r, 0], rec[r, 1], rec[r, 2], rec[r, 3], rec[r, 4], rec[r, 5]
    k0, k1, k2, k3 = col[r, 0], col[r, 1], col[r, 2], col[r, 3]
    place = np.float32(index)
    for p in range(lo, hi):
        q = np.uint64(p)
        T, x, y, last = S[q], S[q + AT_X], S[q + AT_Y], S[q + AT_LAST]
        s0, s1, s2, s3 = S[q + AT_0], S[q + AT_1], S[q + AT_2], S[q + AT_3]
        dx, dy = mx - x, my - y
        sigma = (A * dx + B * dy) * dx + C * dy * dy  # in units of ln 2
        value = o * exp2(-sigma)
        alpha = value if value < ALPHA_MAX else ALPHA_MAX
        after = T * (ONE - alpha)
        live = (sigma >= ZERO) & (alpha >= ALPHA_MIN) & (T > ZERO)
        blend = live & (after > T_STOP)
        stop = live & (after <= T_STOP)
        w = alpha * T if blend else ZERO
        T = after if blend else T
        T = -T if stop else T
        last = place if blend else last
        S[q] = T
        S[q + AT_LAST] = last
        S[q + AT_0] = s0 + w * k0
        S[q + AT_1] = s1 + w * k1
        S[q + AT_2] = s2 + w * k2
        S[q + AT_3] = s3 + w * k3


@jit
def lanes(ext: Any, r: Any, top: Any) -> Any:
    """The contiguous lanes of the rows that splat r can reach in the tile that begins at row `top`."""
    first = max(ext[r, 2] - top, 0)
    last = min(ext[r, 3] - top, TILE)
    return first * TILE, last * TILE


@jit
def clear(S: Any, left: Any, top: Any, width: Any, height: Any) -> None:
    """Scratch of a fresh tile; lanes outside the image count as finished."""
    for p in range(LANES):
        x, y = left + p % TILE, top + p // TILE
        S[p] = ONE if x < width and y < height else -ONE
        S[p + LANES] = np.float32(x) + HALF
        S[p + 2 * LANES] = np.float32(y) + HALF
        S[p + 3 * LANES] = -ONE
    for p in range(4 * LANES, S_SIZE):
        S[p] = ZERO


@jit
def alive(S: Any) -> Any:
    """How many lanes are unfinished."""
    count = ZERO
    for p in range(LANES):
        count += ONE if S[np.uint64(p)] > ZERO else ZERO
    return count


@jit
def composite_forward(
    lo: Any, hi: Any, rec: Any, ext: Any, col: Any, toff: Any, entries: Any, tiles_x: Any,
    backgrounds: Any, first: Any, image: Any, T_end: Any, last: Any,
) -> None:  # fmt: skip
    """Tiles lo..hi of all images. Writes channels first..first+4 of image [C, H, W, D]."""
    S = np.empty(S_SIZE, np.float32)
    tiles = toff.shape[1] - 1
    height, width = image.shape[1], image.shape[2]
    for tile in range(lo, hi):
        c, t = tile // tiles, tile % tiles
        left, top = t % tiles_x * TILE, t // tiles_x * TILE
        clear(S, left, top, width, height)
        begin = toff[c, t]
        for k in range(begin, toff[c, t + 1]):
            r = entries[k]
            p0, p1 = lanes(ext, r, top)
            splat_forward(S, p0, p1, rec, col, r, k - begin)
            if (k - begin) % TILE == TILE - 1 and alive(S) == ZERO:
                break
        for y in range(top, min(top + TILE, height)):
            for x in range(left, min(left + TILE, width)):
                p = (y - top) * TILE + x - left
                T = abs(S[p])
                T_end[c, y, x] = T
                last[c, y, x] = np.int32(S[p + 3 * LANES])
                for d in range(first, min(first + 4, image.shape[3])):
                    image[c, y, x, d] = S[p + (4 + d - first) * LANES] + T * backgrounds[c, d]


@jit
def splat_backward(
    S: Any, lo: Any, hi: Any, rec: Any, col: Any, r: Any, index: Any, acc: Any, row: Any
) -> None:
    """Gradient of splat r from lanes lo..hi into acc[row], and T, R back to before the splat.

    With v = dL/drgb, q = v . c and R = T_end (dL/dalpha_out - background . v) - sum of w_j q_j over
    the splats behind: dL/dalpha = T q + R / (1 - alpha). Only moments of g = o exp(-sigma) dL/dalpha
    are summed; means2d, conic and opacity follow from them once per splat (`gather`).
    """
    mx, my, A, B, C, o = rec[r, 0], rec[r, 1], rec[r, 2], rec[r, 3], rec[r, 4], rec[r, 5]
    k0, k1, k2, k3 = col[r, 0], col[r, 1], col[r, 2], col[r, 3]
    place = np.float32(index)
    g_1 = g_x = g_y = g_xx = g_xy = g_yy = a_x = a_y = c_0 = c_1 = c_2 = c_3 = ZERO
    for p in range(lo, hi):
        q = np.uint64(p)
        T, x, y, last = S[q], S[q + AT_X], S[q + AT_Y], S[q + AT_LAST]
        v0, v1, v2, v3, R = S[q + AT_0], S[q + AT_1], S[q + AT_2], S[q + AT_3], S[q + AT_R]
        dx, dy = mx - x, my - y
        sigma = (A * dx + B * dy) * dx + C * dy * dy
        value = o * exp2(-sigma)
        alpha = value if value < ALPHA_MAX else ALPHA_MAX
        live = (sigma >= ZERO) & (alpha >= ALPHA_MIN) & (last >= place)
        inverse = ONE / (ONE - alpha)
        before = T * inverse
        w = alpha * before if live else ZERO
        colour = v0 * k0 + v1 * k1 + v2 * k2 + v3 * k3
        v_alpha = before * colour + R * inverse
        g = value * v_alpha if live & (value <= ALPHA_MAX) else ZERO  # no gradient through the clamp
        g_1 += g
        g_x += g * dx
        g_y += g * dy
        g_xx += g * dx * dx
        g_xy += g * dx * dy
        g_yy += g * dy * dy
        a_x += abs(g * (TWO * A * dx + B * dy))
        a_y += abs(g * (B * dx + TWO * C * dy))
        c_0 += w * v0
        c_1 += w * v1
        c_2 += w * v2
        c_3 += w * v3
        S[q] = before if live else T
        S[q + AT_R] = R - w * colour
    sums = (g_1, g_x, g_y, g_xx, g_xy, g_yy, c_0, c_1, c_2, c_3, a_x, a_y)
    for j in range(MOMENTS):
        acc[row, j] += sums[j]


@jit
def load(
    S: Any,
    c: Any,
    left: Any,
    top: Any,
    v_image: Any,
    v_alpha: Any,
    backgrounds: Any,
    first: Any,
    T_end: Any,
    last: Any,
) -> Any:
    """Fill the scratch for the backward of one tile; returns the largest index any pixel blended."""
    height, width = v_image.shape[1], v_image.shape[2]
    clear(S, left, top, width, height)
    deepest = -1
    for y in range(top, min(top + TILE, height)):
        for x in range(left, min(left + TILE, width)):
            p = (y - top) * TILE + x - left
            deepest = max(deepest, last[c, y, x])
            S[p] = T_end[c, y, x]
            S[p + 3 * LANES] = np.float32(last[c, y, x])
            v_T = v_alpha[c, y, x] if first == 0 else ZERO
            for d in range(first, min(first + 4, v_image.shape[3])):
                S[p + (4 + d - first) * LANES] = v_image[c, y, x, d]
                v_T -= backgrounds[c, d] * v_image[c, y, x, d]
            S[p + 8 * LANES] = T_end[c, y, x] * v_T
    return deepest


@jit
def composite_backward(
    lo: Any, hi: Any, rec: Any, ext: Any, col: Any, toff: Any, entries: Any, tiles_x: Any,
    backgrounds: Any, first: Any, v_image: Any, v_alpha: Any, T_end: Any, last: Any,
    band_tiles: Any, bands: Any, base: Any, acc: Any,
) -> None:  # fmt: skip
    """Bands lo..hi (of `band_tiles` rows of tiles, `bands` an image) into acc.

    Each splat owns one row of acc per band it meets, base[r] + band: no two bands share a row, so
    there are no atomics and the sums do not depend on the number of threads.
    """
    S = np.empty(S_SIZE, np.float32)
    for item in range(lo, hi):
        c, band = item // bands, item % bands
        t0 = band * band_tiles * tiles_x
        for t in range(t0, min(t0 + band_tiles * tiles_x, toff.shape[1] - 1)):
            left, top = t % tiles_x * TILE, t // tiles_x * TILE
            deepest = load(S, c, left, top, v_image, v_alpha, backgrounds, first, T_end, last)
            for index in range(deepest, -1, -1):
                r = entries[toff[c, t] + index]
                p0, p1 = lanes(ext, r, top)
                splat_backward(S, p0, p1, rec, col, r, index, acc, base[r] + band)


@jit
def gather(
    lo: Any, hi: Any, rec: Any, offsets: Any, acc: Any, first: Any,
    v_means2d: Any, v_conics: Any, v_opacities: Any, v_colors: Any, absgrad: Any,
) -> None:  # fmt: skip
    """Sum each splat's rows of acc and turn the moments into gradients (added to what is there).

    dL/dsigma = -g, so v_mean = -(a G_x + b G_y, b G_x + c G_y), v_conic = -(G_xx / 2, G_xy, G_yy / 2)
    and v_opacity = G / o. A, B and C carry log2(e), which LN2 takes out again.
    """
    total = np.zeros(MOMENTS, np.float32)
    for r in range(lo, hi):
        if offsets[r + 1] == offsets[r]:
            continue
        total[:] = ZERO
        for row in range(offsets[r], offsets[r + 1]):
            for j in range(MOMENTS):
                total[j] += acc[row, j]
        a, b, c = TWO * LN2 * rec[r, 2], LN2 * rec[r, 3], TWO * LN2 * rec[r, 4]
        v_means2d[r, 0] -= a * total[1] + b * total[2]
        v_means2d[r, 1] -= b * total[1] + c * total[2]
        v_conics[r, 0] -= HALF * total[3]
        v_conics[r, 1] -= total[4]
        v_conics[r, 2] -= HALF * total[5]
        v_opacities[r] += total[0] / rec[r, 5]
        for d in range(first, min(first + 4, v_colors.shape[1])):
            v_colors[r, d] += total[6 + d - first]
        absgrad[r, 0] += LN2 * total[10]
        absgrad[r, 1] += LN2 * total[11]
