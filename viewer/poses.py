"""Cameras between us and viser, whose cameras look along +Z with y down (OpenCV); ours are OpenGL's.

Shapes: c2w is [4, 4].
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from splatgen.loop.snapshot import Floats, ViewRequest

FLIP = np.diag([1.0, -1.0, -1.0])  # y and z, between OpenGL and OpenCV
FOV, ELEVATION, REACH = 50.0, 15.0, 1.2  # of the first view: degrees, and world units up from the origin
MOST_SIDE = 640  # pixels of a picture from the browser's camera


class BrowserCamera(Protocol):
    """A camera as viser tells it."""

    @property
    def wxyz(self) -> NDArray[np.float64]: ...
    @property
    def position(self) -> NDArray[np.float64]: ...
    @property
    def fov(self) -> float: ...  # vertical, radians
    @property
    def image_width(self) -> int: ...
    @property
    def image_height(self) -> int: ...


def view_request(camera: BrowserCamera) -> ViewRequest:
    """A browser's camera as the loop wants it, of at most MOST_SIDE pixels a side."""
    c2w = np.eye(4)
    c2w[:3, :3] = rotation(camera.wxyz) @ FLIP
    c2w[:3, 3] = camera.position
    share = min(1.0, MOST_SIDE / max(camera.image_width, camera.image_height, 1))
    return ViewRequest(
        c2w=c2w.astype(np.float32),
        fov=math.degrees(camera.fov),
        width=max(round(camera.image_width * share), 1),
        height=max(round(camera.image_height * share), 1),
    )


def pose(c2w: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Quaternion wxyz [4] and position [3], as viser wants them, of a camera of ours."""
    return quaternion(c2w[:3, :3].astype(np.float64) @ FLIP), c2w[:3, 3].astype(np.float64)


def rotation(wxyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix [3, 3] of a quaternion."""
    w, x, y, z = np.asarray(wxyz, np.float64) / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quaternion wxyz of a rotation, w >= 0: the largest eigenvector of Bar-Itzhack's matrix (2000)."""
    m = matrix
    # fmt: off
    k = np.array([
        [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
        [m[2, 1] - m[1, 2], m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[2, 0] + m[0, 2]],
        [m[0, 2] - m[2, 0], m[1, 0] + m[0, 1], m[1, 1] - m[0, 0] - m[2, 2], m[2, 1] + m[1, 2]],
        [m[1, 0] - m[0, 1], m[2, 0] + m[0, 2], m[2, 1] + m[1, 2], m[2, 2] - m[0, 0] - m[1, 1]],
    ])
    # fmt: on
    found: NDArray[np.float64] = np.linalg.eigh(k)[1][:, -1]
    return -found if found[0] < 0 else found


def first_position(reach: float) -> tuple[float, float, float]:
    """Of a camera at azimuth 0, a little above, that sees so far up from the object's middle."""
    up, distance = math.radians(ELEVATION), reach / math.tan(math.radians(FOV) / 2.0)
    return 0.0, distance * math.sin(up), distance * math.cos(up)


def reach_of(means: Floats) -> float:
    """The reach that shows a cloud of centres [N, 3] around the origin, but for its strays."""
    if not len(means):
        return REACH
    return max(1.4 * float(np.percentile(np.linalg.norm(means, axis=1), 99.0)), 1e-3)
