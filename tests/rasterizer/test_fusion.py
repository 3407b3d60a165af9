"""A surface out of splats: where they are, closed, in their colours, in no more triangles than asked for."""

import dataclasses

import numpy as np
import pytest
import torch

from splatgen.formats import splat_file
from splatgen.rasterizer.fusion import surface_of
from splatgen.scene.splats import Splats, rgb_to_sh

RED, BLUE = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.9])


def shell(count: int = 10_000, radius: float = 0.6, *, opacity: float = 3.0) -> Splats:
    """A ball of flat splats; its right half is red, its left half blue."""
    g = torch.Generator().manual_seed(0)
    out = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    quats = torch.stack([1 + out[:, 2], -out[:, 1], out[:, 0], torch.zeros(count)], -1)  # takes z to out
    return Splats(
        means=radius * out,
        quats=torch.nn.functional.normalize(quats, dim=-1),
        scales=torch.tensor([0.03, 0.03, 0.003]).log().expand(count, 3).clone(),
        opacities=torch.full((count,), opacity),
        sh=rgb_to_sh(torch.where(out[:, :1] > 0, RED, BLUE))[:, None],
    )


def volume(surface) -> float:
    a, b, c = (surface.vertices[surface.faces[:, i]] for i in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def closed(faces: np.ndarray) -> bool:
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return bool((np.unique(edges, axis=0, return_counts=True)[1] == 2).all())


@pytest.fixture(scope="module")
def ball():
    return surface_of(shell(), grid=48, views=20)


def test_the_surface_is_where_the_splats_are(ball):
    assert closed(ball.faces)
    radii = np.linalg.norm(ball.vertices, axis=1)
    assert abs(radii.mean() - 0.6) < 0.02
    assert radii.std() < 0.01
    assert volume(ball) == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.08)


def test_colours_are_those_of_the_splats(ball):
    right, left = ball.vertices[:, 0] > 0.15, ball.vertices[:, 0] < -0.15
    assert np.abs(ball.colors[right] - RED.numpy()).max() < 0.05
    assert np.abs(ball.colors[left] - BLUE.numpy()).max() < 0.05


def test_soft_splats_give_the_same_surface():
    """Of a haze of translucent splats the front is found, not the depth that light reaches on average."""
    g = torch.Generator().manual_seed(1)
    haze = shell(6000, opacity=-1.5)
    inward = torch.rand(6000, 1, generator=g).pow(1 / 3)
    haze = dataclasses.replace(haze, means=haze.means * inward, scales=torch.full((6000, 3), 0.03).log())
    radii = np.linalg.norm(surface_of(haze, grid=48, views=20).vertices, axis=1)
    assert abs(radii.mean() - 0.6) < 0.03


def test_any_size_and_place_even_far_away(ball):
    file = splat_file.of(shell())
    moved = 100 * file.means + [5e5, 4e6, 7.0]
    far = dataclasses.replace(file, means=moved, scales=file.scales + np.log(100))
    found = surface_of(far.splats(exact=True), grid=48, views=20)
    np.testing.assert_allclose((found.vertices - [5e5, 4e6, 7.0]) / 100, ball.vertices, atol=2e-3)


@pytest.mark.parametrize("most", [500, 2000])
def test_no_more_triangles_than_asked_for(most):
    found = surface_of(shell(), grid=48, views=12, most_faces=most)
    assert 0.4 * most < len(found.faces) <= most
    assert closed(found.faces)


@pytest.mark.parametrize("opacity", [-9.0, None])
def test_what_shows_nothing_solid_is_refused(opacity):
    splats = shell(50).select(torch.arange(0 if opacity is None else 50))
    faint = dataclasses.replace(splats, opacities=torch.full((len(splats),), -6.0))
    with pytest.raises(ValueError, match=r"no splats|nothing solid"):
        surface_of(faint, grid=16, views=6)
