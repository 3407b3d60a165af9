"""Cameras between us and viser."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from splatgen_viewer.poses import FOV, first_position, pose, quaternion, reach_of, rotation, view_request
from viser.transforms import SO3

from splatgen.scene.cameras import orbit

AZIMUTHS, ELEVATIONS = (0.0, 90.0, -135.0, 180.0), (0.0, 20.0, -60.0)
unit = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1)


def seen_by(wxyz, position, width=120, height=90, fov=1.0):
    return SimpleNamespace(
        wxyz=np.array(wxyz), position=np.array(position), fov=fov, image_width=width, image_height=height
    )


@pytest.mark.parametrize("azimuth", AZIMUTHS)
@pytest.mark.parametrize("elevation", ELEVATIONS)
def test_our_cameras_come_back_from_viser_as_they_were(azimuth, elevation):
    c2w = orbit(torch.tensor([azimuth]), torch.tensor([elevation]), size=8).c2w[0].numpy()
    wxyz, position = pose(c2w)
    np.testing.assert_allclose(view_request(seen_by(wxyz, position)).c2w, c2w, atol=1e-6)


@pytest.mark.parametrize("azimuth", AZIMUTHS)
def test_viser_looks_where_our_camera_looks_and_its_down_is_our_down(azimuth):
    c2w = orbit(torch.tensor([azimuth]), torch.tensor([20.0]), size=8).c2w[0].numpy()
    wxyz, position = pose(c2w)
    theirs = SO3(wxyz).as_matrix()  # x right, y down, z forward
    np.testing.assert_allclose(theirs[:, 2], -position / np.linalg.norm(position), atol=1e-6)
    np.testing.assert_allclose(theirs[:, 1], -c2w[:3, 1], atol=1e-6)
    np.testing.assert_allclose(theirs[:, 0], c2w[:3, 0], atol=1e-6)


def test_a_camera_in_front_is_the_one_at_azimuth_0():
    expected = orbit(torch.tensor([0.0]), torch.tensor([0.0]), size=8).c2w[0].numpy()
    found = view_request(
        seen_by((0.0, 1.0, 0.0, 0.0), expected[:3, 3])
    )  # turned half around x: looks along -z
    np.testing.assert_allclose(found.c2w, expected, atol=1e-6)


@given(unit)
def test_quaternions_and_matrices_are_those_of_viser(wxyz):
    expected = SO3(np.array(wxyz) / np.linalg.norm(wxyz)).as_matrix()
    np.testing.assert_allclose(rotation(wxyz), expected, atol=1e-9)
    np.testing.assert_allclose(rotation(quaternion(expected)), expected, atol=1e-7)
    assert quaternion(expected)[0] >= 0


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(120, 90, (120, 90)), (1280, 640, (640, 320)), (1, 5000, (1, 640)), (0, 0, (1, 1))],
)
def test_pictures_are_of_the_pages_shape_and_never_too_large(width, height, expected):
    found = view_request(seen_by((0, 1, 0, 0), (0, 0, 3), width, height, fov=math.radians(40)))
    assert (found.width, found.height) == expected
    assert found.fov == pytest.approx(40.0)


@pytest.mark.parametrize("reach", [0.01, 1.0, 30.0])
def test_the_first_view_is_from_the_front_and_holds_what_it_should_reach(reach):
    x, y, z = first_position(reach)
    assert x == 0
    assert 0 < y < z
    assert math.hypot(y, z) * math.tan(math.radians(FOV / 2)) == pytest.approx(reach)


def test_reach_leaves_strays_out_and_stays_usable_for_points_and_nothing():
    sphere = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    stray = np.concatenate([sphere, np.full((5, 3), 100.0, np.float32)])
    assert reach_of(stray) == pytest.approx(reach_of(sphere), rel=0.01)
    assert 1.1 < reach_of(sphere) < 2.0
    assert reach_of(np.zeros((3, 3), np.float32)) > 0
    assert reach_of(np.zeros((0, 3), np.float32)) > 0
