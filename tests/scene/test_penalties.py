"""Penalties against their formulas, and their gradients against finite differences."""

import math
from dataclasses import replace

import pytest
import torch

from splatgen.config import Config, LearningOptions, RegulariseOptions, SplatOptions
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.seen_penalties import add, apart
from splatgen.rasterizer import Render
from splatgen.runs.rng import rng
from splatgen.scene import penalties
from splatgen.scene.cameras import orbit
from splatgen.scene.parameters import left, new_scene, rates, update

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


# threestudio-3dgs's and LucidDreamer's


def test_the_sums_of_threestudio_3dgs():
    """Mean |x|; sum of |s| alpha with s held; sum of s."""
    p = {name: value.requires_grad_() for name, value in params().items()}
    size, alpha = p["scales"].exp(), p["opacities"].sigmoid()
    for option, expected in (
        ("position", p["means"].norm(dim=-1).mean()),
        ("mass", (size.norm(dim=-1) * alpha).sum()),
        ("axes", size.sum()),
    ):
        found = penalties.penalty(p, replace(OFF, **{option: 2.0}))
        assert float(found) == pytest.approx(2.0 * float(expected))
    penalties.penalty(p, replace(OFF, mass=1.0)).backward()
    assert p["scales"].grad is None
    expected = size.norm(dim=-1) * alpha * (1 - alpha)
    torch.testing.assert_close(p["opacities"].grad, expected.detach())


def test_total_variation_is_the_published_sum():
    """2 (sum of squared row differences / their count + columns' / theirs) / batch."""
    x = torch.randn(2, 3, 5, 7, generator=rng(0, 0, "x")).double()
    rows, columns = (x[:, :, 1:] - x[:, :, :-1]) ** 2, (x[..., 1:] - x[..., :-1]) ** 2
    expected = 2 * (rows.sum() / (3 * 4 * 7) + columns.sum() / (3 * 5 * 6)) / 2
    assert float(penalties.variation(x)) == pytest.approx(float(expected))


def test_normals_of_a_tilted_plane_are_the_planes():
    """z = d / (n . r) for the ray r of a pixel: every normal is n, up to its sign."""
    n = torch.tensor([0.3, -0.2, 0.93], dtype=torch.float64)
    n = n / n.norm()
    K = orbit(torch.zeros(1), torch.zeros(1), size=(9, 7)).K.double()
    u, v = (torch.arange(k).double() + 0.5 for k in (9, 7))
    x, y = torch.meshgrid((u - K[0, 0, 2]) / K[0, 0, 0], (v - K[0, 1, 2]) / K[0, 1, 1], indexing="xy")
    depth = 2.0 / (n[0] * x + n[1] * y + n[2])
    found = penalties.normals(depth[None, None], K)
    assert found.shape == (1, 3, 6, 8)
    torch.testing.assert_close(found, n.view(1, 3, 1, 1).expand(found.shape), rtol=1e-9, atol=1e-9)
    assert float(penalties.variation(found)) == pytest.approx(0.0, abs=1e-18)
    assert torch.isfinite(penalties.normals(torch.zeros(1, 1, 4, 4), K.float())).all()


def test_what_is_seen_is_penalised_apart_and_densification_sees_none_of_it():
    means = torch.randn(3, 3, generator=rng(0, 0, "m")).double().requires_grad_()
    points = means[:, :2] * 2.0
    points.retain_grad()
    picture = torch.sin(points.sum() * torch.arange(48).double().view(1, 3, 4, 4))
    out = Render(rgb=picture, alpha=picture[:, :1], depth=picture[:, :1], info={"means2d": points})
    camera = orbit(torch.zeros(1), torch.zeros(1), size=4)
    found = apart(replace(OFF, tv=3.0, depth_tv=2.0), {"means": means}, out, camera)
    assert points.grad is None
    total = 3.0 * penalties.variation(picture) + 2.0 * penalties.variation(picture[:, :1])
    (expected,) = torch.autograd.grad(total, [means], retain_graph=True)
    torch.testing.assert_close(found["means"], expected)
    points.grad = None
    picture.sum().backward()
    alone, guided = means.grad.clone(), points.grad.clone()
    add({"means": means}, found)
    torch.testing.assert_close(means.grad, alone + expected)
    assert torch.equal(points.grad, guided)
    assert apart(OFF, {"means": means}, out, camera) == {}


# Rates


@pytest.mark.parametrize(("step", "rate"), [(0, 0.01), (150, 0.01 * 0.02**0.5), (300, 0.0002), (500, 0.0002)])
def test_a_rate_falls_as_dreamgaussians_positions_do(step, rate):
    """exp of the line from log 0.001 to log 0.00002 over 300 of 500 steps, times 10; the others stay."""
    options = LearningOptions(means=0.01, scales=0.005, sh=0.01, final=1.0, means_fall=(0.0, 0.6, 0.02))
    found = rates(options, step / 500)
    assert found["means"] == pytest.approx(rate)
    assert (found["scales"], found["sh0"], found["shN"]) == (0.005, 0.01, 0.01 / 20)


def test_without_a_fall_of_its_own_a_rate_has_the_common_one():
    options = LearningOptions(means=1.0, sh=1.0, decay_from=0.5, final=0.01, sh_fall=(0.25, 0.5, 0.5))
    assert rates(options, 0.75)["means"] == pytest.approx(0.1)
    assert [rates(options, f)["sh0"] for f in (0.0, 0.25, 0.375, 0.5, 1.0)] == pytest.approx(
        [1, 1, 0.5**0.5, 0.5, 0.5]
    )
    assert left((0.5, 0.5, 0.1), 0.5) == 1.0
    assert left((0.5, 0.5, 0.1), 0.51) == pytest.approx(0.1)


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.9, 0.999)])
def test_adam_has_the_betas_of_the_options(betas):
    """After one step its averages are (1 - beta) g and (1 - beta) g^2; published hosts have 0.9 and 0.999."""
    config = Config(prompt="a", splats=SplatOptions(count=5), lr=LearningOptions(betas=betas))
    scene = new_scene(config, starting_splats(config), "cpu")
    for p in scene.params.values():
        p.grad = torch.full_like(p, 3.0)
    update(config, scene, torch.tensor(True))
    for name, p in scene.params.items():
        state = scene.optimizers[name].state[p]
        torch.testing.assert_close(state["exp_avg"], torch.full_like(p, 3.0 * (1 - betas[0])).detach())
        torch.testing.assert_close(state["exp_avg_sq"], torch.full_like(p, 9.0 * (1 - betas[1])).detach())
