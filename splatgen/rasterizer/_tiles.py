"""Which splats each tile of each picture blends, front to back, in plain torch on any device.

One number has to be known before the list can be made: how long it is. Reading it is the only wait for the
device here; everything else follows in the queue.

Shapes: M rows of splats, C images, n list entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST = 2**31 - 1  # the kernels count in int32


@dataclass(frozen=True, kw_only=True)
class TileLists:
    """The list of tile t, counted over images, rows and columns, is entries[starts[t]:starts[t + 1]]."""

    entries: Tensor  # [n] int32, rows of splats
    starts: Tensor  # [C tiles + 1] int32
    counts: Tensor  # [M] int32, tiles of each splat
    across: int  # tiles in a row of the picture
    down: int


def _spans(means2d: Tensor, radii: Tensor, grid: tuple[int, int], tile: int) -> tuple[Tensor, Tensor]:
    """First tile and number of tiles of each splat, along x and y; [M, 2] each."""
    lows, spans = [], []
    for axis in range(2):
        mean, radius, most = means2d[:, axis], radii[:, axis], grid[axis]
        low = ((mean - radius) / tile).floor().clamp(0, most)
        high = (((mean + radius) / tile).floor() + 1).clamp(0, most)
        lows.append(low)
        spans.append((high - low).clamp(min=0))
    return torch.stack(lows, -1).int(), torch.stack(spans, -1).int()


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
    low, span = _spans(means2d, radii, grid, tile)
    seen = (radii > 0).all(-1)
    counts = torch.where(seen, span[:, 0] * span[:, 1], 0)  # [M]
    nearest = torch.argsort(depths, stable=True)
    ends = counts[nearest].cumsum(0)
    length = int(ends[-1]) if len(ends) else 0  # the wait
    if length > LONGEST:
        raise ValueError(
            f"{length:,} pairs of splat and tile in one batch: render fewer views at once, or smaller splats"
        )
    row = torch.repeat_interleave(nearest, counts[nearest], output_size=length)
    ordinal = torch.repeat_interleave(ends - counts[nearest], counts[nearest], output_size=length)
    inside = (torch.arange(length, device=row.device) - ordinal).int()  # the how-manieth tile of its splat
    across = span[row, 0]
    x, y = low[row, 0] + inside % across, low[row, 1] + inside // across
    at = (images[row].int() * grid[1] + y) * grid[0] + x
    at, order = at.to(torch.int16 if tiles < 2**15 else torch.int32).sort(stable=True)
    edges = torch.arange(tiles + 1, device=row.device, dtype=at.dtype)
    starts = torch.searchsorted(at, edges, out_int32=True)
    return TileLists(
        entries=row[order].int(), starts=starts, counts=counts.int(), across=grid[0], down=grid[1]
    )
