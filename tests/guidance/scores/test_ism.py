"""Interval score matching against a loop for one view."""

import math

import pytest
import torch
from analytic import PLAIN, ConstantPrior, GaussianPrior, GroupPrior, distil, moment, normal, pattern
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.config import GuidanceOptions, ISMOptions
from splatgen.guidance.distillation import gradient
from splatgen.guidance.preferences import NoPreference
from splatgen.guidance.scores import ISM
from splatgen.scene.cameras import turntable

few = settings(deadline=None, max_examples=20)
GUIDED = GuidanceOptions(scale=7.5, clamp=False)


def value(step, options):
    return gradient(step, ISM(options), NoPreference(), None).value


@pytest.mark.parametrize("t", [0.95, 0.5, 0.28, 0.13, 0.08, 0.05])
@pytest.mark.parametrize("negative", ["", "blurry"])
def test_it_is_its_loop_for_one_view(t, negative):
    """LucidDreamer's: from timestep 1 in steps of exactly 200 and a remainder to s = t - 80, and one to t.

    The start has noise of that level, with an offset of 0.1 a channel; both e_0 are of the empty prompt, and
    the negative one is guidance's alone.
    """
    prior, x, camera = GroupPrior(1), normal("x", 1, 3, 6, 6), turntable(1, size=6)
    step = moment(prior, x, t, options=GUIDED, cameras=camera, negative=negative)
    empty, front = prior.embed([""]), prior.embed(["a, front view"])

    def e(y, level, told):
        return prior.predict(y, torch.tensor([level], dtype=torch.float64), told, camera)

    def amplitude(level):
        return math.cos(math.pi / 2 * level), math.sin(math.pi / 2 * level)

    n = torch.randn(x.shape, generator=step.rng("noise")).double()
    offset = torch.randn(1, 3, 1, 1, generator=step.rng("offset")).double()
    here, s = 0.001, max(t - 0.08, 0.001)
    y = amplitude(here)[0] * x + amplitude(here)[1] * (n + 0.1 * offset)
    while here < s - 1e-9:
        there = min(here + 0.2, s)
        (a, b), (c, d), found = amplitude(here), amplitude(there), e(y, here, empty)
        y, here = c * (y - b * found) / a + d * found, there
    e_s = e(y, s, empty)
    (a, b), (alpha, sigma) = amplitude(s), amplitude(t)
    x_t = alpha * (y - b * e_s) / a + sigma * e_s
    e_n = e(x_t, t, prior.embed([negative]))
    e_t = e_n + 7.5 * (e(x_t, t, front) - e_n)
    torch.testing.assert_close(value(step, ISMOptions()), sigma / alpha * (e_t - e_s), rtol=1e-9, atol=1e-9)


def test_the_interval_falls_over_the_warm_up():
    """LucidDreamer: 100 to 80 of 1000 over the first 1,500 of 5,000 steps."""
    score = ISM(ISMOptions(interval_start=0.1, warmup=1500 / 5000))
    found = [score.interval(step / 5000) for step in (0, 750, 1500, 4000)]
    assert found == pytest.approx([0.1, 0.09, 0.08, 0.08])
    assert ISM(ISMOptions()).interval(0.0) == 0.08


def test_every_view_of_a_batch_is_as_if_alone():
    prior, cameras = GroupPrior(1), turntable(4, size=6)
    x, t = normal("x", 4, 3, 6, 6), torch.tensor([0.33, 0.95, 0.05, 0.5], dtype=torch.float64)
    o = ISMOptions(start=0.0)
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
    noisy = ISM(ISMOptions()).noises(step, 3)
    assert noisy.noise.shape == noisy.baseline.shape == (3, 2, 3, 6, 6)
    assert not torch.allclose(noisy.noise[0], noisy.noise[1])
    quiet = ISM(ISMOptions(start=0.0)).noises(step, 2)
    assert torch.equal(quiet.noise[0], quiet.noise[1])


class Told(GaussianPrior):
    """Knows its mean without a prompt, too."""

    def embed(self, prompts):
        return {"known": torch.ones(len(prompts), dtype=torch.float64)}


def test_the_mean_is_where_a_gaussian_rests():
    """The flow from the mean is the mean, and both predictions are 0."""
    step = moment(Told(pattern, spread=0.1), pattern(turntable(2, size=6)), 0.5, options=PLAIN)
    assert value(step, ISMOptions(start=0.0)).abs().max() < 1e-12


def test_ism_recovers_the_mean_of_an_analytic_prior():
    """The data is N(pattern, 0.1^2), with and without a prompt."""
    error = distil(Told(pattern, spread=0.1), ISM(ISMOptions(start=0.0)), steps=150)
    print(f"root mean square error {error:.4f}")
    assert error < 0.02
