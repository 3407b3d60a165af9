"""Gaussian noise: SDS, and CSD, which needs none of it."""

import pytest
import torch
from analytic import GaussianPrior, GroupPrior, distil, moment, normal, pattern

from splatgen.config import GuidanceOptions
from splatgen.guidance.denoiser import cfg
from splatgen.guidance.distillation import gradient, weight
from splatgen.guidance.preferences import NoPreference
from splatgen.guidance.scores import CSD, SDS
from splatgen.guidance.scores.base import Noised, gaussian


def options(**change):
    return GuidanceOptions(**{"scale": 3.0, "clamp": False, **change})


def noises(x, count=1, **more):
    return SDS().noises(moment(GroupPrior(1), x, 0.5, **more), count).noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_is_standard_normal_like_x(dtype):
    x = torch.full((8, 3, 32, 32), 7.0, dtype=dtype)
    noise = noises(x)
    assert noise.shape == (1, *x.shape)
    assert noise.dtype == dtype
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert (noise**4).mean() == pytest.approx(3, abs=0.25)


def test_the_noise_depends_on_seed_and_step_and_not_on_x():
    x = normal("x")
    assert torch.equal(noises(x), noises(x + 1))
    assert not torch.equal(noises(x), noises(x, step=1))
    assert not torch.equal(noises(x), noises(x, seed=1))


def test_candidates_differ_and_the_first_are_the_same_whatever_the_count():
    x = normal("x")
    four = noises(x, 4)
    assert torch.equal(four[:2], noises(x, 2))
    assert all(not torch.equal(four[0], four[k]) for k in range(1, 4))
    assert not torch.equal(four[0, 0], four[0, 1])  # nor do two views share theirs


def test_noises_for_different_purposes_differ():
    step = moment(GroupPrior(1), normal("x"), 0.5)
    assert not torch.equal(gaussian(step, 1), gaussian(step, 1, "another"))


def test_the_kept_candidates_bring_their_baselines():
    noised = Noised(noise=normal("n", 3, 2, 3, 6, 6), baseline=normal("b", 3, 2, 3, 6, 6))
    found = noised.gather(torch.tensor([[2, 1]]))
    assert torch.equal(found.noise[0, 0], noised.noise[2, 0])
    assert torch.equal(found.noise[0, 1], noised.noise[1, 1])
    assert torch.equal(found.baseline[0, 1], noised.baseline[1, 1])
    assert Noised(noise=noised.noise).gather(torch.tensor([[0, 0]])).baseline is None


def test_sds_is_its_formula():
    """G = w(t) (e_n + scale (e_y - e_n) - n)."""
    prior, x = GroupPrior(1), normal("x")
    step = moment(prior, x, 0.5, options=options(weighting="sds", view_prompts="none"))
    found = gradient(step, SDS(), NoPreference(), None).value
    n = noises(x)[0]
    alpha, sigma = step.amplitudes()
    e_y, e_n = (
        prior.predict(alpha * x + sigma * n, step.t, prior.embed([p] * 2), step.cameras) for p in ("a", "")
    )
    torch.testing.assert_close(found, sigma**2 * (cfg(e_y, e_n, 3.0) - n), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1.5, 7.5, 100.0])
@pytest.mark.parametrize("weighting", ["sds", "uniform", "sigma"])
def test_csd_is_what_guidance_adds(scale, weighting):
    """G = w(t) (scale - 1) (e_y - e_n)."""
    prior, x = GroupPrior(1), normal("x")
    step = moment(prior, x, 0.5, options=options(scale=scale, weighting=weighting))
    found = gradient(step, CSD(), NoPreference(), None).value
    x_t = step.noised(noises(x))
    e_y, e_n = (step.guided(x_t, scale=w).eps[0] for w in (1.0, 0.0))
    expected = weight(weighting, *step.amplitudes()) * (scale - 1) * (e_y - e_n)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("score", [SDS(), CSD()])
@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
def test_two_images_a_view_go_through_the_denoiser(score, prediction):
    prior = GaussianPrior(pattern, spread=0.3, prediction=prediction)
    found = gradient(moment(prior, normal("x"), 0.5, options=options()), score, NoPreference(), None)
    assert found.model_calls == prior.calls == 2 * 2


def test_with_perp_neg_four_images_a_view_do():
    prior = GroupPrior(1)
    step = moment(prior, normal("x"), 0.5, options=options(view_prompts="blend", perp_neg=True))
    assert gradient(step, SDS(), NoPreference(), None).model_calls == prior.calls == 4 * 2


@pytest.mark.parametrize("score", [SDS(), CSD()])
def test_nothing_is_learned(score):
    assert score.learn(moment(GroupPrior(1), normal("x"), 0.5)) == {}
    assert score.state_dict() == {}
    score.load_state_dict({})
    with pytest.raises(ValueError, match="what another score learned"):
        score.load_state_dict({"weights": {}})


def test_sds_recovers_the_mean_of_an_analytic_prior():
    """The data is N(pattern, 0.1^2)."""
    error = distil(GaussianPrior(pattern, spread=0.1), SDS(), steps=200)
    print(f"root mean square error {error:.4f}")
    assert error < 0.03
