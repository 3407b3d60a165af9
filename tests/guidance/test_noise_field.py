"""One field of noise: standard normal in every view, white, and the same where views see the same."""

import pytest
import torch
from analytic import GroupPrior, moment, normal

from splatgen.config import Config, GuidanceOptions, SplatOptions, ViewOptions
from splatgen.guidance import noise_field
from splatgen.guidance.noise_field import Surface, chosen_surface, consistent, surface
from splatgen.guidance.scores import SDS
from splatgen.guidance.scores.base import gaussian
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.step import advance, load_models
from splatgen.rasterizer import render
from splatgen.scene.cameras import orbit, viewmats
from splatgen.scene.parameters import new_scene
from splatgen.scene.splats import Splats

SHAPE = torch.Size((2, 4, 8, 8))


def plane(views=2, side=32, cell=0.02, field=0.0, shift=0.0):
    """A wall of 2 x 2 that all views look at squarely, the second one moved aside by `shift`."""
    u = (torch.arange(side).double() + 0.5) / side * 2.0 - 1.0
    y, x = torch.meshgrid(u, u, indexing="ij")
    points = torch.stack([x, y, torch.zeros_like(x)], -1).expand(views, -1, -1, -1).clone()
    points[1:, ..., 0] += shift
    seen = torch.ones(views, side, side, dtype=torch.bool)
    return Surface(points=points, seen=seen, cell=cell, field=field)


def many(at, count=30, shape=SHAPE):
    return torch.stack([consistent(at, shape, seed) for seed in range(count)])


def test_numbers_of_cells_are_standard_normal_and_independent():
    keys = torch.arange(100_000)
    a, b = (noise_field.normal(keys, noise_field.mixed(7, 0, c)) for c in (0, 1))
    assert float(a.mean()) == pytest.approx(0, abs=0.02)
    assert float(a.std()) == pytest.approx(1, abs=0.02)
    assert float((a**4).mean()) == pytest.approx(3, abs=0.15)
    assert float((a * b).mean()) == pytest.approx(0, abs=0.02)
    assert float((a[1:] * a[:-1]).mean()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("cell", [0.02, 0.11, 0.3, 5.0])
def test_every_view_is_standard_normal_and_white_whatever_the_cells(cell):
    """Also where cells are larger than pixels: a cell has one owner, others have the screen's noise."""
    found = many(plane(cell=cell), 100)[:, 0].flatten(1)  # [S, C h w]
    assert float(found.mean()) == pytest.approx(0, abs=0.03)
    assert float(found.var()) == pytest.approx(1, abs=0.03)
    together = found.T @ found / len(found)
    apart = together - torch.diag(together.diagonal())
    assert float(apart.square().mean().sqrt()) == pytest.approx(100**-0.5, rel=0.1)


def test_views_that_see_the_same_have_the_same_and_others_their_own():
    same = many(plane())
    assert torch.equal(same[:, 0], same[:, 1])
    moved = many(plane(shift=0.5, cell=2 / 64))  # two of the eight pixels of x to the side
    torch.testing.assert_close(moved[:, 0, ..., 2:], moved[:, 1, ..., :-2])
    far = many(plane(shift=50.0))
    assert float((far[:, 0] * far[:, 1]).mean()) == pytest.approx(0, abs=0.05)


def test_the_background_is_the_screens():
    at = plane()
    nothing = Surface(points=at.points, seen=torch.zeros_like(at.seen), cell=0.02, field=0.0)
    found = consistent(nothing, SHAPE, 3)
    assert torch.equal(found[0], found[1])
    half = at.seen.clone()
    half[:, :, 16:] = False
    part = consistent(Surface(points=at.points, seen=half, cell=0.02, field=0.0), SHAPE, 3)
    assert torch.equal(part[..., 4:], found[..., 4:])
    assert torch.equal(part[..., :4], consistent(at, SHAPE, 3)[..., :4])


def test_a_field_becomes_the_next_one():
    """sqrt(1 - s) n_0 + sqrt(s) n_1 has the same spread all the way."""
    first, quarter, last = (many(plane(field=f)) for f in (0.0, 0.25, 1.0))
    torch.testing.assert_close(quarter, 0.75**0.5 * first + 0.25**0.5 * last)
    assert float((first * last).mean()) == pytest.approx(0, abs=0.05)


def test_pixels_are_where_a_camera_sees_them():
    """A small opaque splat: the point of its pixel is its centre, to the size of a pixel."""
    centre = torch.tensor([0.2, -0.1, 0.3])
    cameras = orbit(torch.tensor([20.0, 140.0]), torch.tensor([10.0, -30.0]), size=64)
    splats = Splats(
        means=centre[None],
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        scales=torch.full((1, 3), 0.05).log(),
        opacities=torch.full((1,), 8.0),
        sh=torch.zeros(1, 1, 3),
    )
    out = render(splats, cameras)
    found = surface(out.depth, out.alpha, cameras, cell=0.03, field=0.0)
    local = (viewmats(cameras) @ torch.cat([centre, torch.ones(1)]))[:, :3]
    pixel = (cameras.K @ local[:, :, None])[..., 0]
    for b in range(2):
        u, v = (pixel[b, :2] / pixel[b, 2]).long().tolist()
        assert bool(found.seen[b, v, u])
        torch.testing.assert_close(found.points[b, v, u], centre, rtol=0, atol=0.03)


def test_scores_take_their_noise_from_it():
    at = moment(GroupPrior(1), normal("x", 2, 3, 8, 8), 0.5)
    assert at.surface is None
    object.__setattr__(at, "surface", plane())
    found = gaussian(at, 3)
    assert found.shape == (3, 2, 3, 8, 8)
    assert torch.equal(found[:, 0], found[:, 1])
    assert not torch.allclose(found[0], found[1])
    assert torch.equal(gaussian(at, 2), found[:2])
    assert torch.equal(SDS().noises(at, 3).noise, found)
    assert not torch.allclose(gaussian(at, 1, "another"), found[:1])


def test_a_run_has_one_where_it_is_asked_for():
    options = GuidanceOptions(noise="world", noise_renewals=2.0)
    config = Config(
        prompt="a red cube",
        prior="toybox-mini",
        reward=(),
        guidance=options,
        steps=4,
        views=ViewOptions(count=2, size=(32,)),
        splats=SplatOptions(count=60),
    )
    scene = new_scene(config, starting_splats(config), "cpu")
    seen = advance(config, load_models(config, "cpu"), scene)
    assert torch.isfinite(seen.loss)
    out = torch.ones(1, 1, 4, 4)
    camera = orbit(torch.zeros(1), torch.zeros(1), size=4)
    assert chosen_surface(GuidanceOptions(), 0.5, out, out, camera) is None
    assert chosen_surface(options, 0.75, out, out, camera).field == 1.5
