"""Fewer splats that show the same: some of them, spread over the object, and larger: surfaces stay closed.

Shapes: N splats.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from splatgen.scene.splats import Splats

BITS = 10  # of each axis, of the curve that splats are ordered along


def thinned(splats: Splats, most: int) -> Splats:
    """At most `most` of the splats, in their order; all of them where there are no more.

    Each is kept with a chance p that grows with the root of what it covers (opacity times the area of its two
    longer axes): a fair share for small ones, which show details, and for large ones, which fill. Then it is
    made 1 / sqrt(p) times as wide, so that all together cover as much as before (Horvitz and Thompson 1952).
    Who stays is decided along a space-filling curve at equal steps, without dice: no region is left bare.
    """
    if len(splats) <= most:
        return splats
    area = splats.scales.double().topk(2, dim=-1).values.sum(-1)  # its log, from where a splat is largest
    weights = (0.5 * (splats.opacities.double().sigmoid().log() + area)).softmax(0)
    chances = inclusion(weights, most)
    order = curve(splats.means).argsort(stable=True)
    ends = chances[order].cumsum(0)
    steps = torch.arange(most, dtype=torch.float64, device=ends.device) + 0.5
    kept = order[torch.searchsorted(ends, steps.clamp(max=float(ends[-1]))).clamp(max=len(order) - 1)]
    kept = torch.unique(kept, sorted=True)
    wider = splats.scales[kept] - 0.5 * chances[kept].log()[:, None].to(splats.scales)
    return replace(splats.select(kept), scales=wider)


def inclusion(weights: Tensor, count: int) -> Tensor:
    """Chances [N] in 0..1 that are proportional to weights [N] but for the largest, and sum to count < N."""
    descending = weights.sort(descending=True).values
    rest = descending.flip(0).cumsum(0).flip(0)  # the sum from each on
    left = count - torch.arange(len(weights), device=weights.device)  # for those, when all before are certain
    certain = int(((left > 0) & (left * descending >= rest)).sum())
    factor = (count - certain) / rest[certain] if certain < count else weights.new_zeros(())
    return (factor * weights).clamp(max=1.0)


def curve(means: Tensor) -> Tensor:
    """Places [N] of points [N, 3] along a Z-order curve (Morton 1966) through their box."""
    low, high = means.amin(0), means.amax(0)
    cells = (means - low) / (high - low).amax().clamp(min=1e-30) * (2**BITS - 1)
    places = torch.zeros(len(means), dtype=torch.long, device=means.device)
    for bit in range(BITS):
        for axis in range(3):
            places |= ((cells[:, axis].long() >> bit) & 1) << (3 * bit + axis)
    return places
