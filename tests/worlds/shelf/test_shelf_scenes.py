"""Scenes stand as captions say, and their pictures agree with the toybox's where both draw the same."""

import itertools

import boxes
import numpy as np
import pytest
import torch

from splatgen.scene.cameras import orbit, turntable
from splatgen.worlds.shelf import scenes
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.grammar import Caption, Item, parse
from splatgen.worlds.shelf.meshes import RADIUS, Mesh, bake
from splatgen.worlds.shelf.scenes import ground_truth, place
from splatgen.worlds.toybox import world
from splatgen.worlds.toybox.grammar import COLORS

ON = scenes.stock(boxes.meshes(), ["couch", "car"])
NOUNS = list(catalogue().nouns)


def ball(n: int = 48) -> Mesh:
    """The toybox's red sphere in triangles."""
    a, b = np.meshgrid(np.linspace(0, 2 * np.pi, 2 * n + 1), np.linspace(0, np.pi, n + 1))
    normals = np.stack([np.sin(b) * np.sin(a), np.cos(b), np.sin(b) * np.cos(a)], -1).reshape(-1, 3)
    grid = np.arange(len(normals)).reshape(n + 1, 2 * n + 1)
    p, q, r, s = (grid[i : n + i, j : 2 * n + j].reshape(-1) for i in (0, 1) for j in (0, 1))
    return Mesh(
        positions=(world.SPHERE_RADIUS * normals).astype(np.float32),
        normals=normals.astype(np.float32),
        colors=np.tile(np.array(COLORS["red"], np.float32), (len(normals), 1)),
        faces=np.concatenate([np.stack([p, r, q], 1), np.stack([q, r, s], 1)]).astype(np.int32),
    )


@pytest.mark.parametrize(
    "view", [(25.0, 20.0, 2.5, 50.0), (250.0, -40.0, 1.6, 60.0), (110.0, 75.0, 4.0, 25.0)]
)
def test_a_sphere_of_triangles_is_the_toyboxs_sphere(view):
    azimuth, elevation, distance, fov = view
    camera = orbit(
        torch.tensor([azimuth]), torch.tensor([elevation]), size=(40, 32), distance=distance, fov=fov
    )
    shelf = scenes.Shelf(surfaces={("star", None): bake(ball())}, extents={})
    grey = torch.full((3,), 0.5)
    ours = ground_truth(Caption(Item("star")), camera, grey, on=shelf)
    theirs = world.ground_truth(parse("a red sphere"), camera, grey)
    assert ours.rgb.shape == (1, 3, 32, 40)
    assert (ours.alpha - theirs.alpha).abs().mean() < 2e-3
    assert (ours.rgb - theirs.rgb).abs().mean() < 3e-3
    assert (ours.depth - theirs.depth).abs()[theirs.alpha == 1].max() < 0.02


def corners(caption: Caption) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lowest and highest corner of each thing, in the caption's order."""
    return [(p.positions().min(0), p.positions().max(0)) for p in place(caption, ON)]


PAIRS = list(itertools.islice(zip(NOUNS[::5], NOUNS[3::7], strict=False), 15))


@pytest.mark.parametrize("pair", PAIRS)
def test_the_first_stands_on_the_second_or_to_its_left(pair):
    a, b = (Item(noun) for noun in pair)
    (low, high), (below, top) = corners(Caption(a, "on top of", b))
    assert low[1] == pytest.approx(top[1], abs=1e-5)  # boxes are flat on top
    middle = ((low + high)[[0, 2]] / 2, (below + top)[[0, 2]] / 2)
    np.testing.assert_allclose(*middle, atol=1e-5)
    (low, high), (other, top) = corners(Caption(a, "next to", b))
    assert high[0] < other[0]
    assert low[1] == pytest.approx(other[1], abs=1e-5)
    assert low[0] < 0 < top[0]


@pytest.mark.parametrize("relation", ["on top of", "next to"])
@pytest.mark.parametrize("pair", PAIRS[:6])
def test_a_scene_fills_the_ball_around_the_origin(relation, pair):
    parts = place(Caption(Item(pair[0]), relation, Item(pair[1])), ON)
    points = np.concatenate([part.positions() for part in parts])
    np.testing.assert_allclose(points.min(0), -points.max(0), atol=1e-5)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(RADIUS, abs=1e-5)
    assert len({round(part.scale, 6) for part in parts}) == 1


def test_a_thing_stands_on_the_surface_and_not_on_what_sticks_out_beside_it():
    mesh = boxes.box((1, 0.2, 1), (1, 0, 0))
    mast = boxes.box((0.05, 2, 0.05), (1, 0, 0))
    low = mast.positions + np.float32([0.45, 0, 0.45])
    both = Mesh(
        positions=np.concatenate([mesh.positions, low]),
        normals=np.concatenate([mesh.normals, mast.normals]),
        colors=np.concatenate([mesh.colors, mast.colors]),
        faces=np.concatenate([mesh.faces, mast.faces + len(mesh.positions)]),
    )
    assert scenes.extent(both).top == pytest.approx(0.1)
    assert scenes.extent(mast).top == pytest.approx(1.0)


def test_a_colour_is_painted_and_only_where_it_is_asked():
    cameras = turntable(4, size=24)
    plain, red = (ground_truth(parse(text), cameras, on=ON) for text in ("a couch", "a red couch"))
    assert torch.equal(plain.alpha, red.alpha)
    seen = (red.alpha == 1).expand(-1, 3, -1, -1)
    difference = (plain.rgb - red.rgb).abs()
    assert difference[seen].mean() > 0.05
    front = difference[0].amax(0) < 1e-6
    assert front[8:16, 8:16].all()  # the grey side is no paint


def test_several_captions_one_a_camera_and_the_toybox_among_them():
    cameras = turntable(3, size=20)
    captions = [parse("a car"), parse("a blue cube"), parse("a taxi next to a frog")]
    back = torch.tensor([0.2, 0.4, 0.6])
    together = ground_truth(captions, cameras, back, on=ON)
    for n, caption in enumerate(captions):
        alone = ground_truth(caption, cameras[n : n + 1], back, on=ON)
        assert torch.equal(alone.rgb[0], together.rgb[n])
        assert torch.equal(alone.depth[0], together.depth[n])
    toy = world.ground_truth(captions[1], cameras[1:2], back)
    torch.testing.assert_close(together.rgb[1], toy.rgb[0])
    torch.testing.assert_close(together.depth[1], toy.depth[0])
    corner = together.rgb[:, :, 0, 0]
    torch.testing.assert_close(corner, back.expand(3, 3))
    with pytest.raises(ValueError, match="got 2 captions for 3 cameras"):
        ground_truth(captions[:2], cameras, on=ON)


def test_depth_is_the_distance_along_the_ray_and_0_where_nothing_is():
    cameras = turntable(1, size=33, elevation=0.0)
    seen = ground_truth(Caption(Item(NOUNS[0])), cameras, on=ON)
    front = place(Caption(Item(NOUNS[0])), ON)[0].positions()[:, 2].max()
    assert float(seen.depth[0, 0, 16, 16]) == pytest.approx(2.5 - front, abs=1e-3)
    assert (seen.depth[seen.alpha == 0] == 0).all()


def test_points_lie_on_the_surface_and_cover_it_evenly():
    caption = Caption(Item(NOUNS[0]))
    points, colors = scenes.point_cloud(caption, 4000, torch.Generator().manual_seed(0), on=ON)
    half = torch.from_numpy(place(caption, ON)[0].positions().max(0))
    on = ((points.abs() - half).abs() < 1e-5).any(-1) & (points.abs() <= half + 1e-5).all(-1)
    assert on.all()
    front = (points[:, 2] - half[2]).abs() < 1e-5
    sides = half[[1, 0, 0]] * half[[2, 2, 1]]
    assert front.float().mean() == pytest.approx(float(sides[2] / (2 * sides.sum())), abs=0.03)
    assert (colors[front].std(0) < 1e-6).all()  # one plain grey side
    toy, _ = scenes.point_cloud(parse("a red sphere"), 100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(toy.norm(dim=-1), torch.full((100,), world.SPHERE_RADIUS), atol=1e-3, rtol=0)


def test_every_noun_of_the_real_shelf_is_seen_from_everywhere(real_shelf):
    cameras = orbit(torch.tensor([0.0, 140.0]), torch.tensor([10.0, -30.0]), size=32)
    for noun in catalogue().nouns:
        seen = ground_truth(Caption(Item(noun)), cameras, on=real_shelf)
        assert (seen.alpha.mean((1, 2, 3)) > 0.015).all(), noun
        assert (seen.alpha[..., 0] == 0).all(), noun  # nothing leaves the frame
        covered = seen.rgb.sum((2, 3)) / seen.alpha.sum((2, 3))
        assert (covered.amax(1) > 0.05).all(), noun


def test_real_models_stack_without_a_gap(real_shelf):
    a, b = place(parse("a pumpkin on top of a barrel"), real_shelf)
    assert a.positions()[:, 1].min() == pytest.approx(b.positions()[:, 1].max(), abs=0.15)
