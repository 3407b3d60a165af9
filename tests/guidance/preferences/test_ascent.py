"""DreamReward against its formulas: a reward gradient into the render. In float64."""

import math

import pytest
import torch
from analytic import GroupPrior, moment
from analytic_rewards import Linear, Near, Seen, ensemble, image

from splatgen.config import AscentOptions, GuidanceOptions
from splatgen.guidance.distillation import gradient, inject
from splatgen.guidance.preferences import Ascent, NoPreference
from splatgen.guidance.preferences.ascent import PURE, digit_scale
from splatgen.guidance.scores import SDS

B, SHAPE = 2, (2, 3, 4, 4)
IMAGES = 0.2 + 0.6 * image("render", SHAPE).sigmoid()
SIGMA = GuidanceOptions(scale=3.0, clamp=False, weighting="sigma")


def ascent(**change):
    return Ascent(AscentOptions(**{"start": 0.0, "straight_through": 0.0, **change}))


def run(preference, reward=None, *, prior=None, t=0.5, guided=SIGMA, images=IMAGES, **change):
    prior = prior or Seen()
    at = moment(prior, prior.encode(images), t, options=guided, images=images, **change)
    given = reward if hasattr(reward, "each") else ensemble(reward or Near())
    return gradient(at, SDS(), preference, given)


def slopes(function, at, h=1e-4):
    """Central differences of a scalar function at every element."""
    found = torch.zeros_like(at)
    for n in range(at.numel()):
        step = torch.zeros_like(at)
        step.view(-1)[n] = h
        found.view(-1)[n] = (function(at + step) - function(at - step)) / (2 * h)
    return found


def scores(images, reward=None):
    return (reward or Near())(images, ("a",) * len(images))


# The gradient


def test_the_official_form_is_the_slope_of_its_loss():
    """0.6 c relu(target - r), the mean over views; c by the digits of 1/2 |G|^2 / B and of the mean."""
    found = run(ascent(weight=0.6, target=4.0))

    def missing(images):
        return (4.0 - scores(images)).clamp_min(0.0).mean()

    loss = 0.5 * found.value.square().sum() / B
    c = 10.0 ** (len(str(int(loss))) - len(str(int(missing(IMAGES)))))
    assert c == 10.0  # or the digits show nothing
    expected = slopes(lambda z: 0.6 * c * missing(z), IMAGES)
    torch.testing.assert_close(found.on_render, expected, rtol=1e-6, atol=1e-9)
    assert found.on_render.norm() > 1e-3


def test_the_papers_form_is_w_times_the_rewards_slope():
    """G = w(t) (e - d_r - n), each view with the weight of its own time: here sigma / alpha."""
    t = torch.tensor([0.2, 0.8], dtype=torch.float64)
    found = run(ascent(form="paper", weight=0.7), t=t)
    w = (math.pi / 2 * t).tan()
    expected = slopes(lambda z: -(w * 0.7 * scores(z)).sum() / B, IMAGES)
    torch.testing.assert_close(found.on_render, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_it_goes_beside_the_plain_score(form):
    found, plain = run(ascent(form=form)), run(NoPreference())
    assert torch.equal(found.value, plain.value)
    assert plain.on_render is None
    images = IMAGES.clone().requires_grad_()
    x = Seen().encode(images)
    inject(x, found.value, images, found.on_render)
    torch.testing.assert_close(images.grad, 2.0 * found.value / B + found.on_render)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_a_step_against_it_raises_the_reward(form):
    found = run(ascent(form=form))
    step = 1e-3 * found.on_render / found.on_render.norm()
    assert scores(IMAGES - step).sum() > scores(IMAGES).sum()


def test_several_rewards_are_weighed_in_units_of_their_spreads():
    both = ensemble(Linear(spread=0.5), Near(mean=1.0, spread=0.1), weights=(1.0, -2.0))
    found = run(ascent(form="paper", weight=1.0), both, t=0.5)

    def total(z):
        return -(scores(z, Linear()) / 0.5 - 2.0 * (scores(z) - 1.0) / 0.1).sum() / B

    torch.testing.assert_close(found.on_render, slopes(total, IMAGES), rtol=1e-6, atol=1e-8)


# When it acts


@pytest.mark.parametrize("form", ["code", "paper"])
def test_before_its_start_it_is_the_plain_score(form):
    reward = Near()
    found = run(ascent(form=form, start=0.6), reward, step=59)
    assert found.on_render is None
    assert torch.equal(found.value, run(NoPreference(), step=59).value)
    assert run(ascent(form=form, start=0.6), reward, step=60).on_render is not None


def test_rewards_above_the_target_have_no_gradient():
    """The first view's reward is above it, the second one's below."""
    first, second = scores(IMAGES).tolist()
    assert first > second
    found = run(ascent(target=(first + second) / 2)).on_render
    assert found[0].abs().max() == 0
    assert found[1].norm() > 0
    assert run(ascent(target=second - 0.1)).on_render.abs().max() == 0


@pytest.mark.parametrize(("step", "alone"), [(89, False), (90, True), (99, True)])
def test_in_the_last_share_the_reward_is_alone(step, alone):
    found = run(ascent(pure=0.1), step=step)
    plain = run(NoPreference(), step=step).value
    if alone:
        assert found.value.abs().max() == 0
        expected = slopes(lambda z: PURE * (4.0 - scores(z)).mean(), IMAGES)
        torch.testing.assert_close(found.on_render, expected, rtol=1e-5, atol=1e-3)
    else:
        assert torch.equal(found.value, plain)


def test_without_a_pure_share_the_score_guides_to_the_last_step():
    assert run(ascent(), step=99).value.abs().max() > 0


def test_before_its_start_the_score_is_never_dropped():
    """A pure share that begins before the start waits for it, or nothing would guide."""
    found = run(ascent(start=0.9, pure=0.5), step=70)
    assert torch.equal(found.value, run(NoPreference(), step=70).value)
    assert run(ascent(start=0.9, pure=0.5), step=90).value.abs().max() == 0


# Straight through


def test_early_times_judge_the_estimate_and_late_ones_the_render():
    """The value is the decoded estimate's, the gradient the render's, one for one."""
    seen = []

    class Looking(Near):
        def __call__(self, images, prompts):
            seen.append(images)
            return super().__call__(images, prompts)

    t = torch.tensor([0.1, 0.11], dtype=torch.float64)
    found = run(ascent(form="paper", weight=1.0, straight_through=0.1), Looking(), t=t)
    decoded = Seen().decode(found.x0[0])
    (looked,) = seen
    torch.testing.assert_close(looked[0], decoded[0], rtol=1e-12, atol=0)
    assert torch.equal(looked[1], IMAGES[1])
    assert (decoded[0] - IMAGES[0]).abs().max() > 0.01
    w = (math.pi / 2 * t).tan().view(-1, 1, 1, 1)
    expected = slopes(lambda z: -scores(z).sum() / B, looked.detach()) * w
    torch.testing.assert_close(found.on_render, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_estimate_at_the_ends_of_the_range_still_has_a_gradient(dtype):
    """Far estimates decode to exactly 0 and 1: rounding must not carry them out of the range."""
    images = 3.0 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)  # beyond 1, too
    far = GuidanceOptions(scale=900.0, clamp=False)
    found = run(
        ascent(form="paper", weight=1.0, straight_through=1.0),
        Linear(),
        prior=GroupPrior(1),
        images=images,
        guided=far,
    )
    assert (found.x0.abs() > 1).double().mean() > 0.9
    expected = -Linear().picture(images) / 48 / B
    torch.testing.assert_close(found.on_render, expected.expand(SHAPE).to(dtype), rtol=1e-5, atol=1e-8)


def test_an_estimate_is_judged_at_the_size_of_the_render():
    """The estimate has 4 pixels a side, the render 8; the gradient is the render's."""
    large = IMAGES.repeat_interleave(2, 2).repeat_interleave(2, 3)
    prior, reward = Seen(), Linear()
    at = moment(prior, prior.encode(IMAGES), 0.1, options=SIGMA, images=large)
    p = ascent(form="paper", weight=1.0, straight_through=1.0)
    found = gradient(at, SDS(), p, ensemble(reward))
    w = math.tan(math.pi / 2 * 0.1)
    expected = (-w * reward.picture(large) / (3 * 64) / B).expand(large.shape)
    torch.testing.assert_close(found.on_render, expected)


# Digits, cost and leftovers


@pytest.mark.parametrize(
    ("loss", "other", "expected"),
    [
        (0.0, 0.0, 1),
        (0.3, 0.9, 1),
        (9.99, 3.0, 1),
        (10.0, 3.0, 10),
        (1234.5, 3.4, 1000),
        (1234.5, 56.0, 100),
        (3.0, 1234.5, 0.001),
        (math.inf, 3.0, 1),
        (math.nan, 30.0, 0.1),
    ],
)
def test_losses_are_matched_by_their_digits_before_the_point(loss, other, expected):
    assert digit_scale(torch.tensor(loss), torch.tensor(other)) == pytest.approx(expected)


def test_it_costs_what_the_plain_score_does():
    prior, reward = Seen(), Linear()
    assert run(ascent(), reward, prior=prior).model_calls == 2 * B
    assert prior.batches == [2 * B]
    assert reward.batches == [B]


def test_nothing_is_left_on_the_reward_and_nothing_carries_a_gradient():
    knob = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    class Tuned(Near):
        def __call__(self, images, prompts):
            return knob * super().__call__(images, prompts)

    found = run(ascent(), Tuned())
    assert knob.grad is None
    assert not found.value.requires_grad
    assert not found.on_render.requires_grad
