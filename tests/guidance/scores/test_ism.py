"""Interval score matching against a loop for one view."""

import math

import pytest
import torch
from analytic import PLAIN, ConstantPrior, GaussianPrior, GroupPrior, distil, moment, normal, pattern
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.config import GuidanceOptions, ISMOptions
from splatgen.guidance.distillation import gradient
from splatgen.guidance.inversion import ddim_step
from splatgen.guidance.preferences import NoPreference
from splatgen.guidance.scores import ISM
from splatgen.scene.cameras import turntable

few = settings(deadline=None, max_examples=20)
GUIDED = GuidanceOptions(scale=7.5, clamp=False)


def value(step, options):
    return gradient(step, ISM(options), NoPreference(), None).value


@pytest.mark.parametrize("t", [0.95, 0.5, 0.28, 0.13, 0.08, 0.05])
def test_it_is_its_loop_for_one_view(t):
    """Steps of at most 0.2 without a prompt to s = t - 0.08, one to t, then G = sigma/alpha (e - e_s)."""
    prior, x, camera = GroupPrior(1), normal("x", 1, 3, 6, 6), turntable(1, size=6)
    o = ISMOptions(noise=0.1)
    step = moment(prior, x, t, options=GUIDED, cameras=camera)
    empty, front = prior.embed([""]), prior.embed(["a, front view"])

    def e(y, level, told):
        return prior.predict(y, torch.tensor([level], dtype=torch.float64), told, camera)

    y = x + 0.1 * torch.randn(x.shape, generator=step.rng("noise")).double()
    s = max(t - 0.08, 0.0)
    count = max(math.ceil(s / 0.2 - 1e-6), 1)
    for n in range(count if s > 0 else 0):
        here, there = s * n / count, s * (n + 1) / count
        levels = (torch.tensor([v], dtype=torch.float64) for v in (here, there))
        y = ddim_step(prior, y, e(y, here, empty), *levels)
    e_s = e(y, s, empty)
    alpha, sigma = math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)
    alpha_s, sigma_s = math.cos(math.pi / 2 * s), math.sin(math.pi / 2 * s)
    x_t = alpha * (y - sigma_s * e_s) / alpha_s + sigma * e_s
    e_t = e(x_t, t, empty) + 7.5 * (e(x_t, t, front) - e(x_t, t, empty))
    torch.testing.assert_close(value(step, o), sigma / alpha * (e_t - e_s), rtol=1e-9, atol=1e-9)


def test_every_view_of_a_batch_is_as_if_alone():
    prior, cameras = GroupPrior(1), turntable(4, size=6)
    x, t = normal("x", 4, 3, 6, 6), torch.tensor([0.33, 0.95, 0.05, 0.5], dtype=torch.float64)
    o = ISMOptions(noise=0.0)
    together = value(moment(prior, x, t, cameras=cameras, options=GUIDED), o)
    for b in range(4):
        s = slice(b, b + 1)
        alone = value(moment(prior, x[s], t[s], cameras=cameras[s], options=GUIDED), o)
        torch.testing.assert_close(together[s], alone, rtol=1e-10, atol=1e-10)


@few
@given(st.floats(0.02, 0.98), st.floats(0, 50), st.floats(0.01, 0.3), st.floats(0.05, 1.0))
def test_a_constant_denoiser_gives_nothing(t, scale, interval, length):
    step = moment(ConstantPrior(0.7), normal("x"), t, options=GuidanceOptions(scale=scale, clamp=False))
    found = value(step, ISMOptions(interval=interval, step=length))
    assert found.abs().max() < 1e-10 * max(1.0, scale) / math.cos(math.pi / 2 * t)


@pytest.mark.parametrize(("t", "steps"), [(0.98, 5), (0.68, 3), (0.48, 2), (0.28, 1), (0.1, 1), (0.05, 0)])
def test_images_through_the_denoiser(t, steps):
    """The inversion and its last prediction without a prompt, and two for the direction."""
    prior = GroupPrior(1)
    step = moment(prior, normal("x"), t, options=GUIDED)
    found = gradient(step, ISM(ISMOptions()), NoPreference(), None)
    assert found.model_calls == prior.calls == 2 * (steps + 1 + 2)


def test_candidates_begin_with_noises_of_their_own():
    step = moment(GroupPrior(1), normal("x"), 0.5, options=GUIDED)
    noisy = ISM(ISMOptions(noise=0.1)).noises(step, 3)
    assert noisy.noise.shape == noisy.baseline.shape == (3, 2, 3, 6, 6)
    assert not torch.allclose(noisy.noise[0], noisy.noise[1])
    quiet = ISM(ISMOptions(noise=0.0)).noises(step, 2)
    assert torch.equal(quiet.noise[0], quiet.noise[1])


def test_the_mean_is_where_a_gaussian_rests():
    """The flow from the mean is the mean, and both predictions are 0."""
    prior = GaussianPrior(pattern, spread=0.1)
    step = moment(prior, pattern(turntable(2, size=6)), 0.5, options=PLAIN, negative="a")
    assert value(step, ISMOptions(noise=0.0)).abs().max() < 1e-12


def test_ism_recovers_the_mean_of_an_analytic_prior():
    """The data is N(pattern, 0.1^2), with and without a prompt."""
    prior = GaussianPrior(pattern, spread=0.1)
    error = distil(prior, ISM(ISMOptions(noise=0.0)), steps=150, negative="a")
    print(f"root mean square error {error:.4f}")
    assert error < 0.02
