"""Penalties against their formulas, and their gradients against finite differences."""

import math
from dataclasses import replace

import pytest
import torch

from splatgen.config import RegulariseOptions
from splatgen.runs.rng import rng
from splatgen.scene import penalties

OFF = RegulariseOptions(radius=0, scale=0, aspect=0, opacity=0)


def params(count=20):
    g = rng(0, 0, "params")
    return {
        "means": torch.randn(count, 3, generator=g).double(),
        "scales": torch.randn(count, 3, generator=g).double() - 2,
        "opacities": torch.randn(count, generator=g).double(),
    }


def test_centres_beyond_the_radius_pay_the_squared_distance():
    means = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 1.5], [3, 4, 0]], dtype=torch.float64)
    assert penalties.outside(means, 1.0) == pytest.approx((0.5**2 + 4**2) / 4)


def test_the_middle_of_the_ball_has_a_finite_gradient():
    means = torch.zeros(3, 3, requires_grad=True)
    penalties.outside(means, 1.0).backward()
    assert (means.grad == 0).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize(
    ("axes", "excess"),
    [
        ((0.1, 0.1, 0.1), 0),
        ((0.001, 0.1, 0.1), 0),  # a disc is no needle
        ((0.1, 0.1, 0.39), 0),
        ((0.1, 0.1, 0.8), math.log(2)),
        ((0.01, 0.1, 0.8), math.log(2)),  # compared with the middle axis
    ],
)
def test_needles_pay_the_logarithm_of_their_excess(axes, excess, order):
    scales = torch.tensor([[axes[n] for n in order], [0.1, 0.1, 0.1]], dtype=torch.float64).log()
    assert penalties.needle(scales, 4.0) == pytest.approx(excess / 2, rel=1e-12, abs=1e-12)


def test_the_penalty_is_the_weighted_sum():
    p = params()
    found = penalties.penalty(
        p, RegulariseOptions(radius=2, max_radius=0.7, scale=3, aspect=5, max_aspect=2, opacity=7)
    )
    excess = (p["means"].norm(dim=-1) - 0.7).clamp_min(0)
    ordered = p["scales"].exp().sort(-1).values
    ratio = (ordered[:, 2] / ordered[:, 1] / 2).log().clamp_min(0)
    expected = (
        2 * (excess**2).mean()
        + 3 * p["scales"].exp().mean()
        + 5 * ratio.mean()
        + 7 * (1 / (1 + (-p["opacities"]).exp())).mean()
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["radius", "scale", "aspect", "opacity"])
def test_gradients_are_those_of_finite_differences(name):
    options = replace(OFF, **{name: 1.5}, max_radius=0.6, max_aspect=1.5)
    p = {key: value.requires_grad_() for key, value in params(6).items()}
    keys = list(p)
    assert torch.autograd.gradcheck(
        lambda *v: penalties.penalty(dict(zip(keys, v, strict=True)), options), tuple(p.values())
    )


def test_terms_of_weight_0_are_not_looked_at():
    p = params() | {"scales": torch.full((20, 3), math.nan), "opacities": torch.full((20,), math.nan)}
    assert penalties.penalty(p, replace(OFF, radius=1)).isfinite()
    assert penalties.penalty(p, OFF) == 0
