"""Score distillation against its formulas, in float64 and on priors that are known in closed form."""

import math

import pytest
import torch
from analytic import (
    PLAIN,
    GaussianAdapter,
    GaussianPrior,
    GroupPrior,
    expected_direction,
    moment,
    normal,
    pattern,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.config import GuidanceOptions, ISMOptions, PriorOptions, SDIOptions, VSDOptions
from splatgen.guidance import distillation
from splatgen.guidance.preferences import Choice, NoPreference, Preference
from splatgen.guidance.scores import CSD, ISM, SDI, SDS, VSD
from splatgen.guidance.scores.base import Noised
from splatgen.models.budget import LoadOptions
from splatgen.priors import load_prior
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable

few = settings(deadline=None, max_examples=25)
times = st.floats(0.02, 0.98)
weightings = st.sampled_from(["sds", "uniform", "sigma", "fantasia3d"])


def options(**change):
    return GuidanceOptions(**{"scale": 1.0, "clamp": False, **change})


def direction(prior, x, t, given_options=PLAIN, score=None, **more):
    step = moment(prior, x, t, options=given_options, **more)
    return distillation.gradient(step, score or SDS(), NoPreference(), None)


class Given(SDS):
    """SDS with a noise [1, B, C, h, w] that is told."""

    def __init__(self, noise):
        self.noise = noise

    def noises(self, moment, count):
        return Noised(noise=self.noise)


# The direction


@few
@given(times, weightings)
def test_a_denoiser_that_returns_the_added_noise_gives_nothing(t, weighting):
    """Data that is exactly x itself: eps = (x_t - alpha x) / sigma = n."""
    x = pattern(turntable(2, size=6))
    found = direction(GaussianPrior(pattern), x, t, options(weighting=weighting))
    assert found.value.abs().max() < 1e-10
    torch.testing.assert_close(found.x0[0], x, rtol=0, atol=1e-12)


@few
@given(times, weightings)
def test_a_point_distribution_gives_its_closed_form(t, weighting):
    """Spread 0: G = w(t) alpha / sigma (x - mean), whatever the noise."""
    prior, x = GaussianPrior(pattern), normal("x")
    alpha, sigma = prior.alpha_sigma(torch.full((2,), t, dtype=torch.float64))
    expected = (
        distillation.weight(weighting, alpha, sigma) * alpha / sigma * (x - pattern(turntable(2, size=6)))
    )
    found = direction(prior, x, t, options(weighting=weighting))
    torch.testing.assert_close(found.value, expected, rtol=1e-10, atol=1e-10)


def test_a_spread_distribution_gives_its_closed_form_on_average():
    prior, x, t, draws = GaussianPrior(pattern, spread=0.4), normal("x"), 0.4, 400
    mean = sum(direction(prior, x, t, step=n).value for n in range(draws)) / draws
    alpha, sigma = prior.alpha_sigma(torch.full((2,), t, dtype=torch.float64))
    expected = expected_direction(x, pattern(turntable(2, size=6)), alpha, sigma, 0.4)
    noise_left = float((alpha**2 * 0.4**2 / (alpha**2 * 0.4**2 + sigma**2)).max()) / math.sqrt(draws)
    error = (mean - expected) / noise_left  # standard normal
    assert error.abs().max() < 5
    assert error.std() == pytest.approx(1, abs=0.15)


@few
@given(times, st.sampled_from([0.0, 1.0, 50.0]))
def test_with_sigma_the_direction_is_the_way_to_the_estimate(t, scale):
    """w = sigma / alpha: G = x - x0, so one step of size 1 makes the render its own estimate."""
    x = normal("x")
    found = direction(GroupPrior(2), x, t, options(scale=scale, weighting="sigma"))
    tolerance = 1e-11 * max(scale, 1.0) / math.cos(math.pi / 2 * t)
    torch.testing.assert_close(found.value, x - found.x0[0], rtol=0, atol=tolerance)


def test_each_score_has_its_own_weight_unless_told():
    prior, x, t = GroupPrior(1), normal("x"), 0.6
    alpha, sigma = prior.alpha_sigma(torch.full((2,), t, dtype=torch.float64))
    for score, own in ((SDS(), "uniform"), (SDI(SDIOptions()), "sigma")):
        plain = direction(prior, x, t, options(weighting="uniform"), score).value
        for weighting in ("auto", "sds"):
            w = distillation.weight(own if weighting == "auto" else weighting, alpha, sigma)
            found = direction(prior, x, t, options(weighting=weighting), score).value
            torch.testing.assert_close(found, w * plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_permuting_the_views_of_a_group_with_their_cameras_permutes_the_direction(rescale):
    """MVDream's form: weighting sigma, the estimate rescaled over all views."""
    prior, x, noise = GroupPrior(4), normal("x", 4, 3, 6, 6), normal("n", 1, 4, 3, 6, 6)
    cameras, order = turntable(4, size=6), torch.tensor([2, 0, 3, 1])
    given_options = options(scale=20.0, rescale=rescale, weighting="sigma")
    whole = direction(prior, x, 0.7, given_options, Given(noise), cameras=cameras).value
    other = direction(
        prior, x[order], 0.7, given_options, Given(noise[:, order]), cameras=cameras[order]
    ).value
    torch.testing.assert_close(other, whole[order], rtol=1e-11, atol=1e-11)
    wrong = direction(prior, x[order], 0.7, given_options, Given(noise[:, order]), cameras=cameras).value
    assert not torch.allclose(wrong, whole[order])


@pytest.mark.parametrize("views", [2, 4])
def test_mvdreams_form_is_the_way_to_the_rescaled_estimate(views):
    """G = x - x0', x0' = (phi f + 1 - phi) x0 with f = std(x0 of the prompt) / std(x0) of the group."""
    prior, x, noise = GroupPrior(views), normal("x", 4, 3, 6, 6), normal("n", 1, 4, 3, 6, 6)
    found, free, usual = (
        direction(prior, x, 0.7, options(scale=w, rescale=phi, weighting="sigma"), Given(noise))
        for w, phi in ((20.0, 0.5), (20.0, 0.0), (1.0, 0.0))
    )
    estimate = []
    for group in range(0, 4, views):
        x0, x0_y = (f.x0[0, group : group + views] for f in (free, usual))
        estimate.append((0.5 * x0_y.std() / x0.std() + 0.5) * x0)
    torch.testing.assert_close(found.value, x - torch.cat(estimate), rtol=1e-6, atol=1e-6)


class Damped(GaussianAdapter):
    """A copy that sees half of the noise, so that what VSD subtracts depends on it."""

    def predict(self, *args):
        return 0.5 * super().predict(*args)


class DampedPrior(GaussianPrior):
    def adapter(self, rank, generator):
        return Damped(self, rank, generator)


class Pick(Preference):
    """Three candidates, of which one is taken for each view."""

    def __init__(self, *kept):
        self.kept = torch.tensor([kept])

    def candidates(self, fraction):
        return 3

    def choose(self, moment, x_t, tries, ensemble):
        return Choice(kept=self.kept, weights=torch.ones(self.kept.shape))


SCORES = {
    "sds": lambda prior: SDS(),
    "csd": lambda prior: CSD(),
    "sdi": lambda prior: SDI(SDIOptions()),
    "ism": lambda prior: ISM(ISMOptions()),
    "vsd": lambda prior: VSD(VSDOptions(lr=0.0), prior, seed=0),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_kept_candidate_brings_its_own_noise_and_baseline(name):
    """Whatever the score: the direction of the candidate that each view kept, and all estimates."""
    prior, x = DampedPrior(pattern, spread=0.3), normal("x")
    score = SCORES[name](prior)
    step = moment(prior, x, 0.6, options=options(scale=3.0, weighting="uniform"))
    noised = score.noises(step, 3)
    tries = step.guided(step.noised(noised.noise))
    residuals = tries.eps - score.baseline(step, noised, tries)  # [3, B, C, h, w]
    for kept in ((2, 0), (1, 1), (0, 2)):
        found = distillation.gradient(step, score, Pick(*kept), None)
        expected = torch.stack([residuals[k, b] for b, k in enumerate(kept)])
        torch.testing.assert_close(found.value, expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(found.x0, tries.x0, rtol=1e-11, atol=1e-11)
    if name != "csd":
        assert not torch.allclose(residuals[0], residuals[1])


@pytest.mark.parametrize(("scale", "calls"), [(0.0, 2), (1.0, 2), (3.0, 4)])
def test_nothing_is_differentiated_and_model_calls_are_counted(scale, calls):
    prior, x = GaussianPrior(pattern), normal("x").requires_grad_()
    found = direction(prior, x, 0.5, options(scale=scale))
    assert not found.value.requires_grad
    assert found.model_calls == prior.calls == calls
    assert found.x0.shape == (1, 2, 3, 6, 6)
    assert found.on_render is None
    assert found.rewards is None


def test_the_same_seed_and_step_give_the_same_direction():
    prior, x = GaussianPrior(pattern, spread=0.5), normal("x")
    a, b, c, d = (direction(prior, x, 0.5, step=n, seed=s).value for n, s in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, d)


def test_no_gradient_reaches_the_denoiser():
    prior = load_prior("toybox-mini", PriorOptions(), LoadOptions())
    prior.net.requires_grad_(True)
    images = torch.full((2, 3, 16, 16), 0.4, requires_grad=True)
    x = prior.encode(images)
    found = direction(prior, x, torch.tensor([0.3, 0.7]), GuidanceOptions(), prompt="a red cube")
    distillation.inject(x, found.value)
    assert all(p.grad is None for p in prior.net.parameters())
    torch.testing.assert_close(images.grad, 2 * found.value / 2)  # encode doubles, two items halve


@pytest.mark.parametrize("items", [1, 2, 5])
def test_the_injected_gradient_is_the_surrogate_losses(items):
    """d/dtheta of 1/2 |x - sg(x - G)|^2 / B, through a map theta -> x."""
    theta, g = normal("theta", items, 4), normal("g", items, 3, 2, 2)
    matrix = normal("matrix", 4, 12)

    def through(apply):
        leaf = theta.clone().requires_grad_()
        apply((leaf.tanh() @ matrix).view(items, 3, 2, 2))
        return leaf.grad

    injected = through(lambda x: distillation.inject(x, g))
    surrogate = through(lambda x: (0.5 * (x - (x - g).detach()).square().sum() / len(x)).backward())
    torch.testing.assert_close(injected, surrogate, rtol=1e-12, atol=1e-12)


def test_a_gradient_on_the_render_goes_along():
    theta, g, on_render = normal("theta", 2, 3, 4, 4), normal("g", 2, 3, 4, 4), normal("r", 2, 3, 4, 4)

    def through(apply):
        leaf = theta.clone().requires_grad_()
        images = leaf.sigmoid()
        apply(images, 2 * images - 1)
        return leaf.grad

    injected = through(lambda images, x: distillation.inject(x, g, images, on_render))
    summed = through(lambda images, x: ((x * g).sum() / 2 + (images * on_render).sum()).backward())
    torch.testing.assert_close(injected, summed, rtol=1e-12, atol=1e-12)


# Times and weights


@few
@given(times)
def test_every_weight(t):
    alpha, sigma = GaussianPrior(pattern).alpha_sigma(torch.tensor([t], dtype=torch.float64))
    a, s = float(alpha), float(sigma)
    assert a**2 + s**2 == pytest.approx(1)
    expected = {"sds": 1 - a**2, "uniform": 1, "sigma": s / a, "fantasia3d": a * (1 - a**2)}
    for name, value in expected.items():
        assert float(distillation.weight(name, alpha, sigma)) == pytest.approx(value, rel=1e-9)


def test_the_weights_of_stable_diffusions_table():
    """At t = 980, abar = 0.00584: sigma is 13.04, and 13.1 times the default weight."""
    abar = torch.tensor([0.00584], dtype=torch.float64)
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    assert float(distillation.weight("sigma", alpha, sigma)) == pytest.approx(13.04, abs=0.01)
    ratio = distillation.weight("sigma", alpha, sigma) / distillation.weight("sds", alpha, sigma)
    assert float(ratio) == pytest.approx(13.1, abs=0.05)


def test_an_unknown_weight_is_refused():
    with pytest.raises(
        ValueError, match="no weighting 'x' of times; there are: sds, uniform, sigma, fantasia3d, flow"
    ):
        distillation.weight("x", torch.ones(1), torch.ones(1))


@pytest.mark.parametrize(
    ("fraction", "largest"), [(0, 0.9), (0.2, 0.9), (0.35, 0.75), (0.5, 0.6), (0.8, 0.3), (1, 0.3)]
)
def test_the_largest_time_falls_linearly(fraction, largest):
    schedule = GuidanceOptions(t_min=0.05, t_max=(0.9, 0.3), anneal=(0.2, 0.8))
    assert distillation.time_range(schedule, fraction) == (0.05, pytest.approx(largest))


@pytest.mark.parametrize(
    ("fraction", "smallest", "largest"), [(0, 0.98, 0.98), (0.4, 0.5, 0.74), (0.9, 0.02, 0.5)]
)
def test_the_smallest_time_falls_too(fraction, smallest, largest):
    """MVDream: [0, 0.98, 0.02, 8000] and [0, 0.98, 0.50, 8000] of 10,000 steps."""
    schedule = GuidanceOptions(t_min=0.02, t_min_start=0.98, t_max=(0.98, 0.5), anneal=(0.0, 0.8))
    assert distillation.time_range(schedule, fraction) == (pytest.approx(smallest), pytest.approx(largest))


def test_an_annealing_of_no_length_is_a_step():
    schedule = GuidanceOptions(t_max=(0.9, 0.3), anneal=(0.5, 0.5))
    assert distillation.time_range(schedule, 0.499)[1] == 0.9
    assert distillation.time_range(schedule, 0.501)[1] == pytest.approx(0.3)


@pytest.mark.parametrize(("fraction", "t"), [(0, 0.98), (0.25, 0.785), (0.5, 0.59), (1, 0.2)])
@pytest.mark.parametrize(
    ("score", "times_"), [(SDI(SDIOptions()), "auto"), (SDI(SDIOptions()), "annealed"), (SDS(), "annealed")]
)
def test_annealed_times_are_one_for_all_and_fall_over_the_whole_run(score, times_, fraction, t):
    schedule = GuidanceOptions(times=times_, t_min=0.2, t_max=(0.98, 0.5), anneal=(0.0, 0.8))
    found = distillation.draw_times(schedule, score, fraction, 5, rng(0, 0, "time"))
    assert found.tolist() == pytest.approx([t] * 5)


@pytest.mark.parametrize(("score", "times_"), [(SDS(), "auto"), (SDI(SDIOptions()), "random")])
def test_random_times_are_stratified(score, times_):
    schedule = GuidanceOptions(times=times_, t_min=0.1, t_max=(0.9, 0.5), anneal=(0.0, 1.0))
    found = distillation.draw_times(schedule, score, 0.5, 6, rng(0, 0, "time"))
    assert torch.equal(found, distillation.sample_times(rng(0, 0, "time"), 6, 0.1, 0.7))
    assert len(set(found.tolist())) == 6


@few
@given(st.integers(1, 64), st.integers(0, 2**31), st.floats(0.02, 0.4), st.floats(0.41, 0.98))
def test_times_fill_their_strata(count, seed, low, high):
    found = distillation.sample_times(rng(seed, 0, "time"), count, low, high)
    assert found.shape == (count,)
    place = ((found.double() - low) / (high - low) * count).sort().values
    index = torch.arange(count)
    assert ((place > index - 1e-4) & (place < index + 1 + 1e-4)).all()


def test_the_order_of_times_is_random():
    """A view's place in the batch tells nothing about its time."""
    first = torch.stack([distillation.sample_times(rng(0, n, "time"), 4, 0.0, 1.0) for n in range(400)])
    assert (first.mean(0) - 0.5).abs().max() < 0.06
