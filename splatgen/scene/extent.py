"""Where splats that can be seen are, in NumPy: their middle, and how wide they are. No torch here.

Shapes: N splats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARE = 0.95  # of the opacity that counts: a few stray splats do not
Array = NDArray[Any]


def quantile(values: Array, weights: Array, share: float) -> float:
    """The value [] of values [N] below which `share` of the weight [N] lies."""
    order = values.argsort(kind="stable")
    below = weights[order].cumsum()
    position = int((below < share * below[-1]).sum())
    return float(values[order][min(position, len(values) - 1)])


def box(means: Array, weights: Array) -> Array:
    """The corners [2, 3] of the box that holds SHARE of the weight [N] of means [N, 3] along each axis."""
    rest = (1.0 - SHARE) / 2.0
    return np.array([[quantile(axis, weights, p) for axis in means.T] for p in (rest, 1.0 - rest)])
