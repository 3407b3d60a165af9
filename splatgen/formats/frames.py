"""The axes that splat files use, and how splats are turned into them.

The internal frame is right-handed, +Y up, +Z toward the camera at azimuth 0. A frame is written as three
letters, the directions of a file's x, y and z: right or left, up or down, back (toward that camera) or front.
Those that are half a turn or a mirror image away are sign flips and swaps alone: nothing is rounded, and
`from_frame` undoes `to_frame` to the bit. A frame with Z up is a quarter of a turn away, within rounding.

Shapes: N splats, K = (degree + 1)^2 spherical-harmonic coefficients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from splatgen.formats import placing
from splatgen.formats.placing import Array
from splatgen.formats.splat_file import NORMALS, SplatFile
from splatgen.formats.splat_file import Array as Numbers

FRAMES = {
    "rub": "rub",  # internal, glTF and .spz
    "ply": "ldb",  # half a turn about Z: what SuperSplat and PlayCanvas undo on reading a .ply
    "rdf": "rdf",  # half a turn about X: COLMAP and OpenCV
    "zup": "rfu",  # Z up and the front at -Y: Blender, nerfstudio
}
LETTERS = {
    "l": (-1, 0, 0), "r": (1, 0, 0), "d": (0, -1, 0), "u": (0, 1, 0), "f": (0, 0, -1), "b": (0, 0, 1),
}  # fmt: skip

# Up to a factor and to squares, each real SH basis function is a product of axes (gsplat's and
# Inria's order). Flipping axes therefore flips its sign once for each flipped axis in the product.
SH_AXES = ("", "y", "z", "x", "xy", "yz", "", "xz", "", "y", "xyz", "y", "z", "x", "z", "x")
MIRROR = np.diag([-1.0, 1.0, 1.0])
# i, j and k times a quaternion wxyz: which component comes to each place, and its sign
HALF_TURNS = (((1, 0, 3, 2), (-1, 1, -1, 1)), ((2, 3, 0, 1), (-1, 1, 1, -1)), ((3, 2, 1, 0), (-1, -1, 1, 1)))


def to_frame(file: SplatFile, frame: str) -> SplatFile:
    """Turn splats from the internal frame into a file's. Raises ValueError for an unknown frame."""
    return _turned(file, matrix(frame), inverse=False)


def from_frame(file: SplatFile, frame: str) -> SplatFile:
    """Turn splats from a file's frame into the internal one."""
    return _turned(file, matrix(frame), inverse=True)


def matrix(frame: str) -> Array:
    """What takes positions from the internal frame to another, [3, 3]: a name of FRAMES, or letters."""
    letters = FRAMES.get(frame, frame)
    rows = np.array([LETTERS[letter] for letter in letters if letter in LETTERS], np.float64)
    if len(letters) != 3 or rows.shape != (3, 3) or abs(np.linalg.det(rows)) != 1.0:
        raise ValueError(f"no frame is called {frame!r}: use one of {', '.join(FRAMES)}")
    return rows


def _turned(file: SplatFile, turn: Array, *, inverse: bool) -> SplatFile:
    if (turn == np.eye(3)).all():
        return file
    axes = turn.T if inverse else turn
    return replace(
        file,
        means=_turn_vectors(file.means, axes),
        quats=_turn_quats(file.quats, turn, inverse=inverse),
        sh=_turn_harmonics(file.sh, axes),
        extras=_turn_normals(file.extras, axes),
    )


def _turn_vectors(vectors: Numbers, turn: Array) -> Numbers:
    """Axes [N, 3] swapped and flipped; a product of matrices would spread a number that is not finite."""
    turned: Numbers = vectors[:, np.abs(turn).argmax(1)] * turn.sum(1).astype(vectors.dtype)
    return turned


def _turn_quats(quats: Numbers, turn: Array, *, inverse: bool) -> Numbers:
    """Rotations wxyz [N, 4] of turned ellipsoids; their own axes have no sign, so a mirror image has one."""
    mirrored = np.linalg.det(turn) < 0
    flips = np.array([1, 1, -1, -1] if mirrored else [1, 1, 1, 1], quats.dtype)  # M q M
    rotation = turn @ MIRROR if mirrored else turn
    if inverse:
        return flips * _rotated(quats, rotation, inverse=True)
    return _rotated(flips * quats, rotation, inverse=False)


def _rotated(quats: Numbers, rotation: Array, *, inverse: bool) -> Numbers:
    """Multiply from the left; half turns are exact, and their inverses undo them to the bit."""
    signs = rotation.diagonal()
    if np.abs(signs).sum() != 3.0:
        turn = placing.quaternion(rotation.T if inverse else rotation)
        return placing.product(turn, quats.astype(np.float64)).astype(quats.dtype)
    if signs.sum() == 3.0:
        return quats
    order, flips = HALF_TURNS[int(signs.argmax())]  # the axis that keeps its sign is the axis of rotation
    turned: Numbers = quats[:, order] * np.array(flips, quats.dtype)
    return -turned if inverse else turned


def _turn_harmonics(sh: Numbers, turn: Array) -> Numbers:
    signs = turn.diagonal()
    if np.abs(signs).sum() != 3.0:
        return placing.turned_harmonics(sh, turn)
    flips = [np.prod([signs["xyz".index(axis)] for axis in axes]) for axes in SH_AXES[: sh.shape[1]]]
    flipped: Numbers = sh * np.array(flips, sh.dtype)[:, None]
    return flipped


def _turn_normals(extras: Any, turn: Array) -> Any:
    if not all(name in extras for name in NORMALS):
        return extras
    normals = _turn_vectors(np.stack([extras[name] for name in NORMALS], -1), turn)
    return {**extras, **{name: normals[:, i] for i, name in enumerate(NORMALS)}}
