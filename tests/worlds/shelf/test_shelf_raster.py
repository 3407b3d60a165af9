"""The z-buffer against rays and triangles by definition, in float64."""

import math

import boxes
import numpy as np
import pytest
import torch

from splatgen.scene.cameras import orbit
from splatgen.worlds.shelf import raster, scenes
from splatgen.worlds.shelf.meshes import Baked, bake

SIZE = 24


def soup(seed: int, count: int = 40, spread: float = 0.6, size: float = 0.4) -> Baked:
    """Triangles anywhere, any way round."""
    r = np.random.default_rng(seed)
    middle = r.uniform(-spread, spread, (count, 1, 3))
    corners = middle + r.uniform(-size, size, (count, 3, 3))
    colors = r.uniform(0, 1, (count, 3, 3))
    colors[: count // 2] = colors[: count // 2, :1]  # half of them of one colour
    return Baked(
        positions=corners.reshape(-1, 3).astype(np.float32),
        colors=colors.reshape(-1, 3).astype(np.float32),
        faces=np.arange(3 * count).reshape(-1, 3).astype(np.int32),
    )


def by_definition(surface, lens, size, supersample):
    """Möller and Trumbore 1997 for every sub-pixel and triangle: colour, coverage and distance."""
    n = size * supersample
    grid = (np.arange(n) + 0.5) / supersample
    u = (grid[None, :] - lens.center[0]) / lens.focal[0] + np.zeros((n, 1))
    v = -(grid[:, None] - lens.center[1]) / lens.focal[1] + np.zeros((1, n))
    axes = lens.axes.astype(np.float64)
    d = (np.stack([u, v, -np.ones_like(u)], -1) @ axes).reshape(-1, 3)  # length is 1 / cos
    best = np.full(len(d), np.inf)
    color = np.zeros((len(d), 3))
    for face in surface.faces:
        a, b, c = surface.positions[face].astype(np.float64)
        p = np.cross(d, c - a)
        det = p @ (b - a)
        with np.errstate(divide="ignore", invalid="ignore"):
            s = (p @ (lens.eye - a)) / det
            q = np.cross(lens.eye - a, b - a)
            w = (d @ q) / det
            t = np.full(len(d), float(q @ (c - a))) / det
        hit = (s >= 0) & (w >= 0) & (s + w <= 1) & (t > 0) & (t < best)
        best[hit] = t[hit]
        weights = np.stack([1 - s - w, s, w], -1)[hit]
        color[hit] = weights @ surface.colors[face]
    seen = np.isfinite(best)
    away = np.where(seen, best, 0.0) * np.linalg.norm(d, axis=1)
    shape = (size, supersample, size, supersample, -1)
    cover = seen.astype(float).reshape(shape).sum((1, 3))
    rgb = (color * seen[:, None]).reshape(shape).sum((1, 3)) / supersample**2
    return (
        rgb,
        cover[..., 0] / supersample**2,
        away.reshape(shape).sum((1, 3))[..., 0] / np.maximum(cover[..., 0], 1),
    )


def drawn(surface, lens, size, supersample):
    sheet = raster.canvas(size, size, supersample)
    raster.draw(sheet, surface, lens)
    away, out = np.zeros((size, size), np.float32), np.empty((size, size, 4), np.float32)
    raster.distances(sheet, lens, away)
    raster.resolve(sheet, out)
    assert not sheet.near.any()  # wiped
    return out[..., :3], out[..., 3], away


def camera(azimuth, elevation, **change):
    cameras = orbit(torch.tensor([azimuth]), torch.tensor([elevation]), size=SIZE, **change)
    return scenes.lenses(cameras)[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "view", [(10.0, 20.0, 2.5, 50.0), (200.0, -60.0, 3.5, 30.0), (90.0, 90.0, 2.0, 70.0)]
)
def test_pictures_are_what_rays_meet(seed, view):
    azimuth, elevation, distance, fov = view
    surface, lens = soup(seed), camera(azimuth, elevation, distance=distance, fov=fov)
    for found, expected in zip(
        drawn(surface, lens, SIZE, 2), by_definition(surface, lens, SIZE, 2), strict=True
    ):
        different = np.abs(found - expected).reshape(SIZE * SIZE, -1).max(1) > 1e-3
        assert different.mean() < 0.004  # a sub-pixel on an edge may fall to either side
        assert found.max() > 0.1


@pytest.mark.parametrize("distance", [0.05, 0.3, 0.8])
def test_a_camera_among_the_triangles_sees_those_before_it(distance):
    surface, lens = soup(7, count=60), camera(30.0, 10.0, distance=distance)
    found, expected = drawn(surface, lens, SIZE, 1), by_definition(surface, lens, SIZE, 1)
    assert (np.abs(found[1] - expected[1]) > 0.5).mean() < 0.01
    assert (np.abs(found[0] - expected[0]).max(-1) > 1e-2).mean() < 0.02


def test_what_is_behind_the_camera_is_not_seen():
    surface = bake(boxes.box((0.5, 0.5, 0.5), (0.8, 0.1, 0.1)))
    lens = camera(0.0, 0.0, distance=1.0)
    away = Baked(
        positions=surface.positions + np.float32([0, 0, 3]), colors=surface.colors, faces=surface.faces
    )
    rgb, alpha, depth = drawn(away, lens, SIZE, 2)
    assert not rgb.any()
    assert not alpha.any()
    assert not depth.any()


def test_scale_and_offset_are_those_of_the_world():
    surface = soup(3)
    lens, out, again = camera(40.0, 15.0), *(np.empty((SIZE, SIZE, 4), np.float32) for _ in range(2))
    sheet = raster.canvas(SIZE, SIZE, 3)
    raster.draw(sheet, surface, lens, 0.5, (0.1, -0.2, 0.3))
    raster.resolve(sheet, out)
    moved = surface.positions * np.float32(0.5) + np.float32([0.1, -0.2, 0.3])
    raster.draw(sheet, Baked(positions=moved, colors=surface.colors, faces=surface.faces), lens)
    raster.resolve(sheet, again)
    assert (np.abs(out - again).max(-1) > 1e-4).mean() < 0.01


def test_the_order_of_surfaces_does_not_matter():
    a, b, lens = soup(1), soup(2), camera(0.0, 0.0)
    pictures = []
    for order in ((a, b), (b, a)):
        sheet, out = raster.canvas(SIZE, SIZE, 2), np.empty((SIZE, SIZE, 4), np.float32)
        for surface in order:
            raster.draw(sheet, surface, lens)
        raster.resolve(sheet, out)
        pictures.append(out)
    np.testing.assert_array_equal(*pictures)


def test_neighbouring_triangles_leave_no_crack():
    n = 40
    x, y = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n))
    tilt = 0.3 * np.sin(3 * x) + 0.2 * y
    grid = np.arange(n * n).reshape(n, n)
    a, b, c, d = (grid[i : n - 1 + i, j : n - 1 + j].reshape(-1) for i in (0, 1) for j in (0, 1))
    surface = Baked(
        positions=np.stack([x, y, tilt], -1).reshape(-1, 3).astype(np.float32),
        colors=np.ones((n * n, 3), np.float32),
        faces=np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)]).astype(np.int32),
    )
    lens = camera(12.0, 7.0, distance=1.6, fov=40.0)
    _, alpha, _ = drawn(surface, lens, SIZE, 3)
    half = math.tan(math.radians(20.0)) * 1.6
    assert half < 0.7  # the surface fills the frame
    assert alpha.min() == 1.0


@pytest.mark.parametrize("view", [(0.0, 0.0), (0.0, 90.0), (90.0, 0.0), (45.0, 0.0), (180.0, -90.0)])
@pytest.mark.parametrize("size", [32, 33])
def test_edges_right_through_sub_pixels_leave_no_crack(view, size):
    surface = bake(boxes.box((1, 1, 1), (0.8, 0.1, 0.1)))
    lens = scenes.lenses(orbit(torch.tensor([view[0]]), torch.tensor([view[1]]), size=size))[0]
    for supersample in (1, 2, 3):
        _, alpha, away = drawn(surface, lens, size, supersample)
        middle = slice(size // 3, -(size // 3))
        assert (alpha[middle, middle] == 1).all()
        assert away[middle, middle].max() < 2.3  # no sight of the far side
