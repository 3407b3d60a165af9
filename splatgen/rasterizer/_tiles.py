"""Which splats each tile of each picture blends, front to back: sorts of torch, and two kernels of
`triton_lists`.

One number has to be known before the list can be made: how long it is. Reading it is the only wait for the
device here; everything else follows in the queue.

Shapes: M rows of splats, C images, n list entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from splatgen.rasterizer import triton_launch
from splatgen.rasterizer.triton_launch import kernels

LONGEST = 2**31 - 1  # the kernels count in int32
BLOCK, WARPS = 32, 1  # splats in a program, one a thread


@dataclass(frozen=True, kw_only=True)
class TileLists:
    """The list of tile t, counted over images, rows and columns, is entries[starts[t]:starts[t + 1]]."""

    entries: Tensor  # [n] int32, rows of splats
    starts: Tensor  # [C tiles + 1] int32
    counts: Tensor  # [M] int32, tiles of each splat
    across: int  # tiles in a row of the picture
    down: int


def tile_lists(
    means2d: Tensor,  # [M, 2] pixels
    radii: Tensor,  # [M, 2] int32; a 0 drops the splat
    depths: Tensor,  # [M]
    images: Tensor,  # [M] int32 or int64
    *,
    count: int,  # C
    size: tuple[int, int],  # width, height
    tile: int,
) -> TileLists:
    """The lists of all tiles that the radii's boxes touch, by depth, and by row where depths are equal.

    The rows are sorted by depth first and their entries by tile afterwards, both stably: the second sort is
    the long one, and sorts numbers of two or four bytes, not the eight that tile and depth take together.
    Raises ValueError when the lists together are longer than 2^31.
    """
    grid = -(-size[0] // tile), -(-size[1] // tile)
    tiles = count * grid[0] * grid[1]
    M = len(depths)
    boxes = means2d.new_empty(M, 3, dtype=torch.int32)
    counts = means2d.new_empty(M, dtype=torch.int32)
    triton_launch.launch(
        kernels("triton_lists").spans, -(-M // BLOCK), means2d.contiguous(), radii.contiguous(), boxes,
        counts, M, *grid, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    nearest = torch.argsort(depths, stable=True)
    ends = counts[nearest].cumsum(0)
    length = int(ends[-1]) if len(ends) else 0  # the wait
    if length > LONGEST:
        raise ValueError(
            f"{length:,} pairs of splat and tile in one batch: render fewer views at once, or smaller splats"
        )
    at = means2d.new_empty(length, dtype=torch.int16 if tiles < 2**15 else torch.int32)
    row = means2d.new_empty(length, dtype=torch.int32)
    triton_launch.launch(
        kernels("triton_lists").spread, -(-M // BLOCK) if length else 0, nearest, ends, counts, boxes, images,
        at, row, M, *grid, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    at, order = at.sort(stable=True)
    edges = torch.arange(tiles + 1, device=row.device, dtype=at.dtype)
    starts = torch.searchsorted(at, edges, out_int32=True)
    return TileLists(entries=row[order], starts=starts, counts=counts, across=grid[0], down=grid[1])
