"""Packing loses little, normalising fills the ball, welding changes no picture, paint is what is painted."""

import colorsys

import boxes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splatgen.worlds.shelf import meshes
from splatgen.worlds.shelf.colours import COLORS, hsv, paint_mask, recolour
from splatgen.worlds.shelf.meshes import Mesh, bake, normalised, pack, unpack, welded
from splatgen.worlds.toybox.world import shade

RED = (0.8, 0.1, 0.1)


def triangles(mesh: Mesh) -> np.ndarray:
    """Corners with their colours, in an order of their own."""
    corners = np.concatenate([mesh.positions[mesh.faces], mesh.colors[mesh.faces]], -1)
    return np.array(sorted(corners.round(4).reshape(len(mesh.faces), -1).tolist()))


@given(st.tuples(*[st.floats(0.1, 3.0)] * 3), st.floats(-180, 180))
def test_a_normalised_mesh_fills_the_ball_whatever_its_size(size, yaw):
    found = normalised(boxes.box(size, RED), yaw)
    reach = np.linalg.norm(found.positions, axis=1).max()
    assert reach == pytest.approx(meshes.RADIUS, abs=1e-5)
    low, high = meshes.bounds(found.positions)
    np.testing.assert_allclose(low, -high, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.normals, axis=1), 1.0, atol=1e-5)


def test_yaw_turns_the_front_to_where_it_says():
    mesh = boxes.box((1, 1, 1), RED, front=0.5)
    front = np.ptp(mesh.colors, axis=1) == 0
    turned = normalised(mesh, 90.0)
    np.testing.assert_allclose(turned.normals[front], [[1, 0, 0]] * 4, atol=1e-6)


@given(st.tuples(*[st.floats(0.2, 2.0)] * 3))
def test_packing_keeps_a_mesh_to_the_packed_step(size):
    mesh = normalised(boxes.box(size, RED))
    back = unpack(pack(mesh))
    np.testing.assert_allclose(back.positions, mesh.positions, atol=0.51 / 32_000)
    np.testing.assert_allclose(back.normals, mesh.normals, atol=1e-2)
    np.testing.assert_allclose(back.colors, mesh.colors, atol=0.51 / 255)
    assert np.array_equal(back.faces, mesh.faces)
    again = pack(back)
    assert all(np.array_equal(again[name], value) for name, value in pack(back).items())


@pytest.mark.parametrize(
    "change",
    [
        {"pos": np.zeros((3, 2), np.int16)},
        {"nrm": np.zeros((5, 3), np.int8)},
        {"tri": np.zeros((0, 3), np.uint16)},
        {"tri": np.full((1, 3), 99, np.uint16)},
        {"rgb": np.zeros(3, np.uint8)},
    ],
)
def test_arrays_that_are_no_mesh_are_refused(change):
    parts = {**pack(normalised(boxes.box((1, 1, 1), RED))), **change}
    with pytest.raises(ValueError, match="pack the model again"):
        unpack(parts)


def test_welding_merges_what_is_alike_and_drops_what_is_flat():
    mesh = boxes.box((1, 2, 3), RED)
    loose = mesh.faces.reshape(-1)
    soup = Mesh(
        positions=np.concatenate([mesh.positions[loose], [[9, 9, 9]]]).astype(np.float32),
        normals=np.concatenate([mesh.normals[loose], [[0, 1, 0]]]).astype(np.float32),
        colors=np.concatenate([mesh.colors[loose], [[0, 0, 0]]]).astype(np.float32),
        faces=np.concatenate([np.arange(len(loose)).reshape(-1, 3), [[0, 0, 1]]]).astype(np.int32),
    )
    found = welded(soup)
    assert len(found.positions) == len(mesh.positions)
    np.testing.assert_allclose(triangles(found), triangles(mesh))


def test_the_light_is_the_toyboxs():
    mesh = boxes.box((1, 1, 1), RED)
    expected = torch.from_numpy(mesh.colors) * shade(torch.from_numpy(mesh.normals))[:, None]
    np.testing.assert_allclose(bake(mesh).colors, expected.clamp(0, 1).numpy(), atol=1e-6)


@given(st.tuples(*[st.floats(0, 1, width=32)] * 3))
def test_hue_saturation_and_value_are_the_usual_ones(rgb):
    hue, saturation, value = (float(x[0]) for x in hsv(np.array([rgb], np.float32)))
    h, s, v = colorsys.rgb_to_hsv(*rgb)
    assert value == pytest.approx(v)
    if v > 1e-3:
        assert saturation == pytest.approx(s, abs=1e-4)
    if s > 0.01 and v > 0.01:
        assert abs((hue / 360 - h + 0.5) % 1 - 0.5) < 1e-3


def test_paint_is_the_strong_colour_and_only_it_changes():
    mesh = boxes.box((1, 1, 1), (0.1, 0.2, 0.8), front=0.5)
    mask = paint_mask(mesh)
    grey = np.ptp(mesh.colors, axis=1) == 0
    assert np.array_equal(mask, ~grey)
    found = recolour(mesh, "red")
    np.testing.assert_allclose(found.colors[grey], mesh.colors[grey])
    np.testing.assert_allclose(found.colors[~grey], [COLORS["red"]] * 20, atol=1e-5)


def test_without_any_strong_colour_all_of_it_is_paint():
    mesh = boxes.box((1, 1, 1), (0.5, 0.5, 0.5), front=0.5)
    assert paint_mask(mesh).all()


def test_lighter_places_stay_lighter():
    mesh = boxes.box((1, 1, 1), (0.1, 0.2, 0.8))
    colors = mesh.colors.copy()
    colors[:4] *= 0.7
    darker = Mesh(positions=mesh.positions, normals=mesh.normals, colors=colors, faces=mesh.faces)
    found = recolour(darker, "yellow").colors
    assert found[:4].mean() < 0.85 * found[4:8].mean()
