"""The tiles' lists in Triton: how many tiles each splat touches, and an entry for each of them.

Shapes: M rows of splats, n list entries.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import constexpr, tensor

# mypy: disable-error-code="untyped-decorator"

TILE: constexpr = constexpr(16)
SIZES = ["count", "across", "down"]  # not specialised on


@triton.jit
def span(mean: tensor, radius: tensor, most: tensor) -> tensor:
    """First tile and number of tiles along one axis, `most` tiles long."""
    low = tl.minimum(tl.maximum(tl.floor((mean - radius) / TILE), 0.0), most.to(tl.float32))
    high = tl.minimum(tl.maximum(tl.floor((mean + radius) / TILE) + 1.0, 0.0), most.to(tl.float32))
    return low.to(tl.int32), tl.maximum(high - low, 0.0).to(tl.int32)


@triton.jit(do_not_specialize=SIZES)
def spans(
    means2d: tensor, radii: tensor, boxes: tensor, counts: tensor,
    count: tensor, across: tensor, down: tensor, BLOCK: constexpr,
) -> None:  # fmt: skip
    """boxes [M, 3]: first column, first row and number of columns; counts [M]: tiles, 0 for a radius of 0."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = m < count
    rx = tl.load(radii + 2 * m, mask=here, other=0)
    ry = tl.load(radii + 2 * m + 1, mask=here, other=0)
    x, columns = span(tl.load(means2d + 2 * m, mask=here, other=0.0), rx, across)
    y, rows = span(tl.load(means2d + 2 * m + 1, mask=here, other=0.0), ry, down)
    tl.store(boxes + 3 * m, x, mask=here)
    tl.store(boxes + 3 * m + 1, y, mask=here)
    tl.store(boxes + 3 * m + 2, columns, mask=here)
    tl.store(counts + m, tl.where((rx > 0) & (ry > 0), columns * rows, 0), mask=here)


@triton.jit(do_not_specialize=SIZES)
def spread(
    nearest: tensor, ends: tensor, counts: tensor, boxes: tensor, images: tensor, tiles: tensor, rows: tensor,
    count: tensor, across: tensor, down: tensor, BLOCK: constexpr,
) -> None:  # fmt: skip
    """tiles and rows [n] of all entries, in the order of `nearest` [M]; a thread writes its splat's."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = i < count
    row = tl.load(nearest + i, mask=here, other=0)
    n = tl.load(counts + row, mask=here, other=0)
    at = tl.load(ends + i, mask=here, other=0) - n
    x, y = tl.load(boxes + 3 * row), tl.load(boxes + 3 * row + 1)
    columns = tl.maximum(tl.load(boxes + 3 * row + 2), 1)
    first = (tl.load(images + row).to(tl.int32) * down + y) * across + x
    for k in range(0, tl.max(n, 0)):
        tile = first + k // columns * across + k % columns
        tl.store(tiles + at + k, tile.to(tiles.dtype.element_ty), mask=k < n)
        tl.store(rows + at + k, row.to(tl.int32), mask=k < n)
