"""Surfaces of fields: closed, manifold, outward, and where the field changes its sign."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splatgen.scene.surface_nets import normals, surface_nets, well_composed


def ball(points: int, radius: float = 0.7) -> np.ndarray:
    axis = np.linspace(-1, 1, points)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.sqrt(x * x + y * y + z * z) - radius


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def edges(faces: np.ndarray) -> np.ndarray:
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def assert_manifold(faces: np.ndarray) -> None:
    """Every edge is there once in each direction, and the triangles around each vertex are one fan."""
    directed = edges(faces)
    keys, counts = np.unique(directed, axis=0, return_counts=True)
    assert (counts == 1).all()
    assert {tuple(e) for e in keys} == {(b, a) for a, b in keys}
    following: dict[int, dict[int, int]] = {}
    for face in faces:
        for i in range(3):
            following.setdefault(face[i], {})[face[(i + 1) % 3]] = face[(i + 2) % 3]
    for fan in following.values():
        start = at = next(iter(fan))
        for step in range(1, len(fan) + 1):
            at = fan[at]
            if at == start:
                assert step == len(fan)
                break


@pytest.mark.parametrize("points", [9, 17, 33])
def test_a_ball_is_a_ball(points):
    step = 2 / (points - 1)
    vertices, faces = surface_nets(ball(points), np.full(3, -1.0), step)
    assert_manifold(faces)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.7).max() < 0.7 * step**1.5
    assert volume(vertices, faces) == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=2 * step)
    assert len(np.unique(faces)) == len(vertices)
    assert len(vertices) - len(edges(faces)) // 2 + len(faces) == 2  # Euler's number of a sphere
    outward = (normals(vertices, faces) * vertices).sum(1) / np.linalg.norm(vertices, axis=1)
    assert outward.min() > 0.9


@given(
    shape=st.tuples(*[st.integers(4, 9)] * 3),
    share=st.floats(-1.5, 1.5),
    seed=st.integers(0, 10_000),
)
def test_any_field_gives_a_closed_manifold(shape, share, seed):
    field = np.random.default_rng(seed).normal(size=shape) + share
    vertices, faces = surface_nets(field, np.zeros(3), 1.0)
    if len(faces):
        assert_manifold(faces)
        assert volume(vertices, faces) > 0
        assert (vertices >= 0).all()
        assert (vertices <= np.array(shape) - 1).all()


@given(seed=st.integers(0, 1000))
def test_joining_takes_nothing_away_and_leaves_what_is_well_composed(seed):
    field = np.pad(np.random.default_rng(seed).normal(size=(6, 6, 6)), 1, constant_values=1.0)
    joined = well_composed(field)
    assert (joined < 0)[field < 0].all()
    assert np.array_equal(joined[joined > 0], field[joined > 0])
    assert np.array_equal(well_composed(joined), joined)


@pytest.mark.parametrize("corner", [(1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
def test_two_points_that_touch_become_one_body(corner):
    field = np.ones((6, 6, 6))
    field[2, 2, 2] = field[2 + corner[0], 2 + corner[1], 2 + corner[2]] = -1
    _, faces = surface_nets(field, np.zeros(3), 1.0)
    assert_manifold(faces)
    parts = {v: v for v in np.unique(faces)}
    for a, b in edges(faces):
        for v in [v for v in parts if parts[v] == parts[a]]:
            parts[v] = parts[b]
    assert len(set(parts.values())) == 1


def test_nothing_inside_is_no_surface_and_all_inside_is_a_box():
    vertices, faces = surface_nets(np.ones((5, 5, 5)), np.zeros(3), 1.0)
    assert (len(vertices), len(faces)) == (0, 0)
    vertices, faces = surface_nets(-np.ones((5, 5, 5)), np.zeros(3), 1.0)
    assert_manifold(faces)
    assert np.array_equal([vertices.min(0), vertices.max(0)], [[0.5] * 3, [3.5] * 3])
