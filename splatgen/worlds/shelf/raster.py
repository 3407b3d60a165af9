"""A z-buffer for triangles: exact coverage of sub-pixels, colours interpolated in perspective.

A triangle with corners a, b, c in a camera's frame is met by the ray d where d·(b×c), d·(c×a) and d·(a×b)
have one sign; they are its barycentric weights, and 1/z is their sum over a·(b×c) (Olano and Greer 1997,
"Triangle scan conversion using 2D homogeneous coordinates"). Nothing is divided by z, so nothing needs
clipping.

Shapes: V vertices, F faces, H x W pixels, h x w sub-pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from splatgen.rasterizer._jit import jit
from splatgen.worlds.shelf.meshes import Baked, Floats

TIE = 1e-12  # of the terms of an edge's weight
NEAR = 1e-6  # of a corner, below which its projection is not looked at


@dataclass(frozen=True, kw_only=True)
class Lens:
    """One camera: its place and axes, focal lengths and principal point in pixels."""

    eye: Floats  # [3]
    axes: Floats  # [3, 3] rows right, up, back
    focal: tuple[float, float]
    center: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Sub-pixels that are drawn on, again and again."""

    width: int
    height: int
    supersample: int
    near: Floats  # [h, w] 1 / z of the nearest surface, 0 where none is
    colors: Floats  # [h, w, 3]


def canvas(width: int, height: int, supersample: int) -> Canvas:
    """Sub-pixels for pictures of width x height pixels, nothing on them."""
    h, w = height * supersample, width * supersample
    return Canvas(
        width=width,
        height=height,
        supersample=supersample,
        near=np.zeros((h, w), np.float32),
        colors=np.zeros((h, w, 3), np.float32),
    )


def draw(
    on: Canvas, surface: Baked, lens: Lens, scale: float = 1.0, offset: tuple[float, ...] = (0.0, 0.0, 0.0)
) -> None:
    """Draw a surface, scaled and then moved, behind what is nearer."""
    n = on.supersample
    project = np.empty((3, 4))  # sub-pixel coordinates times z, and z, of a homogeneous position
    right, up, back = lens.axes.astype(np.float64)
    eye = lens.eye.astype(np.float64)
    rows = np.stack([right, -up, -back])
    project[:, :3], project[:, 3] = rows, -rows @ eye
    project[0] = n * (lens.focal[0] * project[0] + lens.center[0] * project[2])
    project[1] = n * (lens.focal[1] * project[1] + lens.center[1] * project[2])
    project[:, 3] += project[:, :3] @ np.asarray(offset, np.float64)
    project[:, :3] *= scale
    _draw(surface.positions, surface.colors, surface.faces, project, on.near, on.colors)


def resolve(on: Canvas, out: Floats) -> None:
    """Average the sub-pixels into out [H, W, 4], colour times coverage and coverage; then wipe them."""
    _resolve(on.near, on.colors, on.supersample, out)


def distances(on: Canvas, lens: Lens, out: Floats) -> None:
    """Mean distance along the ray over the covered sub-pixels, out [H, W]; 0 where none is."""
    _distances(on.near, on.supersample, *lens.focal, *lens.center, out)


@jit
def _span(slope: float, start: float, low: int, high: int) -> tuple[int, int]:
    """The sub-pixels of low..high whose centres have slope x + start >= 0."""
    if slope > 0.0:
        low = max(low, math.ceil(max(-start / slope - 0.5, -1.0)))
    elif slope < 0.0:
        high = min(high, math.floor(min(-start / slope - 0.5, 1e9)))
    elif start < 0.0:
        high = low - 1
    return low, high


@jit
def _tie(n, k, right, bottom):  # type: ignore[no-untyped-def]
    """What rounding may take from an edge's weight: both faces at an edge own the sub-pixels on it."""
    return TIE * (abs(n[k, 0]) * (right + 1) + abs(n[k, 1]) * (bottom + 1) + abs(n[k, 2]))


@jit
def _limits(a: float, b: float, c: float, most: int) -> tuple[int, int]:
    """The sub-pixels of 0..most whose centres lie between three coordinates."""
    low, high = min(a, b, c), max(a, b, c)
    return math.ceil(max(low - 0.5, 0.0)), math.floor(min(high - 0.5, float(most)))


@jit
def _draw(positions, colors, faces, project, near, painted):  # type: ignore[no-untyped-def]
    height, width = near.shape
    v = np.empty((len(positions), 3))
    for i in range(len(positions)):
        x, y, z = float(positions[i, 0]), float(positions[i, 1]), float(positions[i, 2])
        for k in range(3):
            v[i, k] = project[k, 0] * x + project[k, 1] * y + project[k, 2] * z + project[k, 3]
    n = np.empty((3, 3))
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        front = int(v[a, 2] > NEAR) + int(v[b, 2] > NEAR) + int(v[c, 2] > NEAR)
        if front == 0:
            continue
        left, right, top, bottom = 0, width - 1, 0, height - 1
        if front == 3:
            left, right = _limits(v[a, 0] / v[a, 2], v[b, 0] / v[b, 2], v[c, 0] / v[c, 2], width - 1)
            top, bottom = _limits(v[a, 1] / v[a, 2], v[b, 1] / v[b, 2], v[c, 1] / v[c, 2], height - 1)
        volume = _edges(v, a, b, c, n)
        if volume != 0.0 and left <= right and top <= bottom:
            _fill(n, volume, (left, right, top, bottom), colors, (a, b, c), near, painted)


@jit
def _edges(v, a, b, c, n):  # type: ignore[no-untyped-def]
    """Write b×c, c×a and a×b into n, and return a·(b×c); all with the sign that makes it positive."""
    for k in range(3):
        i, j = (b, c) if k == 0 else (c, a) if k == 1 else (a, b)
        n[k, 0] = v[i, 1] * v[j, 2] - v[i, 2] * v[j, 1]
        n[k, 1] = v[i, 2] * v[j, 0] - v[i, 0] * v[j, 2]
        n[k, 2] = v[i, 0] * v[j, 1] - v[i, 1] * v[j, 0]
    volume = v[a, 0] * n[0, 0] + v[a, 1] * n[0, 1] + v[a, 2] * n[0, 2]
    if volume < 0.0:
        n *= -1.0
    return abs(volume)


@jit
def _fill(n, volume, box, colors, corners, near, painted):  # type: ignore[no-untyped-def]
    """One triangle, row by row: only between its edges, and only where it is nearest."""
    left, right, top, bottom = box
    a, b, c = corners
    flat = True
    for q in range(3):
        flat &= colors[a, q] == colors[b, q] and colors[b, q] == colors[c, q]
    inverse = 1.0 / volume
    slope = (n[0, 0] + n[1, 0] + n[2, 0]) * inverse
    for y in range(top, bottom + 1):
        py = y + 0.5
        e0, e1, e2 = n[0, 1] * py + n[0, 2], n[1, 1] * py + n[1, 2], n[2, 1] * py + n[2, 2]
        low, high = _span(n[0, 0], e0 + _tie(n, 0, right, bottom), left, right)
        low, high = _span(n[1, 0], e1 + _tie(n, 1, right, bottom), low, high)
        low, high = _span(n[2, 0], e2 + _tie(n, 2, right, bottom), low, high)
        start = (e0 + e1 + e2) * inverse
        for x in range(low, high + 1):
            px = x + 0.5
            closeness = slope * px + start
            if closeness <= near[y, x]:
                continue
            near[y, x] = closeness
            if flat:
                for q in range(3):
                    painted[y, x, q] = colors[a, q]
            else:
                share = inverse / closeness
                w0, w1 = (n[0, 0] * px + e0) * share, (n[1, 0] * px + e1) * share
                w2 = 1.0 - w0 - w1
                for q in range(3):
                    painted[y, x, q] = w0 * colors[a, q] + w1 * colors[b, q] + w2 * colors[c, q]


@jit
def _resolve(near, painted, supersample, out):  # type: ignore[no-untyped-def]
    height, width = near.shape[0] // supersample, near.shape[1] // supersample
    share = np.float32(1.0 / (supersample * supersample))
    for y in range(height):
        for x in range(width):
            r, g, b, cover = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for j in range(y * supersample, (y + 1) * supersample):
                for i in range(x * supersample, (x + 1) * supersample):
                    if near[j, i] > 0:
                        r += painted[j, i, 0]
                        g += painted[j, i, 1]
                        b += painted[j, i, 2]
                        cover += np.float32(1)
                        near[j, i] = np.float32(0)
            out[y, x, 0], out[y, x, 1], out[y, x, 2], out[y, x, 3] = (
                r * share,
                g * share,
                b * share,
                cover * share,
            )


@jit
def _distances(near, supersample, fx, fy, cx, cy, out):  # type: ignore[no-untyped-def]
    height, width = near.shape[0] // supersample, near.shape[1] // supersample
    for y in range(height):
        for x in range(width):
            total, cover = 0.0, 0
            for j in range(y * supersample, (y + 1) * supersample):
                for i in range(x * supersample, (x + 1) * supersample):
                    if near[j, i] > 0:
                        u = ((i + 0.5) / supersample - cx) / fx
                        w = ((j + 0.5) / supersample - cy) / fy
                        total += math.sqrt(1.0 + u * u + w * w) / near[j, i]
                        cover += 1
            out[y, x] = total / max(cover, 1)
