"""Deterministic DDIM up and down, with a time of its own for every view."""

import math

import pytest
import torch
from analytic import PLAIN, ConstantPrior, GaussianPrior, GroupPrior, moment, normal, pattern
from hypothesis import given
from hypothesis import strategies as st

from splatgen.config import GuidanceOptions
from splatgen.guidance.denoiser import amplitudes
from splatgen.guidance.inversion import ddim_step, falling, posterior_std, rising, walk
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable

starts = st.lists(st.floats(0.01, 0.999), min_size=1, max_size=5)
B = 3
TIMES = torch.tensor([0.35, 0.9, 0.1], dtype=torch.float64)
GUIDED = GuidanceOptions(scale=3.0, clamp=False)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def step_at(prior, options=PLAIN, t=TIMES):
    return moment(prior, normal("x", B, 3, 6, 6), t, options=options)


# A single step


@given(st.floats(0, 0.98), st.floats(0, 0.98))
def test_a_step_keeps_the_estimate_and_the_noise(low, high):
    """x at both levels is made of the same x0 and the same eps."""
    prior, x0, eps = ConstantPrior(), normal("x0"), normal("eps")
    t, to = (torch.full((2,), v, dtype=torch.float64) for v in (low, high))
    (alpha, sigma), (alpha_to, sigma_to) = amplitudes(prior, t), amplitudes(prior, to)
    found = ddim_step(prior, alpha * x0 + sigma * eps, eps, t, to)
    torch.testing.assert_close(found, alpha_to * x0 + sigma_to * eps, rtol=1e-10, atol=1e-10)


# Walks


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_up_and_down_again_is_where_it_began_for_a_constant_noise(value, count):
    step = step_at(ConstantPrior(value))
    x = normal("start", 2, B, 3, 6, 6)
    up = rising(TIMES, torch.full((B,), float(count)))
    top = walk(step, x, up, scale=1.0, plain=True)
    alpha, sigma = step.amplitudes()
    torch.testing.assert_close(top, alpha * x + sigma * value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(walk(step, top, up.flip(0), scale=1.0, plain=True), x, rtol=0, atol=1e-12)


def test_many_steps_follow_the_flow_of_a_gaussian():
    """Data N(0, s^2): the flow scales x by its level's deviation, sqrt(a^2 s^2 + sigma^2) / s."""
    step = step_at(GaussianPrior(pattern, spread=0.5))
    x = normal("start", 1, B, 3, 6, 6)
    levels = rising(TIMES, torch.full((B,), 400.0))
    top = walk(step, x, levels, scale=0.0, plain=True)  # without a prompt the mean is 0
    alpha, sigma = step.amplitudes()
    torch.testing.assert_close(top, (alpha**2 * 0.25 + sigma**2).sqrt() / 0.5 * x, rtol=0.01, atol=0)
    back = walk(step, top, levels.flip(0), scale=0.0, plain=True)
    torch.testing.assert_close(back, x, rtol=0.01, atol=0)


def test_a_walk_is_its_loop_for_every_view_alone():
    prior = GroupPrior(1)
    step, x = step_at(prior, GUIDED), normal("start", 2, B, 3, 6, 6)
    counts = [2, 4, 1]
    found = walk(step, x, rising(TIMES, tensor(*counts)), scale=-2.0, plain=True)
    cameras = turntable(B, size=6)
    for b, count in enumerate(counts):
        for k in range(2):
            y = x[k, b : b + 1]
            for n in range(count):
                here, there = (TIMES[b : b + 1] * m / count for m in (n, n + 1))
                told = step.conditions.take(torch.tensor([b]))
                e_y, e_n = (
                    prior.predict(y, here, c, cameras[b : b + 1]) for c in (told.positive, told.negative)
                )
                y = ddim_step(prior, y, e_n - 2.0 * (e_y - e_n), here, there)
            torch.testing.assert_close(found[k, b : b + 1], y, rtol=1e-11, atol=1e-11)


def test_only_views_that_move_go_through_the_denoiser():
    prior = ConstantPrior()
    x = normal("start", 2, B, 3, 6, 6)
    levels = rising(TIMES, tensor(2, 4, 1))
    walk(step_at(prior), x, levels, scale=1.0, plain=True)
    assert prior.calls == 2 * (4 + 2 + 1)
    prior.calls = 0
    walk(step_at(prior), x, levels, scale=3.0, plain=True)
    assert prior.calls == 2 * 2 * (4 + 2 + 1)
    prior.calls = 0
    still = walk(step_at(prior), x, TIMES.expand(5, B), scale=3.0, plain=True)
    assert prior.calls == 0
    assert torch.equal(still, x)


def test_predictions_that_are_known_are_not_made_again():
    prior = GroupPrior(1)
    step, x = step_at(prior, GUIDED), normal("start", 2, B, 3, 6, 6)
    levels = falling(TIMES, 4)
    first = step.guided(x, plain=True)
    prior.calls = 0
    with_it = walk(step, x, levels, scale=3.0, plain=True, first=first)
    saved = prior.calls
    prior.calls = 0
    assert torch.equal(with_it, walk(step, x, levels, scale=3.0, plain=True))
    assert prior.calls - saved == 2 * 2 * B  # both prompts of two candidates
    other = first.map(torch.zeros_like)
    assert not torch.allclose(walk(step, x, levels, scale=3.0, plain=True, first=other), with_it)


def test_jitter_has_the_posteriors_size_and_leaves_a_walk_from_0_in_one_step_alone():
    step = moment(ConstantPrior(0.0), torch.zeros(1, 3, 64, 64, dtype=torch.float64), tensor(0.8))
    x = torch.zeros(1, 1, 3, 64, 64, dtype=torch.float64)

    def jittered(levels, eta=0.3):
        return walk(step, x, levels, scale=1.0, plain=True, jitter=rng(0, 0, "jitter"), eta=eta)

    assert torch.equal(jittered(tensor(0.0, 0.8)[:, None]), x)
    assert torch.equal(jittered(tensor(0.0, 0.4, 0.8)[:, None], eta=0.0), x)
    noise = jittered(tensor(0.0, 0.4, 0.8)[:, None])
    expected = 0.3 * float(posterior_std(step.prior, tensor(0.4), tensor(0.8)))
    assert float(noise.std()) == pytest.approx(expected, rel=0.02)


@given(st.floats(0.01, 0.98), st.floats(0.01, 0.98))
def test_the_posterior_is_ddpms(a, b):
    """Ho et al. 2020, eq. 7: (1 - abar_low) / (1 - abar_high) beta, beta = 1 - abar_high / abar_low."""
    low, high = sorted((a, b))
    abar_low, abar_high = (math.cos(math.pi / 2 * t) ** 2 for t in (low, high))
    beta = 1 - abar_high / abar_low
    expected = math.sqrt((1 - abar_low) / (1 - abar_high) * max(beta, 0.0))
    found = posterior_std(ConstantPrior(), tensor(low), tensor(high))
    assert found.shape == (1, 1, 1, 1)
    assert float(found) == pytest.approx(expected, abs=1e-7)


# Levels


@given(starts, st.integers(1, 40))
def test_levels_fall_through_the_multiples_below(times, steps):
    found = falling(tensor(*times), steps)
    assert found.shape == (steps + 1, len(times))
    for b, start in enumerate(times):
        grid = [n / steps for n in range(steps - 1, -1, -1)]
        expected = [start, *(level for level in grid if level < start)]
        expected += [0.0] * (steps + 1 - len(expected))
        assert found[:, b].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 3, 10, 15])
def test_a_start_on_the_grid_is_not_a_step_of_its_own(dtype, steps):
    starts_ = torch.arange(1, steps + 1).to(dtype) / steps
    moves = (falling(starts_, steps).diff(dim=0) != 0).sum(0)
    assert moves.tolist() == list(range(1, steps + 1))


def test_one_level_goes_straight_to_0():
    assert falling(tensor(0.9, 0.2), 1).tolist() == [[0.9, 0.2], [0.0, 0.0]]


@given(st.lists(st.tuples(st.floats(0.01, 0.999), st.integers(1, 30)), min_size=1, max_size=5))
def test_levels_rise_in_equal_steps_and_stay_at_their_end(pairs):
    ends, counts = zip(*pairs, strict=True)
    found = rising(tensor(*ends), tensor(*counts))
    assert found.shape == (max(counts) + 1, len(ends))
    for b, (end, count) in enumerate(pairs):
        expected = [end * min(n / count, 1.0) for n in range(max(counts) + 1)]
        assert found[:, b].tolist() == pytest.approx(expected, rel=1e-6)  # shares are float32 or better
        assert (found[count:, b] == end).all()  # exactly, or a padded step would be walked
