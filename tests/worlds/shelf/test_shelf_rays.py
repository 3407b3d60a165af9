"""The map of rays says of every pixel what the camera sees there."""

import math

import pytest
import torch

from splatgen.scene.cameras import orbit, viewmats
from splatgen.worlds.shelf.model import seen_from
from splatgen.worlds.shelf.rays import RAYS, ray_map

AZIMUTH, ELEVATION = torch.tensor([0.0, 73.0, 200.0, 311.0]), torch.tensor([0.0, 35.0, -40.0, 85.0])


def test_a_point_on_a_ray_is_seen_in_its_pixel():
    side = 8
    cameras = orbit(AZIMUTH, ELEVATION, size=side)
    found = ray_map(seen_from(AZIMUTH, ELEVATION), side)
    assert found.shape == (4, RAYS, side, side)
    direction, nearest = found[:, 6:9], found[:, 9:12]
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(4, side, side))
    torch.testing.assert_close((direction * nearest).sum(1), torch.zeros(4, side, side), atol=1e-5, rtol=0)
    for away in (-0.5, 0.0, 0.7):  # beyond the point nearest to the origin
        points = (nearest + away * direction).permute(0, 2, 3, 1).reshape(4, -1, 3)
        w2c = viewmats(cameras)
        seen = points @ w2c[:, :3, :3].mT + w2c[:, None, :3, 3]
        pixels = seen @ cameras.K.mT
        pixels = pixels[..., :2] / pixels[..., 2:]
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        centres = torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5
        torch.testing.assert_close(pixels, centres.expand(4, -1, -1), atol=1e-3, rtol=0)


def test_waves_are_those_of_the_place_and_of_the_nearest_point():
    found = ray_map(seen_from(AZIMUTH, ELEVATION).double(), 4)
    right, up, nearest = found[:, 0], found[:, 1], found[:, 9:12]
    assert right[0, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert up[0, :, 0].tolist() == [0.75, 0.25, -0.25, -0.75]
    expected = [f(math.pi * z) for z in (right, up) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(found[:, 2:6], torch.stack(expected, 1))
    expected = [f(k * math.pi * nearest) for k in (1, 2) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(found[:, 12:], torch.cat(expected, 1))


def test_without_a_camera_only_the_place_is_told():
    camera = seen_from(AZIMUTH, ELEVATION)
    told, untold = ray_map(camera, 4), ray_map(torch.zeros_like(camera), 4)
    assert torch.equal(untold[:, :6], told[:, :6])
    assert (untold[:, 6:] == 0).all()


@pytest.mark.parametrize("side", [1, 3])
def test_any_side_has_a_map(side):
    assert ray_map(seen_from(AZIMUTH, ELEVATION), side).isfinite().all()
