"""The axes that splat files use, and how splats are turned into them.

The internal frame is right-handed, +Y up, +Z toward the camera at azimuth 0. Every frame here is
half a turn about one axis away, so that all is sign flips and swaps: nothing is rounded, and
`from_frame` undoes `to_frame` to the bit.

Shapes: N splats, K = (degree + 1)^2 spherical-harmonic coefficients.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from splatgen.scene.splats import Splats

# frame to the signs of (x, y, z) under the half turn
FRAMES = {
    "rub": (1, 1, 1),  # x right, y up, z back: internal, glTF and .spz
    "ply": (-1, -1, 1),  # half a turn about Z: what SuperSplat and PlayCanvas undo on reading a .ply
    "rdf": (1, -1, -1),  # half a turn about X: COLMAP and OpenCV
}

# Up to a factor and to squares, each real SH basis function is a product of axes (gsplat's and
# Inria's order). Flipping axes therefore flips its sign once for each flipped axis in the product.
SH_AXES = ("", "y", "z", "x", "xy", "yz", "", "xz", "", "y", "xyz", "y", "z", "x", "z", "x")


def to_frame(splats: Splats, frame: str) -> Splats:
    """Turn splats from the internal frame into a file's. Raises ValueError for an unknown frame."""
    return _half_turn(splats, _signs(frame), inverse=False)


def from_frame(splats: Splats, frame: str) -> Splats:
    """Turn splats from a file's frame into the internal one."""
    return _half_turn(splats, _signs(frame), inverse=True)


def _signs(frame: str) -> tuple[int, int, int]:
    if frame not in FRAMES:
        raise ValueError(f"no frame is called {frame!r}: use one of {', '.join(FRAMES)}")
    return FRAMES[frame]


def _half_turn(splats: Splats, signs: tuple[int, int, int], *, inverse: bool) -> Splats:
    if signs == (1, 1, 1):
        return splats
    axis = signs.index(1)  # the axis that keeps its sign is the axis of rotation
    flips = torch.tensor([_sh_sign(axes, signs) for axes in SH_AXES[: splats.sh.shape[1]]])  # [K]
    return replace(
        splats,
        means=splats.means * torch.tensor(signs).to(splats.means),
        quats=_turn_quats(splats.quats, axis, -1.0 if inverse else 1.0),
        sh=splats.sh * flips[:, None].to(splats.sh),
    )


def _sh_sign(axes: str, signs: tuple[int, int, int]) -> int:
    sign = 1
    for axis in axes:
        sign *= signs["xyz".index(axis)]
    return sign


def _turn_quats(quats: Tensor, axis: int, sign: float) -> Tensor:
    """Multiply from the left by the half turn about an axis (0 or 2) or by its inverse, [N, 4] wxyz.

    i (w + xi + yj + zk) = -x + wi - zj + yk  and  k (w + xi + yj + zk) = -z - yi + xj + wk.
    """
    w, x, y, z = quats.unbind(-1)
    turned = (-x, w, -z, y) if axis == 0 else (-z, -y, x, w)
    return sign * torch.stack(turned, -1)
