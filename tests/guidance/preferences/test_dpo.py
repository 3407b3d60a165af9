"""DreamDPO against its formula: winner less loser of two noises. All in float64."""

import math

import pytest
import torch
from analytic import moment
from analytic_rewards import Given, GivenNoise, Linear, Seen, ensemble, image

from splatgen.config import DPOOptions, GuidanceOptions
from splatgen.guidance.distillation import gradient
from splatgen.guidance.preferences import DPO, NoPreference
from splatgen.guidance.preferences.pairs import compare
from splatgen.guidance.scores import SDS
from splatgen.guidance.scores.base import gaussian

B, SHAPE, SCALE = 2, (2, 3, 4, 4), 3.0
GUIDED = GuidanceOptions(scale=SCALE, clamp=False)
X = 0.5 * image("x", SHAPE)
NOISE = gaussian(moment(Seen(), X, 0.5), 2)
APART = Given(torch.tensor([[0.2, 0.9], [0.7, 0.1]]))  # the second wins for one view, the first for the other


def run(preference, reward=None, *, noise=NOISE, prior=None, x=X, t=0.5):
    at = moment(prior or Seen(), x, t, options=GUIDED)
    score = GivenNoise(noise) if noise is not None else SDS()
    return gradient(at, score, preference, ensemble(reward or APART))


def sds(noise, **change):
    return run(NoPreference(), noise=noise[None], **change).value


def dpo(**change):
    return DPO(DPOOptions(**change))


# Who wins


def test_the_better_wins_and_the_first_where_they_are_equal():
    pair = compare(torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0]]))
    assert pair.win.tolist() == [1, 0, 0]
    assert pair.gap.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_wins(bad):
    pair = compare(torch.tensor([[bad, -9.0, bad], [-9.0, bad, bad]]))
    assert pair.win.tolist() == [1, 0, 0]
    assert pair.gap.isnan().all()


# The direction


def test_it_is_the_winners_score_less_the_losers():
    found = run(dpo())
    first, second = (sds(n) for n in NOISE)
    expected = torch.stack([(second - first)[0], (first - second)[1]])
    torch.testing.assert_close(found.value, expected, rtol=1e-12, atol=1e-13)
    assert found.kept.tolist() == [[1, 0], [0, 1]]
    assert found.metrics["preference/small_gaps"] == 0


@pytest.mark.parametrize("form", ["paper", "code"])
def test_the_order_of_the_noises_does_not_matter(form):
    turned = Given(APART.values.flip(0))
    a, b = run(dpo(form=form)), run(dpo(form=form), turned, noise=NOISE.flip(0))
    assert torch.equal(a.value, b.value)


def test_a_turned_reward_exchanges_winner_and_loser():
    up, down = run(dpo(), Linear(scale=9.0)), run(dpo(), Linear(scale=-9.0))
    assert (up.rewards[0] - up.rewards[1]).abs().min() > 0.01
    assert torch.equal(up.kept, down.kept.flip(0))
    torch.testing.assert_close(up.value, -down.value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_within_the_gap_the_winner_is_alone(form):
    """The gaps are 0.5 and 0.8."""
    found = run(dpo(gap=0.6, form=form))
    assert torch.equal(found.value[0], sds(NOISE[1])[0])
    assert not torch.equal(found.value[1], sds(NOISE[0])[1])
    assert found.metrics["preference/small_gaps"] == 1
    alone = run(dpo(gap=math.inf, form=form))
    assert torch.equal(alone.value, torch.stack([sds(NOISE[1])[0], sds(NOISE[0])[1]]))
    assert alone.metrics["preference/small_gaps"] == B


def test_a_tie_is_the_first_alone():
    found = run(dpo(), Given(torch.full((2, B), 0.3)))
    assert torch.equal(found.value, sds(NOISE[0]))


def test_equal_noises_give_nothing_as_the_paper_has_it():
    found = run(dpo(), noise=NOISE[:1].repeat(2, 1, 1, 1, 1))
    assert found.value.abs().max() == 0


def test_equal_noises_leave_what_guidance_adds_as_the_code_has_it():
    """(w - 1) (e_y - e_n), because the loser's prediction is the conditional one."""
    prior, n = Seen(), NOISE[0]
    at = moment(prior, X, 0.5)
    x_t, t = at.noised(n[None])[0], torch.full((B,), 0.5)
    both = (at.conditions.positive, at.conditions.negative)
    e_y, e_n = (prior.predict(x_t, t, c, at.cameras) for c in both)
    found = run(dpo(form="code"), noise=torch.stack([n, n]))
    torch.testing.assert_close(found.value, (SCALE - 1) * (e_y - e_n), rtol=1e-10, atol=1e-12)
    assert found.value.abs().max() > 0.01


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_leaves_the_other_candidate_alone(bad):
    found = run(dpo(gap=0.0), Given(torch.tensor([[bad, bad], [-5.0, bad]])))
    assert torch.equal(found.value, torch.stack([sds(NOISE[1])[0], sds(NOISE[0])[1]]))
    assert found.metrics["preference/bad_rewards"] == 3


def test_a_broken_loser_spoils_nothing():
    noise = NOISE.clone()
    noise[1] = math.nan
    assert torch.equal(run(dpo(), Linear(), noise=noise).value, sds(NOISE[0]))


# What it costs, and groups of views


def test_a_pair_is_four_predictions_in_one_batch():
    prior = Seen()
    found = run(dpo(), prior=prior, noise=None)
    assert found.model_calls == 4 * B
    assert prior.batches == [4 * B]


def test_views_of_a_group_share_the_win_by_their_mean():
    """Each group has views that would decide otherwise alone."""
    x, prior = 0.5 * image("x", (8, 3, 4, 4)), Seen(views=4)
    noise = image("pair", (2, *x.shape))
    first = [0.0, 0.0, 0.0, 1.0, 0.9, 0.9, 0.9, 0.0]
    second = [0.1, 0.1, 0.1, 0.2, 0.8, 0.8, 0.8, 0.6]
    found = run(dpo(gap=0.1), Given(torch.tensor([first, second])), prior=prior, x=x, noise=noise)
    torch.testing.assert_close(
        found.rewards, torch.tensor([[0.25, 0.675], [0.125, 0.75]], dtype=torch.float64)
    )
    assert found.kept.tolist() == [[0] * 4 + [1] * 4, [1] * 4 + [0] * 4]
    a, b = (sds(n, prior=prior, x=x) for n in noise)
    expected = torch.cat([(a - b)[:4], b[4:]])  # the second group's gap is 0.075
    torch.testing.assert_close(found.value, expected, rtol=1e-12, atol=1e-13)
