"""Triangles: a mesh, how it is packed, welded, turned and scaled, and the light that is baked into it.

Shapes: V vertices, F faces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from splatgen.worlds.toybox.world import shade

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

RADIUS = 0.9  # of the bounding ball of what is shown
_STEPS = 32_000  # of a packed position, in world units; a normalised mesh stays within int16
PARTS = ("pos", "nrm", "rgb", "tri")


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A surface with a normal and a colour at each vertex."""

    positions: Floats  # [V, 3]
    normals: Floats  # [V, 3] unit
    colors: Floats  # [V, 3] albedo in display space, 0..1
    faces: Ints  # [F, 3]


@dataclass(frozen=True, kw_only=True)
class Baked:
    """A surface with its light: all that a picture needs, the same from every view."""

    positions: Floats  # [V, 3]
    colors: Floats  # [V, 3] shaded, 0..1
    faces: Ints  # [F, 3]


def bake(mesh: Mesh) -> Baked:
    """Light a mesh as the toybox's solids are lit."""
    light = shade(torch.from_numpy(mesh.normals)).numpy()
    colors = np.clip(mesh.colors * light[:, None], 0.0, 1.0).astype(np.float32)
    return Baked(positions=mesh.positions, colors=colors, faces=mesh.faces)


def bounds(positions: Floats) -> tuple[Floats, Floats]:
    """Lowest and highest corner of a box around positions [V, 3]."""
    return positions.min(0), positions.max(0)


def normalised(mesh: Mesh, yaw: float = 0.0) -> Mesh:
    """Turn about +Y by yaw degrees, centre the box on the origin, scale into the ball of RADIUS."""
    c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)
    positions = mesh.positions @ turn.T
    low, high = bounds(positions[np.unique(mesh.faces)])
    positions = positions - (low + high) / 2
    reach = float(np.linalg.norm(positions[np.unique(mesh.faces)], axis=1).max())
    return Mesh(
        positions=(positions * (RADIUS / max(reach, 1e-9))).astype(np.float32),
        normals=(mesh.normals @ turn.T).astype(np.float32),
        colors=mesh.colors,
        faces=mesh.faces,
    )


def welded(mesh: Mesh) -> Mesh:
    """Merge vertices that are alike in all three, and drop faces without area and vertices without faces."""
    size = float(np.ptp(mesh.positions, axis=0).max()) + 1e-9
    grid = np.round((mesh.positions - mesh.positions.min(0)) / size * 16_384)
    key = np.concatenate([grid, np.round(mesh.normals * 100), np.round(mesh.colors * 255)], 1)
    _, first, inverse = np.unique(key.astype(np.int32), axis=0, return_index=True, return_inverse=True)
    faces = inverse.reshape(-1)[mesh.faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (a != c)]
    used, faces = np.unique(faces, return_inverse=True)
    first = first[used]
    return Mesh(
        positions=mesh.positions[first],
        normals=mesh.normals[first],
        colors=mesh.colors[first],
        faces=faces.reshape(-1, 3).astype(np.int32),
    )


def pack(mesh: Mesh) -> dict[str, NDArray[Any]]:
    """A normalised mesh in few bytes, under the names of PARTS."""
    index = np.uint16 if len(mesh.positions) < 65_536 else np.uint32
    return {
        "pos": np.round(mesh.positions * _STEPS).astype(np.int16),
        "nrm": np.round(mesh.normals * 127).astype(np.int8),
        "rgb": np.round(mesh.colors * 255).astype(np.uint8),
        "tri": mesh.faces.astype(index),
    }


def unpack(parts: Mapping[str, NDArray[Any]]) -> Mesh:
    """Undo `pack`; ValueError for arrays that are no mesh."""
    shapes = {name: np.shape(parts[name]) for name in PARTS}
    vertices = len(parts["pos"])
    whole = all(len(shape) == 2 and shape[1] == 3 for shape in shapes.values())
    if not whole or any(len(parts[name]) != vertices for name in ("nrm", "rgb")):
        raise ValueError(f"the arrays have shapes {shapes}: pack the model again")
    faces = parts["tri"].astype(np.int32)
    if len(faces) == 0 or faces.min() < 0 or faces.max() >= vertices:
        raise ValueError(f"{len(faces)} faces do not lead to {vertices} vertices: pack the model again")
    normals = parts["nrm"].astype(np.float32)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    return Mesh(
        positions=parts["pos"].astype(np.float32) / np.float32(_STEPS),
        normals=normals,
        colors=parts["rgb"].astype(np.float32) / np.float32(255),
        faces=faces,
    )
