"""Compositing kernels in Triton: blend a tile's splats front to back, and the gradients back to front.

The formulas and thresholds are those of `_composite` (gsplat 1.5.3, csrc/RasterizeToPixels3DGSFwd.cu and
Bwd.cu). With d = mean - pixel centre, and the conic's A, B, C already times log2(e) (A, C halved):

    value = o 2^-(A dx^2 + B dx dy + C dy^2),   alpha = min(0.999, value),   T_{i+1} = T_i (1 - alpha_i)

What a GPU wants of them:

- One program is one warp, with ROWS rows of a 16x16 tile: ROWS / 2 pixels a thread. A warp sums by shuffles;
  several warps would meet at a barrier, with numbers in shared memory, for each sum of each splat. A thread's
  pixels do not depend on each other, so that one computes while another waits.
- A splat is one row of ten floats, read at one address by the whole warp: one or two transactions.
- The backward sums a splat over the program's pixels and adds its twelve sums to the splat's row in one
  vector of atomics, forty-eight bytes side by side. Rows that no pixel sees are skipped.
- Four channels a pass, as scalars of a thread: RGB and depth go together, and no layout is converted.

Shapes: M rows of splats, C images, D channels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import constexpr, tensor

# mypy: disable-error-code="untyped-decorator"

TILE: constexpr = constexpr(16)
ALPHA_MAX: constexpr = constexpr(0.999)
ALPHA_MIN: constexpr = constexpr(1.0 / 255.0)
T_STOP: constexpr = constexpr(1e-4)  # a pixel is finished before its transmittance would fall to this
RECORD: constexpr = constexpr(12)  # mean x, y, A, B, C, opacity, four channels, two unused
CHUNK: constexpr = constexpr(32)  # splats between two looks at whether any pixel is unfinished

# Not specialised on: one binary serves every size of picture.
SIZES = ["width", "height", "tiles_x", "tiles_y", "channels", "first"]


@triton.jit
def place(
    pid: tensor, width: tensor, height: tensor, tiles_x: tensor, tiles_y: tensor, ROWS: constexpr
) -> tensor:  # fmt: skip
    """Tile and image of a program; column, row, offset in [C, H, W] and presence of its pixels."""
    parts: constexpr = TILE // ROWS
    tile = pid // parts
    image = tile // (tiles_x * tiles_y)
    lane = tl.arange(0, TILE * ROWS)
    x = tile % tiles_x * TILE + lane % TILE
    y = tile // tiles_x % tiles_y * TILE + pid % parts * ROWS + lane // TILE
    return tile, image, x, y, (image * height + y) * width + x, (x < width) & (y < height)


@triton.jit
def falloff(at: tensor, x: tensor, y: tensor) -> tensor:
    """dx, dy, the exponent, value and alpha of the splat whose row begins at `at`."""
    dx = tl.load(at) - (x + 0.5)
    dy = tl.load(at + 1) - (y + 0.5)
    exponent = (tl.load(at + 2) * dx + tl.load(at + 3) * dy) * dx + tl.load(at + 4) * dy * dy
    value = tl.load(at + 5) * tl.exp2(-exponent)
    return dx, dy, exponent, value, tl.minimum(value, ALPHA_MAX)


@triton.jit(do_not_specialize=SIZES)
def composite_forward(
    records: tensor, entries: tensor, starts: tensor, backgrounds: tensor,
    image: tensor, T_end: tensor, last: tensor,
    width: tensor, height: tensor, tiles_x: tensor, tiles_y: tensor, channels: tensor, first: tensor,
    ROWS: constexpr,
) -> None:  # fmt: skip
    """Channels first..first+4 of image [C, H, W, D]; T_end and last [C, H, W].

    `last` is the place in the tile's list of the last splat that a pixel blended, or -1.
    """
    tile, picture, x, y, pixel, inside = place(tl.program_id(0), width, height, tiles_x, tiles_y, ROWS)
    begin, end = tl.load(starts + tile), tl.load(starts + tile + 1)
    T = tl.full([TILE * ROWS], 1.0, tl.float32)
    deepest = tl.full([TILE * ROWS], -1, tl.int32)
    r0, r1, r2, r3 = T * 0.0, T * 0.0, T * 0.0, T * 0.0
    unfinished = inside
    k = begin
    while k < end:
        stop = tl.minimum(k + CHUNK, end)
        for i in range(k, stop):
            at = records + tl.load(entries + i) * RECORD
            _, _, exponent, value, alpha = falloff(at, x, y)
            hit = unfinished & (exponent >= 0.0) & (value >= ALPHA_MIN)
            after = T * (1.0 - alpha)
            blended = hit & (after > T_STOP)
            unfinished = unfinished & ((hit & (after <= T_STOP)) == 0)
            w = tl.where(blended, alpha * T, 0.0)
            r0 += w * tl.load(at + 6)
            r1 += w * tl.load(at + 7)
            r2 += w * tl.load(at + 8)
            r3 += w * tl.load(at + 9)
            T = tl.where(blended, after, T)
            deepest = tl.where(blended, i - begin, deepest)
        k = tl.where(tl.max(unfinished.to(tl.int32), 0) > 0, stop, end)
    tl.store(T_end + pixel, T, mask=inside)
    tl.store(last + pixel, deepest, mask=inside)
    back = backgrounds + picture * channels + first
    out = image + pixel.to(tl.int64) * channels + first
    left = tl.where(inside, channels - first, 0)
    tl.store(out, r0 + T * tl.load(back), mask=left > 0)
    tl.store(out + 1, r1 + T * tl.load(back + 1, mask=first + 1 < channels, other=0.0), mask=left > 1)
    tl.store(out + 2, r2 + T * tl.load(back + 2, mask=first + 2 < channels, other=0.0), mask=left > 2)
    tl.store(out + 3, r3 + T * tl.load(back + 3, mask=first + 3 < channels, other=0.0), mask=left > 3)


@triton.jit
def channel(v_image: tensor, background: tensor, present: tensor) -> tensor:
    """dL/dchannel of each pixel, and that times the background; zero for a channel that is not there."""
    v = tl.load(v_image, mask=present, other=0.0)
    return v, v * tl.load(background + tl.zeros_like(present).to(tl.int32), mask=present, other=0.0)


@triton.jit(do_not_specialize=SIZES)
def composite_backward(
    records: tensor, entries: tensor, starts: tensor, backgrounds: tensor,
    v_image: tensor, v_alpha: tensor, T_end: tensor, last: tensor, moments: tensor,
    width: tensor, height: tensor, tiles_x: tensor, tiles_y: tensor, channels: tensor, first: tensor,
    ROWS: constexpr, ABSGRAD: constexpr,
) -> None:  # fmt: skip
    """Add each splat's sums to moments [M, 12]: g (1, dx, dy, dx^2, dx dy, dy^2), channels, absgrad.

    g = value dL/dalpha. With v = dL/drgb, q = v . c and R = T_end (dL/dalpha_out - background . v) minus the
    sum of w_j q_j over the splats behind: dL/dalpha = T q + R / (1 - alpha).
    """
    tile, picture, x, y, pixel, inside = place(tl.program_id(0), width, height, tiles_x, tiles_y, ROWS)
    begin = tl.load(starts + tile)
    T = tl.load(T_end + pixel, mask=inside, other=1.0)
    deepest = tl.load(last + pixel, mask=inside, other=-1)
    back = backgrounds + picture * channels + first
    at_v = v_image + pixel.to(tl.int64) * channels + first
    left = tl.where(inside, channels - first, 0)
    v0, b0 = channel(at_v, back, left > 0)
    v1, b1 = channel(at_v + 1, back + 1, left > 1)
    v2, b2 = channel(at_v + 2, back + 2, left > 2)
    v3, b3 = channel(at_v + 3, back + 3, left > 3)
    through = tl.load(v_alpha + pixel, mask=left == channels, other=0.0)  # in the first pass only
    R = T * (through - b0 - b1 - b2 - b3)
    column = tl.arange(0, 16)
    count = tl.max(deepest, 0) + 1
    for j in range(0, count):
        index = count - 1 - j
        row = tl.load(entries + begin + index)
        at = records + row * RECORD
        dx, dy, exponent, value, alpha = falloff(at, x, y)
        seen = (exponent >= 0.0) & (value >= ALPHA_MIN) & (deepest >= index)
        if tl.max(seen.to(tl.int32), 0) > 0:
            inverse = 1.0 / (1.0 - alpha)
            before = T * inverse
            w = tl.where(seen, alpha * before, 0.0)
            colour = v0 * tl.load(at + 6) + v1 * tl.load(at + 7) + v2 * tl.load(at + 8) + v3 * tl.load(at + 9)
            # no gradient through the clamp at ALPHA_MAX
            g = tl.where(seen & (value <= ALPHA_MAX), value * (before * colour + R * inverse), 0.0)
            T = tl.where(seen, before, T)
            R -= w * colour
            gx, gy = g * dx, g * dy
            sums = tl.where(column == 0, tl.sum(g, 0), 0.0)
            sums = tl.where(column == 1, tl.sum(gx, 0), sums)
            sums = tl.where(column == 2, tl.sum(gy, 0), sums)
            sums = tl.where(column == 3, tl.sum(gx * dx, 0), sums)
            sums = tl.where(column == 4, tl.sum(gx * dy, 0), sums)
            sums = tl.where(column == 5, tl.sum(gy * dy, 0), sums)
            sums = tl.where(column == 6, tl.sum(w * v0, 0), sums)
            sums = tl.where(column == 7, tl.sum(w * v1, 0), sums)
            sums = tl.where(column == 8, tl.sum(w * v2, 0), sums)
            sums = tl.where(column == 9, tl.sum(w * v3, 0), sums)
            if ABSGRAD:
                A, B, C = tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)
                sums = tl.where(column == 10, tl.sum(tl.abs(2.0 * A * gx + B * gy), 0), sums)
                sums = tl.where(column == 11, tl.sum(tl.abs(B * gx + 2.0 * C * gy), 0), sums)
            tl.atomic_add(moments + row * RECORD + column, sums, mask=column < RECORD, sem="relaxed")
