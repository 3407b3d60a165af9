"""What a cloud of splats is like, without looking at a picture of it.

Shapes: N splats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from splatgen.scene.splats import Splats

NEEDLE = 10.0  # the longest axis over the middle one: a needle, where a disc is thin in one axis only
NEIGHBOURS = 8
LONELY = 4.0  # times the usual distance to the NEIGHBOURS-th neighbour: a floater
VISIBLE = 0.05  # opacity from which a splat counts as there
CHUNK = 1024


def statistics(splats: Splats) -> dict[str, float]:
    """Count, mean opacity, and the shares of needles and of floaters among the splats that are visible."""
    opacity = torch.sigmoid(splats.opacities)
    there = splats.select(opacity > VISIBLE)
    found = {
        "count": float(len(splats)),
        "opacity": float(opacity.mean()) if len(splats) else 0.0,
        "visible": len(there) / max(len(splats), 1),
    }
    axes = there.scales.sort(-1).values  # logs, the shortest first
    needles = (axes[:, 2] - axes[:, 1]).exp() > NEEDLE
    far = neighbour_distance(there.means)
    usual = far.median() if len(far) else torch.zeros(())
    lonely = far > LONELY * usual
    share = {"needles": needles, "floaters": lonely}
    return found | {name: float(mask.float().mean()) if len(there) else 0.0 for name, mask in share.items()}


def neighbour_distance(means: Tensor) -> Tensor:
    """Distance [N] of each point [N, 3] to its NEIGHBOURS-th nearest other, or to the last one of fewer."""
    if len(means) < 2:
        return means.new_zeros(len(means))
    k = min(NEIGHBOURS, len(means) - 1) + 1  # the nearest is itself
    parts = [means[n : n + CHUNK] for n in range(0, len(means), CHUNK)]
    return torch.cat([torch.cdist(part, means).kthvalue(k, -1).values for part in parts])
