"""The surface where a field on a grid changes its sign, as triangles, by surface nets (Gibson 1998).

One vertex for each cell of eight grid points that the surface passes through, at the mean of where it crosses
the cell's edges; one quad for each edge between grid points that it crosses. A grid point may touch another
of its side by an edge or a corner alone; there two sheets would share a vertex, so such points are joined
first (the images that are left are the well-composed ones of Latecki 1997, whose surfaces are manifolds).
NumPy only.

Shapes: a field [X, Y, Z], V vertices, F triangles.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
JOINED = -1e-3  # the value of a point that is taken inside, next to nothing: the surface stays beside it


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Triangles, counter-clockwise seen from outside."""

    vertices: Array  # [V, 3] float64
    faces: Array  # [F, 3] int64
    colors: Array  # [V, 3] 0..1, as displayed


def surface_nets(field: Array, origin: Array, step: float) -> tuple[Array, Array]:
    """Vertices [V, 3] and faces [F, 3] of a field that is negative inside, closed and without boundary.

    Grid point (i, j, k) is at origin + step (i, j, k). The outermost points count as outside.
    """
    field = np.pad(field[1:-1, 1:-1, 1:-1], 1, constant_values=1.0)
    field = well_composed(field)
    inside = field < 0
    cells, vertices = _vertices(field, inside)
    faces = np.concatenate([_quads(inside, cells, axis) for axis in range(3)])
    return origin + step * vertices, np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])


def normals(vertices: Array, faces: Array) -> Array:
    """Unit normals [V, 3] of vertices [V, 3]: those of the triangles [F, 3] around each, by area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    areas = np.cross(b - a, c - a)
    found = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(found, faces[:, i], areas)
    unit: Array = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-30)
    return unit


def well_composed(field: Array) -> Array:
    """The field with points joined that touch by an edge or a corner alone; none is taken away."""
    field = field.copy()
    while True:
        inside = field < 0
        add = np.zeros_like(inside)
        for corners in _touching_by_an_edge(inside):
            add |= corners
        if not add.any():
            add |= _touching_by_a_corner(inside)
        add[[0, -1]] = add[:, [0, -1]] = add[:, :, [0, -1]] = False
        if not (add & ~inside).any():
            return field
        field[add & ~inside] = JOINED


def _touching_by_an_edge(inside: Array) -> list[Array]:
    """Of squares of each two axes with one diagonal inside and the other outside: a corner of the latter."""
    found = []
    for axis in range(3):
        a, b = (i for i in range(3) if i != axis)
        p, q, r, s = (_shifted(inside, {a: i, b: j}) for i, j in ((0, 0), (1, 1), (0, 1), (1, 0)))
        add = np.zeros_like(inside)
        _shifted(add, {a: 0, b: 1})[p & q & ~r & ~s] = True
        _shifted(add, {a: 0, b: 0})[r & s & ~p & ~q] = True
        found.append(add)
    return found


def _touching_by_a_corner(inside: Array) -> Array:
    """Of cells with two opposite corners alone inside, or alone outside: a point that joins or fills them."""
    add = np.zeros_like(inside)
    corners = list(itertools.product((0, 1), repeat=3))
    every = {corner: _shifted(inside, dict(enumerate(corner))) for corner in corners}
    count = np.sum(list(every.values()), 0)
    for corner in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]:
        opposite = tuple(1 - i for i in corner)
        both_in = every[corner] & every[opposite] & (count == 2)
        both_out = ~every[corner] & ~every[opposite] & (count == 6)
        beside = (1 - corner[0], corner[1], corner[2])
        _shifted(add, dict(enumerate(beside)))[both_in] = True
        _shifted(add, dict(enumerate(corner)))[both_out] = True
    return add


def _shifted(grid: Array, by: dict[int, int]) -> Array:
    """The grid without its last row along each axis that is named, or without its first, as a view."""
    return grid[tuple(slice(by[i], by[i] - 1 or None) if i in by else slice(None) for i in range(3))]


def _vertices(field: Array, inside: Array) -> tuple[Array, Array]:
    """Each cell's vertex by number, -1 for none, [X - 1, Y - 1, Z - 1], and their places in steps [V, 3]."""
    count = np.zeros([n - 1 for n in field.shape])
    total = np.zeros([*count.shape, 3])
    for axis in range(3):
        a, b = (_shifted(field, {axis: i}) for i in (0, 1))
        crossed = (a < 0) != (b < 0)
        share = np.where(crossed, a / np.where(crossed, a - b, 1.0), 0.0)  # of the way
        others = [i for i in range(3) if i != axis]
        for i, j in itertools.product((0, 1), repeat=2):
            by = {others[0]: i, others[1]: j}
            here = _shifted(crossed, by)
            count += here
            total[..., axis] += np.where(here, _shifted(share, by), 0.0)
            total[..., others[0]] += i * here
            total[..., others[1]] += j * here
    active = count > 0
    cells = np.full(count.shape, -1, np.int64)
    cells[active] = np.arange(active.sum())
    return cells, np.argwhere(active) + total[active] / count[active][:, None]


def _quads(inside: Array, cells: Array, axis: int) -> Array:
    """The quads [Q, 4] across the grid's edges along an axis, between the four cells around each."""
    a, b = _shifted(inside, {axis: 0}), _shifted(inside, {axis: 1})
    edges = np.argwhere(a != b)
    u, v = (axis + 1) % 3, (axis + 2) % 3
    corners = []
    for i, j in ((0, 0), (1, 0), (1, 1), (0, 1)):
        at = edges.copy()
        at[:, u] -= 1 - i
        at[:, v] -= 1 - j
        corners.append(cells[tuple(at.T)])
    quads = np.stack(corners, -1)
    leaving = a[tuple(edges.T)]  # from inside to outside along the axis: counter-clockwise as it is
    return np.where(leaving[:, None], quads, quads[:, ::-1])
