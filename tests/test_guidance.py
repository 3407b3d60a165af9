"""Score distillation against its formulas, in float64 and on a prior that is known in closed form."""

import math

import pytest
import torch
from analytic import GaussianPrior, expected_direction
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen import guidance
from splatgen.cameras import turntable
from splatgen.config import GuidanceOptions, PriorOptions
from splatgen.preferences import NoPreference
from splatgen.priors import load_prior
from splatgen.rng import rng
from splatgen.scores import SDS

few = settings(deadline=None, max_examples=25)
times = st.floats(0.02, 0.98)
scales = st.floats(0, 100)
B, SIDE = 2, 6
PLAIN = GuidanceOptions(scale=1.0, clamp=False)


def noise(purpose, step=0, shape=(B, 3, SIDE, SIDE)):
    return torch.randn(shape, generator=rng(0, step, purpose)).double()


def pattern(cameras):
    """An image that depends on the azimuth, [B, 3, SIDE, SIDE], in -1..1."""
    u = torch.linspace(0, 3, 3 * SIDE * SIDE, dtype=torch.float64).view(1, 3, SIDE, SIDE)
    return torch.sin(u + torch.deg2rad(cameras.azimuth.double())[:, None, None, None])


def views(count=B):
    return turntable(count, size=SIDE)


def options(**change):
    return GuidanceOptions(**{"scale": 1.0, "clamp": False, **change})


def direction(prior, x, t, given_options, *, positive="a", negative="", step=0):
    cameras = views(len(x))
    conditions = [prior.embed([text] * len(x)) for text in (positive, negative)]
    times_ = torch.full((len(x),), t, dtype=x.dtype)
    generator = rng(0, step, "noise")
    return guidance.gradient(
        prior, SDS(), NoPreference(), x, times_, *conditions, cameras, given_options, generator
    )


# Classifier-free guidance


@few
@given(st.floats(-2, 200))
def test_the_two_conventions_differ_by_one(gamma):
    e_y, e_n = noise("y"), noise("n")
    torch.testing.assert_close(
        guidance.cfg(e_y, e_n, 1 + gamma), e_y + gamma * (e_y - e_n), rtol=1e-12, atol=1e-12
    )


def test_scale_0_is_unconditional_and_1_conditional():
    e_y, e_n = noise("y"), noise("n")
    assert torch.equal(guidance.cfg(e_y, e_n, 0.0), e_n)
    torch.testing.assert_close(guidance.cfg(e_y, e_n, 1.0), e_y, rtol=0, atol=1e-15)


@few
@given(scales, times)
def test_a_negative_like_the_prompt_makes_the_scale_irrelevant(scale, t):
    prior, x = GaussianPrior(pattern, spread=0.3), noise("x")
    plain = direction(prior, x, t, PLAIN, negative="a").value
    torch.testing.assert_close(
        direction(prior, x, t, options(scale=scale), negative="a").value, plain, rtol=0, atol=1e-12
    )


def test_guidance_pushes_away_from_the_negative():
    """eps is affine in the scale: e(w) - e(0) = w (e(1) - e(0))."""
    prior, x = GaussianPrior(pattern, spread=0.3), noise("x")
    e0, e1, e5 = (direction(prior, x, 0.5, options(scale=w)).value for w in (0.0, 1.0, 5.0))
    torch.testing.assert_close(e5 - e0, 5 * (e1 - e0), rtol=1e-10, atol=1e-12)
    assert (e1 - e0).abs().max() > 0.01


# The one-step estimate


@few
@given(times, scales)
def test_the_residual_is_sigma_over_alpha_times_the_error_of_the_noise(t, scale):
    prior, x, n = GaussianPrior(pattern, spread=0.3), noise("x"), noise("n")
    t_ = torch.full((B,), t, dtype=torch.float64)
    alpha, sigma = prior.alpha_sigma(t_)
    found = guidance.predict(
        prior,
        alpha * x + sigma * n,
        t_,
        prior.embed(["a"] * B),
        prior.embed([""] * B),
        views(),
        options(scale=scale),
    )
    error = (x - found.x0) - sigma / alpha * (found.eps - n)
    assert error.abs().max() < 1e-10 * max(1.0, scale) * float(sigma.max() / alpha.min())


@few
@given(times, st.sampled_from([0.0, 0.3, 1.0]), st.booleans(), st.sampled_from([1.0, 3.0, 50.0]))
def test_rescaling_and_clamping_keep_estimate_and_noise_in_agreement(t, rescale, clamp, scale):
    prior, x_t = GaussianPrior(pattern, spread=0.3), 2 * noise("x")
    t_ = torch.full((B,), t, dtype=torch.float64)
    alpha, sigma = prior.alpha_sigma(t_)
    found = guidance.predict(
        prior,
        x_t,
        t_,
        prior.embed(["a"] * B),
        prior.embed([""] * B),
        views(),
        options(scale=scale, rescale=rescale, clamp=clamp),
    )
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x_t, rtol=0, atol=1e-11)
    if clamp:
        assert found.x0.abs().max() <= 1.0


def test_full_rescaling_gives_the_conditional_spread():
    """Lin et al. 2023, eq. 15-16 with phi = 1; phi = 1/2 lies halfway."""
    prior, x_t, t = GaussianPrior(pattern, spread=0.3), noise("x"), torch.full((B,), 0.6, dtype=torch.float64)
    alpha, sigma = prior.alpha_sigma(t)

    def estimate(rescale):
        both = prior.embed(["a"] * B), prior.embed([""] * B)
        return guidance.predict(prior, x_t, t, *both, views(), options(scale=8.0, rescale=rescale))

    free, half, full = estimate(0.0), estimate(0.5), estimate(1.0)
    conditional = (x_t - sigma * free.conditional) / alpha
    assert not torch.allclose(guidance.spread(free.x0), guidance.spread(conditional), rtol=0.1)
    torch.testing.assert_close(guidance.spread(full.x0), guidance.spread(conditional), rtol=1e-6, atol=0)
    torch.testing.assert_close(half.x0, 0.5 * (free.x0 + full.x0), rtol=1e-12, atol=1e-12)


def test_latents_without_a_range_are_never_clamped():
    prior, x_t = GaussianPrior(pattern, spread=0.3, x_range=None), 9 * noise("x")
    t = torch.full((B,), 0.5, dtype=torch.float64)
    both = prior.embed(["a"] * B), prior.embed([""] * B)
    free = guidance.predict(prior, x_t, t, *both, views(), options(clamp=False))
    clamped = guidance.predict(prior, x_t, t, *both, views(), options(clamp=True))
    assert torch.equal(free.x0, clamped.x0)
    assert free.x0.abs().max() > 1


def test_prompt_and_negative_see_the_same_cameras_in_one_call():
    seen = []

    def mean(cameras):
        seen.append(cameras)
        return pattern(cameras)

    prior = GaussianPrior(mean)
    direction(prior, noise("x"), 0.5, options(scale=3.0))
    assert len(seen) == 1
    assert torch.equal(seen[0].azimuth, views().azimuth.repeat(2))
    assert torch.equal(seen[0].c2w, views().c2w.repeat(2, 1, 1))


# The direction


@few
@given(times, st.sampled_from(["sds", "uniform", "sigma", "fantasia3d"]))
def test_a_denoiser_that_returns_the_added_noise_gives_nothing(t, weighting):
    """Data that is exactly x itself: eps = (x_t - alpha x) / sigma = n."""
    x = pattern(views())
    found = direction(GaussianPrior(pattern), x, t, options(weighting=weighting))
    assert found.value.abs().max() < 1e-10
    torch.testing.assert_close(found.x0[0], x, rtol=0, atol=1e-12)


@few
@given(times, st.sampled_from(["sds", "uniform", "sigma", "fantasia3d"]))
def test_a_point_distribution_gives_its_closed_form(t, weighting):
    """Spread 0: G = w(t) alpha / sigma (x - mean), whatever the noise."""
    prior, x = GaussianPrior(pattern), noise("x")
    alpha, sigma = prior.alpha_sigma(torch.full((B,), t, dtype=torch.float64))
    expected = guidance.weight(weighting, alpha, sigma) * alpha / sigma * (x - pattern(views()))
    torch.testing.assert_close(
        direction(prior, x, t, options(weighting=weighting)).value, expected, rtol=1e-10, atol=1e-10
    )


def test_a_spread_distribution_gives_its_closed_form_on_average():
    prior, x, t, draws = GaussianPrior(pattern, spread=0.4), noise("x"), 0.4, 400
    mean = (
        sum(direction(prior, x, t, options(weighting="uniform"), step=n).value for n in range(draws)) / draws
    )
    alpha, sigma = prior.alpha_sigma(torch.full((B,), t, dtype=torch.float64))
    expected = expected_direction(x, pattern(views()), alpha, sigma, 0.4)
    noise_left = float((alpha**2 * 0.4**2 / (alpha**2 * 0.4**2 + sigma**2)).max()) / math.sqrt(draws)
    error = (mean - expected) / noise_left  # standard normal
    assert error.abs().max() < 5
    assert error.std() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("scale", "calls"), [(1.0, B), (0.0, 2 * B), (3.0, 2 * B)])
def test_nothing_is_differentiated_and_model_calls_are_counted(scale, calls):
    prior, x = GaussianPrior(pattern), noise("x").requires_grad_()
    found = direction(prior, x, 0.5, options(scale=scale))
    assert not found.value.requires_grad
    assert found.model_calls == prior.calls == calls
    assert found.x0.shape == (1, B, 3, SIDE, SIDE)


def test_the_scale_is_continuous_at_1_where_the_negative_is_left_out():
    prior, x = GaussianPrior(pattern, spread=0.3), noise("x")
    beside = direction(prior, x, 0.5, options(scale=1 + 1e-12)).value
    torch.testing.assert_close(direction(prior, x, 0.5, PLAIN).value, beside, rtol=0, atol=1e-10)


def test_the_same_generator_gives_the_same_direction():
    prior, x = GaussianPrior(pattern, spread=0.5), noise("x")
    a, b, c = (direction(prior, x, 0.5, PLAIN, step=n).value for n in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_no_gradient_reaches_the_denoiser():
    prior = load_prior("toybox-mini", PriorOptions(), "cpu")
    prior.net.requires_grad_(True)
    images = torch.full((2, 3, 16, 16), 0.4, requires_grad=True)
    x = prior.encode(images)
    condition = prior.embed(["a red cube, front view", "a red cube, back view"])
    found = guidance.gradient(
        prior,
        SDS(),
        NoPreference(),
        x,
        torch.tensor([0.3, 0.7]),
        condition,
        prior.embed(["", ""]),
        turntable(2, size=16),
        GuidanceOptions(),
        rng(0, 0, "noise"),
    )
    guidance.inject(x, found.value)
    assert all(p.grad is None for p in prior.net.parameters())
    torch.testing.assert_close(images.grad, 2 * found.value / 2)  # encode doubles, two items halve


@pytest.mark.parametrize("items", [1, 2, 5])
def test_the_injected_gradient_is_the_surrogate_losses(items):
    """d/dtheta of 1/2 |x - sg(x - G)|^2 / B, through a map theta -> x."""
    theta, g = noise("theta", shape=(items, 4)), noise("g", shape=(items, 3, 2, 2))
    matrix = noise("matrix", shape=(4, 12))

    def through(apply):
        leaf = theta.clone().requires_grad_()
        apply((leaf.tanh() @ matrix).view(items, 3, 2, 2))
        return leaf.grad

    injected = through(lambda x: guidance.inject(x, g))
    surrogate = through(lambda x: (0.5 * (x - (x - g).detach()).square().sum() / len(x)).backward())
    torch.testing.assert_close(injected, surrogate, rtol=1e-12, atol=1e-12)


# Times and weights


@few
@given(times)
def test_every_weight(t):
    alpha, sigma = GaussianPrior(pattern).alpha_sigma(torch.tensor([t], dtype=torch.float64))
    a, s = float(alpha), float(sigma)
    assert a**2 + s**2 == pytest.approx(1)
    expected = {"sds": 1 - a**2, "uniform": 1, "sigma": s / a, "fantasia3d": a * (1 - a**2)}
    for name, value in expected.items():
        assert float(guidance.weight(name, alpha, sigma)) == pytest.approx(value, rel=1e-9)


def test_the_weights_of_stable_diffusions_table():
    """At t = 980, abar = 0.00584: sigma is 13.04, and 13.1 times the default weight."""
    abar = torch.tensor([0.00584], dtype=torch.float64)
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    assert float(guidance.weight("sigma", alpha, sigma)) == pytest.approx(13.04, abs=0.01)
    ratio = guidance.weight("sigma", alpha, sigma) / guidance.weight("sds", alpha, sigma)
    assert float(ratio) == pytest.approx(13.1, abs=0.05)


def test_an_unknown_weight_is_refused():
    with pytest.raises(ValueError, match="no weighting 'x'; there are: sds, uniform, sigma, fantasia3d"):
        guidance.weight("x", torch.ones(1), torch.ones(1))


@pytest.mark.parametrize(
    ("fraction", "largest"), [(0, 0.9), (0.2, 0.9), (0.35, 0.75), (0.5, 0.6), (0.8, 0.3), (1, 0.3)]
)
def test_the_largest_time_falls_linearly(fraction, largest):
    schedule = GuidanceOptions(t_min=0.05, t_max=(0.9, 0.3), anneal=(0.2, 0.8))
    assert guidance.time_range(schedule, fraction) == (0.05, pytest.approx(largest))


def test_an_annealing_of_no_length_is_a_step():
    schedule = GuidanceOptions(t_max=(0.9, 0.3), anneal=(0.5, 0.5))
    assert guidance.time_range(schedule, 0.499)[1] == 0.9
    assert guidance.time_range(schedule, 0.501)[1] == pytest.approx(0.3)


@few
@given(st.integers(1, 64), st.integers(0, 2**31), st.floats(0.02, 0.4), st.floats(0.41, 0.98))
def test_times_fill_their_strata(count, seed, low, high):
    found = guidance.sample_times(rng(seed, 0, "time"), count, low, high)
    assert found.shape == (count,)
    place = ((found.double() - low) / (high - low) * count).sort().values
    index = torch.arange(count)
    assert ((place > index - 1e-4) & (place < index + 1 + 1e-4)).all()


def test_the_order_of_times_is_random():
    """A view's place in the batch tells nothing about its time."""
    first = torch.stack([guidance.sample_times(rng(0, n, "time"), 4, 0.0, 1.0) for n in range(400)])
    assert (first.mean(0) - 0.5).abs().max() < 0.06


# Distillation


def test_sds_recovers_the_mean_of_an_analytic_prior():
    """x itself is optimised, in float64; the data is N(pattern, 0.1^2)."""
    prior, cameras = GaussianPrior(pattern, spread=0.1), views(4)
    x = torch.zeros(4, 3, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.05)
    both = prior.embed(["a"] * 4), prior.embed([""] * 4)
    steps = 200
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        t = guidance.sample_times(rng(0, step, "time"), 4, 0.02, 0.98).double()
        found = guidance.gradient(
            prior, SDS(), NoPreference(), x, t, *both, cameras, PLAIN, rng(0, step, "noise")
        )
        adam.zero_grad()
        guidance.inject(x, found.value)
        adam.step()
    error = (x.detach() - pattern(cameras)).square().mean().sqrt()
    print(f"root mean square error {float(error):.4f}")
    assert error < 0.03
