"""A shelf for tests: every noun of the catalogue is a box of its own proportions and colours."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np

from splatgen.worlds.shelf import PACKED
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.meshes import Mesh, normalised, pack

SIDES = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


def box(size: tuple[float, float, float], color: tuple[float, float, float], front: float = 0.9) -> Mesh:
    """A box around the origin, its edges `size`; the side at +Z is grey of brightness `front`."""
    positions: list[Any] = []
    normals: list[Any] = []
    colors: list[Any] = []
    faces: list[tuple[int, int, int]] = []
    for side in SIDES:
        n = np.array(side, float)
        u = np.roll(n, 1)
        start = len(positions)
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            positions.append((n + a * u + b * np.cross(n, u)) * np.array(size) / 2)
            normals.append(n)
            colors.append((front,) * 3 if side == (0, 0, 1) else color)
        faces += [(start, start + 1, start + 2), (start, start + 2, start + 3)]
    return Mesh(
        positions=np.array(positions, np.float32),
        normals=np.array(normals, np.float32),
        colors=np.array(colors, np.float32),
        faces=np.array(faces, np.int32),
    )


def meshes() -> dict[str, Mesh]:
    """A box a noun; hues and proportions differ."""
    nouns = list(catalogue().nouns)
    found = {}
    for n, noun in enumerate(nouns):
        size = (1.0, 0.4 + 0.9 * (n % 5) / 4, 0.5 + 0.7 * (n % 3) / 2)
        found[noun] = normalised(box(size, colorsys.hsv_to_rgb(n / len(nouns), 0.8, 0.8)))
    return found


def write(folder: Path) -> Path:
    """The shelf of boxes, as the build would pack it."""
    packed: dict[str, Any] = {}
    for noun, mesh in meshes().items():
        model = catalogue().nouns[noun].model
        packed |= {f"{model.id}/{part}": values for part, values in pack(mesh).items()}
    np.savez(folder / PACKED, **packed)
    return folder
