"""Binning kernels: which splats a tile sees, front to back.

Per splat `pack` writes what the inner loops read, one cache line each:
    rec [M, 8]  mean x, y, A = log2(e)/2 a, B = log2(e) b, C = log2(e)/2 c, opacity  (conic a, b, c)
    ext [M, 4]  x0, x1, y0, y1, the pixels in which alpha can reach 1/255, ends exclusive
`bin_tiles` sorts each image's splats by depth once (radix sort of the float's bits) and deals them
out to tiles in that order (counting sort): a 64-bit sort of all (tile, depth) pairs would move
several times as much data.

Shapes: M splats of all images, one image's rows being rows[c]:rows[c+1]; n entries in all tile lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from splatgen.rasterizer._jit import ALPHA_MIN, TILE, jit

LOG2E = np.float32(np.log2(np.e))
HALF = np.float32(0.5)
RADIX_BITS = 11
RADIX = 1 << RADIX_BITS


@jit
def span(centre: Any, half: Any, size: Any) -> Any:
    """Pixels j with |j + 0.5 - centre| <= half, clipped to the image: first, last + 1."""
    low = min(max(np.ceil(centre - half - 0.5), 0.0), float(size))
    high = min(max(np.floor(centre + half - 0.5) + 1.0, 0.0), float(size))
    return np.int32(low), np.int32(high)


@jit
def extents(r: Any, means2d: Any, conics: Any, opacity: Any, radii: Any, width: Any, height: Any) -> Any:
    """The ellipse alpha = 1/255 has half-widths sqrt(2 ln(255 o) cov_xx); never beyond the radii.

    In float64: for a long thin splat ac - b^2 cancels.
    """
    a, b, c = float(conics[r, 0]), float(conics[r, 1]), float(conics[r, 2])
    det = a * c - b * b
    level = 2.0 * np.log(float(opacity) / float(ALPHA_MIN))
    half_x, half_y = float(radii[r, 0]), float(radii[r, 1])
    if det > 0.0:
        half_x = min(half_x, np.sqrt(level * c / det) * 1.00001 + 1e-3)  # room for float32 rounding
        half_y = min(half_y, np.sqrt(level * a / det) * 1.00001 + 1e-3)
    x0, x1 = span(float(means2d[r, 0]), half_x, width)
    y0, y1 = span(float(means2d[r, 1]), half_y, height)
    return x0, x1, y0, y1


@jit
def pack(
    lo: Any, hi: Any, means2d: Any, conics: Any, opacities: Any, radii: Any, width: Any, height: Any,
    band: Any, rec: Any, ext: Any, tiles: Any, bands: Any,
) -> None:  # fmt: skip
    """Rows lo..hi of rec and ext; how many tiles and how many bands (of `band` pixel rows) each meets.

    tiles and bands [M + 1] hold the counts at r + 1, ready for a cumulative sum.
    """
    for r in range(lo, hi):
        tiles[r + 1], bands[r + 1] = 0, 0
        o = opacities[r]
        if not (radii[r, 0] > 0 and radii[r, 1] > 0 and o >= ALPHA_MIN):
            continue
        x0, x1, y0, y1 = extents(r, means2d, conics, o, radii, width, height)
        if x1 <= x0 or y1 <= y0:
            continue
        rec[r, 0], rec[r, 1] = means2d[r, 0], means2d[r, 1]
        rec[r, 2] = HALF * LOG2E * conics[r, 0]
        rec[r, 3] = LOG2E * conics[r, 1]
        rec[r, 4] = HALF * LOG2E * conics[r, 2]
        rec[r, 5] = o
        ext[r, 0], ext[r, 1], ext[r, 2], ext[r, 3] = x0, x1, y0, y1
        wide = (x1 - 1) // TILE - x0 // TILE + 1
        tall = (y1 - 1) // TILE - y0 // TILE + 1
        tiles[r + 1] = wide * tall
        bands[r + 1] = (y1 - 1) // band - y0 // band + 1


@jit
def radix_sort(keys: Any, rows: Any) -> Any:
    """The rows in stable order of their uint32 keys: three passes of 11 bits, least significant first.

    Both arguments serve as scratch and are overwritten.
    """
    n = keys.shape[0]
    counts = np.zeros((3, RADIX), np.int64)
    for i in range(n):
        for digit in range(3):
            counts[digit, (keys[i] >> np.uint32(RADIX_BITS * digit)) & np.uint32(RADIX - 1)] += 1
    keys_to, rows_to = np.empty_like(keys), np.empty_like(rows)
    for digit in range(3):
        start = 0
        for bucket in range(RADIX):
            count = counts[digit, bucket]
            counts[digit, bucket] = start
            start += count
        for i in range(n):
            bucket = (keys[i] >> np.uint32(RADIX_BITS * digit)) & np.uint32(RADIX - 1)
            place = counts[digit, bucket]
            counts[digit, bucket] = place + 1
            keys_to[place] = keys[i]
            rows_to[place] = rows[i]
        keys, keys_to = keys_to, keys
        rows, rows_to = rows_to, rows
    return rows


@jit
def depth_order(first: Any, last: Any, depth_bits: Any, tiles: Any) -> Any:
    """The rows first..last that meet a tile, nearest first; equal depths stay in index order."""
    n = 0
    for r in range(first, last):
        n += tiles[r + 1] > 0
    keys, rows = np.empty(n, np.uint32), np.empty(n, np.int32)
    n = 0
    for r in range(first, last):
        if tiles[r + 1] > 0:
            bits = depth_bits[r]
            sign = np.uint32(0x80000000)  # makes the order right for negative depths too
            keys[n] = ~bits if bits & sign else bits | sign
            rows[n] = r
            n += 1
    return radix_sort(keys, rows)


@jit
def bin_tiles(
    lo: Any, hi: Any, rows: Any, depth_bits: Any, ext: Any, tiles: Any, start: Any, tiles_x: Any,
    tiles_y: Any, toff: Any, entries: Any,
) -> None:  # fmt: skip
    """Tile lists of images lo..hi: tile t of image c owns entries[toff[c, t]:toff[c, t + 1]].

    start [C + 1] is where each image's entries begin.
    """
    for c in range(lo, hi):
        order = depth_order(rows[c], rows[c + 1], depth_bits, tiles)
        place = np.zeros(tiles_x * tiles_y + 1, np.int64)
        for r in order:
            for ty in range(ext[r, 2] // TILE, (ext[r, 3] - 1) // TILE + 1):
                for tx in range(ext[r, 0] // TILE, (ext[r, 1] - 1) // TILE + 1):
                    place[ty * tiles_x + tx + 1] += 1
        place[0] = start[c]
        for t in range(tiles_x * tiles_y):
            place[t + 1] += place[t]
            toff[c, t] = place[t]
        toff[c, tiles_x * tiles_y] = place[tiles_x * tiles_y]
        for r in order:
            for ty in range(ext[r, 2] // TILE, (ext[r, 3] - 1) // TILE + 1):
                for tx in range(ext[r, 0] // TILE, (ext[r, 1] - 1) // TILE + 1):
                    t = ty * tiles_x + tx
                    entries[place[t]] = r
                    place[t] += 1
