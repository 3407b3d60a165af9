"""The paint of a model: which vertices carry its main colour, and another colour for them.

Shapes: V vertices, F faces.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from splatgen.worlds.shelf.meshes import Floats, Mesh

COLORS: dict[str, tuple[float, float, float]] = {  # display RGB in 0..1, before shading
    "red": (0.80, 0.12, 0.10),
    "orange": (0.92, 0.50, 0.10),
    "yellow": (0.92, 0.82, 0.15),
    "green": (0.18, 0.60, 0.22),
    "blue": (0.15, 0.35, 0.80),
    "purple": (0.50, 0.20, 0.65),
    "pink": (0.92, 0.50, 0.68),
    "white": (0.92, 0.92, 0.92),
    "black": (0.13, 0.13, 0.14),
}
ENOUGH = 0.06  # of the surface, for a hue to count as paint
NEAR = 28.0  # degrees of hue that still are the same paint


def hsv(rgb: Floats) -> tuple[Floats, Floats, Floats]:
    """Hue in degrees, saturation and value of colours [V, 3]."""
    r, g, b = rgb.T
    high, low = rgb.max(1), rgb.min(1)
    span = high - low + 1e-9
    hue = np.where(
        high == r, ((g - b) / span) % 6, np.where(high == g, (b - r) / span + 2, (r - g) / span + 4)
    )
    return hue * 60, (high - low) / np.maximum(high, 1e-6), high


def _areas(mesh: Mesh) -> Floats:
    """The surface that each vertex stands for, [V]."""
    p = mesh.positions[mesh.faces]
    area = np.linalg.norm(np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]), axis=1)
    found = np.zeros(len(mesh.positions))
    np.add.at(found, mesh.faces.reshape(-1), np.repeat(area / 3, 3))
    return found.astype(np.float32)


def paint_mask(mesh: Mesh) -> NDArray[np.bool_]:
    """The vertices [V] of the main paint: the strong hue with most surface; wood only for want of others."""
    weight = _areas(mesh)
    hue, saturation, value = hsv(mesh.colors)
    brown = (hue > 8) & (hue < 40) & (value < 0.72) & (saturation > 0.25)
    for candidates in ((saturation > 0.45) & ~brown, (saturation > 0.3) & ~brown, saturation > 0.25):
        if weight[candidates].sum() > ENOUGH * weight.sum():
            histogram, _ = np.histogram(hue[candidates], 36, (0, 360), weights=weight[candidates])
            smooth = histogram + np.roll(histogram, 1) + np.roll(histogram, -1)
            center = (int(smooth.argmax()) + 0.5) * 10
            away = np.abs((hue - center + 180) % 360 - 180)
            pale = ~brown & (saturation > 0.2) & (away < 20)
            found: NDArray[np.bool_] = (candidates & (away < NEAR)) | pale
            return found
    return np.ones(len(mesh.positions), bool)


def recolour(mesh: Mesh, color: str, mask: NDArray[np.bool_] | None = None) -> Mesh:
    """The mesh with its main paint in another of COLORS; lighter and darker places stay so."""
    mask = paint_mask(mesh) if mask is None else mask
    brightness = mesh.colors.mean(1)
    ratio = np.clip(brightness / max(float(brightness[mask].mean()), 1e-3), 0.55, 1.35)[:, None]
    painted = np.clip(np.array(COLORS[color], np.float32) * ratio, 0, 1)
    colors = np.where(mask[:, None], painted, mesh.colors).astype(np.float32)
    return dataclasses.replace(mesh, colors=colors)
