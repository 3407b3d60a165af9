"""The parametrisation of the cloud: colours, the ball of the first step, shapes that are checked."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.runs.rng import rng
from splatgen.scene import splats


def ball(**options):
    return splats.random_ball(
        rng(0, 0, "splats"), **{"count": 500, "radius": 0.6, "scale": 0.07, "opacity": 0.25, **options}
    )


def test_the_colour_constant_is_the_constant_harmonic():
    assert pytest.approx(0.5 / math.sqrt(math.pi), rel=1e-15) == splats.SH_C0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-2, 3), min_size=3, max_size=3))
def test_colours_survive_the_way_to_coefficients_and_back(rgb):
    color = torch.tensor(rgb, dtype=torch.float64)
    torch.testing.assert_close(splats.sh_to_rgb(splats.rgb_to_sh(color)), color, atol=1e-12, rtol=0)


def test_the_ball_is_filled_evenly_with_equal_grey_splats():
    cloud = ball(count=20_000)
    splats.check(cloud)
    radius = cloud.means.norm(dim=-1)
    assert radius.max() <= 0.6 + 1e-6
    for share in (0.5, 0.8):  # P(radius < share R) = share^3
        assert (radius < share * 0.6).float().mean() == pytest.approx(share**3, abs=0.015)
    assert cloud.means.mean(0).abs().max() < 0.01
    torch.testing.assert_close(cloud.scales.exp(), torch.full((20_000, 3), 0.07))
    torch.testing.assert_close(cloud.opacities.sigmoid(), torch.full((20_000,), 0.25))
    assert (cloud.quats == torch.tensor([1.0, 0, 0, 0])).all()
    assert (splats.sh_to_rgb(cloud.sh[:, 0]) - 0.5).abs().max() <= 0.05 + 1e-6


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_higher_harmonics_start_at_zero(degree):
    cloud = ball(count=5, sh_degree=degree)
    splats.check(cloud)
    assert cloud.sh_degree == degree
    assert cloud.sh.shape == (5, (degree + 1) ** 2, 3)
    assert (cloud.sh[:, 1:] == 0).all()


def test_the_same_generator_gives_the_same_ball():
    for a, b in zip(ball().tensors().values(), ball().tensors().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quats": torch.zeros(5, 3)}, r"splats.quats has shape \(5, 3\), expected \(5, 4\)"),
        ({"opacities": torch.zeros(5, 1)}, r"splats.opacities has shape \(5, 1\), expected \(5,\)"),
        ({"scales": torch.zeros(4, 3)}, r"splats.scales has shape \(4, 3\), expected \(5, 3\)"),
        ({"sh": torch.zeros(5, 2, 3)}, "2 coefficients, expected 1, 4, 9 or 16"),
        ({"sh": torch.zeros(5, 3)}, "splats.sh has shape"),
    ],
)
def test_shapes_that_disagree_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        splats.check(replace(ball(count=5), **change))


def test_select_and_concatenate_undo_each_other():
    cloud = ball(count=9, sh_degree=1)
    mask = torch.arange(9) < 4
    again = splats.concatenate([cloud.select(mask), cloud.select(~mask)])
    assert len(cloud.select(torch.tensor([2, 2]))) == 2
    for name, value in cloud.tensors().items():
        assert torch.equal(again.tensors()[name], value)


def test_detach_cuts_the_graph():
    cloud = replace(ball(count=2), means=torch.zeros(2, 3, requires_grad=True))
    assert not cloud.detach().means.requires_grad
    assert list(cloud.to("cpu").tensors()) == ["means", "quats", "scales", "opacities", "sh"]
