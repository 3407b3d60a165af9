"""RewardSDS against its formulas: weights, estimates, and which candidates count. All in float64."""

import math
from itertools import pairwise

import pytest
import torch
from analytic import GaussianPrior, moment
from analytic_rewards import Given, GivenNoise, Linear, Seen, ensemble, image
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.config import GuidanceOptions, RewardOptions, VSDOptions, WeightedOptions
from splatgen.guidance.denoiser import amplitudes, cfg
from splatgen.guidance.distillation import gradient
from splatgen.guidance.preferences import NoPreference, Weighted
from splatgen.guidance.preferences.base import judge
from splatgen.guidance.preferences.weighted import omegas
from splatgen.guidance.scores import SDS, VSD
from splatgen.guidance.scores.base import gaussian
from splatgen.rewards.ensemble import RewardEnsemble

B, SHAPE = 2, (2, 3, 4, 4)
GUIDED = GuidanceOptions(scale=3.0, clamp=False)
X = 0.5 * image("x", SHAPE)

few = settings(max_examples=25)
rewards_lists = st.lists(st.floats(-3, 3), min_size=4, max_size=9, unique=True)


def options(**change):
    return WeightedOptions(**{"candidates": 4, "stop": 1.0, **change})


def given_rewards(values):
    return torch.tensor(values, dtype=torch.float64)


def run(preference, reward=None, *, score=None, prior=None, t=0.5, guided=GUIDED, x=X, **change):
    at = moment(prior or Seen(), x, t, options=guided, **change)
    return gradient(at, score or SDS(), preference, ensemble(reward or Linear()))


def sds(noise, **change):
    """The plain score with one given noise [B, C, h, w]."""
    return run(NoPreference(), score=GivenNoise(noise[None]), **change).value


def drawn(count, x=X):
    """The noises that every run here draws."""
    return gaussian(moment(Seen(), x, 0.5), count)


# The weights


@few
@given(rewards_lists, st.sampled_from(["softmax", "best", "min-max"]), st.integers(1, 2), st.integers(1, 2))
def test_weights_sum_to_one_or_to_the_difference_of_the_ends(values, strategy, top, bottom):
    """1 for softmax and best; 0.9 - 0.1 for min-max, (0.9 top - 0.1 bottom) / N as the paper writes it."""
    r, n = given_rewards(values), len(values)
    chosen = {"strategy": strategy, "top": top, "bottom": bottom, "candidates": n}
    mean, paper = (float(omegas(r, options(**chosen, normalise=m)).sum()) for m in ("mean", "paper"))
    expected = {"softmax": (1.0, 1.0 / n), "best": (1.0, top / n)}
    both = expected.get(strategy, (0.8, (0.9 * top - 0.1 * bottom) / n))
    assert (mean, paper) == (pytest.approx(both[0]), pytest.approx(both[1]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [-0.05, 0.45, -0.05, 0.45, 0.0]),
        ({"normalise": "paper"}, [-0.02, 0.18, -0.02, 0.18, 0.0]),
        ({"top": 1, "bottom": 1}, [-0.1, 0.0, 0.0, 0.9, 0.0]),
        ({"top": 3, "bottom": 2}, [-0.05, 0.3, -0.05, 0.3, 0.3]),
        ({"top": 1, "bottom": 4}, [-0.025, -0.025, -0.025, 0.9, -0.025]),
        ({"top": 5, "bottom": 0}, [0.18, 0.18, 0.18, 0.18, 0.18]),
        ({"strategy": "best"}, [0.0, 0.5, 0.0, 0.5, 0.0]),
        ({"strategy": "best", "normalise": "paper"}, [0.0, 0.2, 0.0, 0.2, 0.0]),
        ({"strategy": "best", "top": 1}, [0.0, 0.0, 0.0, 1.0, 0.0]),
    ],
)
def test_the_weights_of_five_rewards_by_hand(change, expected):
    found = omegas(given_rewards([-0.3, 0.5, -0.2, 0.9, 0.1]), options(candidates=5, **change))
    torch.testing.assert_close(found, given_rewards(expected))


def test_softmax_by_hand():
    """Rewards 0 and ln 3 weigh 1 : 3; at a temperature of a half 1 : 9."""
    r = given_rewards([0.0, math.log(3)])
    warm = omegas(r, options(strategy="softmax"))
    torch.testing.assert_close(warm, given_rewards([0.25, 0.75]))
    cool = omegas(r, options(strategy="softmax", temperature=0.5))
    torch.testing.assert_close(cool, given_rewards([0.1, 0.9]))


@few
@given(rewards_lists, st.floats(-50, 50))
def test_softmax_does_not_see_a_constant(values, constant):
    soft, r = options(strategy="softmax"), given_rewards(values)
    torch.testing.assert_close(omegas(r + constant, soft), omegas(r, soft), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_softmax_does_not_overflow(dtype):
    """e^89 is infinite in float32, e^12 in float16."""
    r = torch.tensor([2000.0, 1999.0, -3000.0], dtype=dtype)
    found = omegas(r, options(strategy="softmax"))
    expected = torch.tensor([1.0, math.exp(-1), 0.0]) / (1 + math.exp(-1))
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=1e-6)


@few
@given(rewards_lists, st.sampled_from(["softmax", "best", "min-max"]), st.randoms(use_true_random=False))
def test_weights_follow_their_rewards(values, strategy, random):
    order = list(range(len(values)))
    random.shuffle(order)
    r, o = given_rewards(values), options(strategy=strategy, candidates=len(values))
    torch.testing.assert_close(omegas(r[order], o), omegas(r, o)[order], rtol=1e-12, atol=0)


@few
@given(rewards_lists)
def test_without_its_worst_min_max_is_best(values):
    r = given_rewards(values)
    one = options(strategy="min-max", top=1, top_weight=1.0, bottom_weight=0.0)
    assert torch.equal(omegas(r, one), omegas(r, options(strategy="best", top=1)))


@few
@given(rewards_lists)
def test_the_temperature_goes_from_the_best_to_the_mean(values):
    r = given_rewards([round(v, 3) for v in values])
    cold = omegas(r, options(strategy="softmax", temperature=1e-7))
    share = (r == r.max()).double()  # rounding may have made two best ones
    torch.testing.assert_close(cold, share / share.sum())
    hot = omegas(r, options(strategy="softmax", temperature=1e9))
    torch.testing.assert_close(hot, torch.full_like(r, 1 / len(r)), rtol=1e-6, atol=0)


@few
@given(rewards_lists, st.integers(1, 2))
def test_turned_rewards_swap_best_and_worst(values, ends):
    r, o = given_rewards(values), options(top=ends, bottom=ends)
    up, down = omegas(r, o), omegas(-r, o)
    assert torch.equal(up > 0, down < 0)
    assert torch.equal(up < 0, down > 0)
    assert int((up > 0).sum()) == int((up < 0).sum()) == ends


# What is not a number, and what is equal


@pytest.mark.parametrize("strategy", ["softmax", "best", "min-max"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@few
@given(st.lists(st.booleans(), min_size=4, max_size=8).filter(any))
def test_what_is_not_finite_is_neither_best_nor_worst(strategy, bad, fine):
    r = torch.where(torch.tensor(fine), torch.arange(float(len(fine))), bad)
    found = omegas(r, options(strategy=strategy))
    assert torch.isfinite(found).all()
    assert (found[~torch.tensor(fine)] == 0).all()
    assert found[torch.tensor(fine)][-1] == found.max() > 0


@pytest.mark.parametrize("strategy", ["softmax", "best", "min-max"])
def test_without_a_finite_reward_the_first_candidate_stands_alone(strategy):
    r = torch.tensor([math.nan, math.inf, -math.inf])
    assert omegas(r, options(strategy=strategy)).tolist() == [1.0, 0.0, 0.0]


def test_best_and_worst_never_meet():
    """Two finite rewards of six: one is best and one worst, though two of each were asked for."""
    r = torch.tensor([math.nan, 1.0, math.nan, 2.0, math.inf, math.nan])
    torch.testing.assert_close(omegas(r, options()), torch.tensor([0, -0.1, 0, 0.9, 0, 0]))
    only = torch.tensor([math.nan, 1.0])
    assert omegas(only, options()).tolist() == [0.0, 1.0]


def test_two_candidates_are_a_best_and_a_worst():
    both = options(candidates=2, top=1, bottom=1)
    torch.testing.assert_close(omegas(given_rewards([1.0, 2.0]), both), given_rewards([-0.1, 0.9]))


def test_equal_rewards_weigh_alike():
    r = torch.full((5,), 0.7)
    for strategy in ("softmax", "min-max"):
        torch.testing.assert_close(omegas(r, options(strategy=strategy)), torch.full((5,), 0.2))
    assert omegas(r, options(strategy="best", top=1)).tolist() == [1, 0, 0, 0, 0]


def test_bad_rewards_are_counted_and_spoil_nothing():
    """The first item loses two candidates, the second one all: it is the plain score on the first noise."""
    values = torch.tensor([[math.nan, math.nan], [1.0, math.nan], [math.inf, math.nan], [0.0, math.nan]])
    found = run(Weighted(options(top=1, bottom=1)), Given(values))
    assert found.metrics["preference/bad_rewards"] == 6
    assert found.metrics["preference/reward_best"] == 1.0
    assert found.metrics["preference/reward_worst"] == 0.0
    noise = drawn(4)
    assert torch.equal(found.value[1], sds(noise[0])[1])
    expected = 0.9 * sds(noise[1]) - 0.1 * sds(noise[3])
    torch.testing.assert_close(found.value[0], expected[0], rtol=1e-12, atol=1e-12)


def test_a_candidate_without_weight_may_be_broken():
    """Its noise is NaN, so its reward is: the others go on without it, whatever else was kept beside."""
    noise = drawn(4).clone()
    noise[2, 0] = math.nan
    found = run(Weighted(options()), score=GivenNoise(noise))
    assert torch.isfinite(found.value).all()
    assert found.metrics["preference/bad_rewards"] == 1


# The direction


def test_one_candidate_is_the_plain_score_bit_for_bit():
    for score in (SDS(), None):
        plain = run(NoPreference(), score=score)
        one = run(Weighted(options(candidates=1)), score=score)
        assert torch.equal(one.value, plain.value)
        assert one.rewards is None
        assert one.model_calls == plain.model_calls


@pytest.mark.parametrize(("start", "stop", "step"), [(0.0, 0.5, 50), (0.3, 0.5, 29), (0.0, 0.0, 0)])
def test_outside_its_part_of_the_run_it_is_the_plain_score(start, stop, step):
    reward = Linear()
    found = run(Weighted(options(start=start, stop=stop)), reward, step=step)
    assert torch.equal(found.value, run(NoPreference(), step=step).value)
    assert reward.batches == []


@pytest.mark.parametrize("step", [30, 49])
def test_inside_its_part_of_the_run_it_acts(step):
    found = run(Weighted(options(start=0.3, stop=0.5)), step=step)
    assert found.rewards is not None
    assert not torch.equal(found.value, run(NoPreference(), step=step).value)


def test_the_first_candidate_is_the_one_of_the_plain_score():
    """So that methods are compared on the same noises."""
    assert torch.equal(run(Weighted(options())).x0[0], run(NoPreference()).x0[0])


@pytest.mark.parametrize("count", [2, 5])
def test_best_is_the_score_with_the_best_noise(count):
    found = run(Weighted(options(candidates=count, strategy="best", top=1)))
    best = found.rewards.argmax(0)  # [B]
    assert len(best) == B
    noise = drawn(count)[best, torch.arange(B)]
    assert torch.equal(found.value, sds(noise))
    assert torch.equal(found.kept, best[None])


def test_min_max_is_its_formula():
    """Two best less two worst of seven, each item by its own rewards."""
    found = run(Weighted(options(candidates=7)))
    order = found.rewards.argsort(0, descending=True)
    each = torch.stack([sds(n) for n in drawn(7)])
    for b in range(B):
        g, i = each[:, b], order[:, b]
        expected = 0.45 * (g[i[0]] + g[i[1]]) - 0.05 * (g[i[5]] + g[i[6]])
        torch.testing.assert_close(found.value[b], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.kept[:4], order[[0, 1, 5, 6]])
    assert not found.weights[4:].any()


@pytest.mark.parametrize(("change", "reward"), [({"temperature": 1e12}, None), ({}, Given(torch.ones(4, B)))])
def test_great_heat_and_equal_rewards_are_the_average(change, reward):
    found = run(Weighted(options(strategy="softmax", **change)), reward)
    average = torch.stack([sds(n) for n in drawn(4)]).mean(0)
    torch.testing.assert_close(found.value, average, rtol=1e-9, atol=1e-11)


def test_great_cold_is_the_best():
    cold = run(Weighted(options(strategy="softmax", temperature=1e-9))).value
    best = run(Weighted(options(strategy="best", top=1))).value
    torch.testing.assert_close(cold, best, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", ["softmax", "best", "min-max"])
def test_the_order_of_the_noises_does_not_matter(strategy):
    noise, chosen = drawn(5), Weighted(options(candidates=5, strategy=strategy))
    a = run(chosen, score=GivenNoise(noise)).value
    b = run(chosen, score=GivenNoise(noise[[3, 0, 4, 2, 1]])).value
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_turning_the_reward_turns_the_sets():
    one = options(candidates=4, top=2, bottom=2)
    up, down = run(Weighted(one), Linear()), run(Weighted(one), Linear(scale=-1.0))
    assert torch.equal(up.kept[:2].sort(0).values, down.kept[2:].sort(0).values)
    assert torch.equal(up.kept[2:].sort(0).values, down.kept[:2].sort(0).values)


class NoiseKnowing(GaussianPrior):
    """Its copy returns the noise that was added to x."""

    def adapter(self, rank, generator):
        prior, copy = self, super().adapter(rank, generator)

        def predict(x_t, t, condition, cameras, told):
            alpha, sigma = amplitudes(prior, t)
            x = X.repeat(len(x_t) // len(X), 1, 1, 1)
            return (x_t - alpha * x) / sigma + 0.0 * (copy.image.sum() + copy.turn.sum())

        copy.predict = predict
        return copy


@pytest.mark.parametrize("strategy", ["softmax", "best", "min-max"])
def test_a_copy_that_knows_the_noise_turns_rewardvsd_into_rewardsds(strategy):
    prior = NoiseKnowing(lambda cameras: torch.zeros(len(cameras), *SHAPE[1:]), spread=0.5, x_range=None)
    chosen = Weighted(options(strategy=strategy))
    vsd = run(chosen, prior=prior, score=VSD(VSDOptions(), prior, 0)).value
    torch.testing.assert_close(vsd, run(chosen, prior=prior).value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("top", "bottom", "counted"), [(1, 0, 1), (1, 1, 2), (2, 2, 4)])
def test_only_candidates_with_weight_reach_the_copy(top, bottom, counted):
    """RewardVSD adds N_w predictions of the copy, and one for its training, to those of RewardSDS."""
    prior = GaussianPrior(lambda cameras: torch.zeros(len(cameras), *SHAPE[1:]), spread=0.5, x_range=None)
    score = VSD(VSDOptions(), prior, 0)
    found = run(Weighted(options(candidates=6, top=top, bottom=bottom)), prior=prior, score=score)
    assert score.adapter.calls == (counted + 1) * B
    assert found.model_calls == (2 * 6 + counted + 1) * B
    assert len(found.kept) == counted


# The look-ahead


def literal(prior, at, noise, steps, scale):
    """Deterministic DDIM of one candidate [B, C, h, w] view by view: t itself, then the multiples of 1/S."""
    out = []
    for b in range(len(noise)):
        t, condition = float(at.t[b]), at.conditions.take(torch.tensor([b]))
        levels = [t, *(k / steps for k in range(steps - 1, -1, -1) if k / steps < t)]
        x = at.noised(noise[None])[0, b : b + 1]
        for here, there in pairwise(levels):
            times = torch.tensor([here], dtype=torch.float64), torch.tensor([there], dtype=torch.float64)
            (alpha, sigma), (alpha_to, sigma_to) = (prior.alpha_sigma(s) for s in times)
            both = (condition.positive, condition.negative)
            e_y, e_n = (prior.predict(x, times[0], c, at.cameras[b : b + 1]) for c in both)
            e = cfg(e_y, e_n, scale)
            x = alpha_to * (x - sigma * e) / alpha + sigma_to * e
        out.append(x)
    return torch.cat(out)


@pytest.mark.parametrize("steps", [1, 2, 4, 15])
@pytest.mark.parametrize(
    ("guidance", "scoring"),
    [(3.0, None), (3.0, 7.0), (3.0, 1.0), (3.0, 0.0), (1.0, 7.0), (1.0, None), (0.0, 2.0)],
)
def test_candidates_are_judged_on_a_literal_look_ahead(steps, guidance, scoring):
    """Three views at times of their own, one of them a multiple of 1/S."""
    x = 0.5 * image("x", (3, 3, 4, 4))
    t = torch.tensor([0.22, 0.5, 0.97], dtype=torch.float64)
    reward, prior = Given(torch.arange(6.0)), Seen()
    o = options(candidates=2, top=1, bottom=1, lookahead=steps, scale=scoring)
    found = run(
        Weighted(o), reward, prior=prior, t=t, x=x, guided=GuidanceOptions(scale=guidance, clamp=False)
    )
    at = moment(prior, x, t)
    scale = guidance if scoring is None else scoring
    expected = torch.cat([literal(prior, at, noise, steps, scale) for noise in drawn(2, x)])
    torch.testing.assert_close((math.pi * (reward.images - 0.5)).tan(), expected, rtol=1e-8, atol=1e-8)
    assert found.rewards.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_scoring_scale_leaves_the_direction_alone():
    """Same rewards, other scale: the loss keeps guidance.scale."""
    reward = torch.tensor([[0.0, 3.0], [1.0, 2.0], [2.0, 1.0], [3.0, 0.0]])
    own = run(Weighted(options(scale=9.0)), Given(reward)).value
    assert torch.equal(own, run(Weighted(options()), Given(reward)).value)


# What it costs


@pytest.mark.parametrize(("n", "steps", "t"), [(4, 1, 0.5), (3, 5, 0.5), (10, 15, 0.3), (2, 8, 0.97)])
def test_model_calls_are_two_for_every_candidate_and_level(n, steps, t):
    """2 N S(t), where S(t) counts t itself and the multiples of 1/S below it. Not + 2 N_w, as the papers'
    codes spend: the direction takes the first predictions of the look-ahead, which are its own."""
    prior = Seen()
    found = run(Weighted(options(candidates=n, lookahead=steps, top=1, bottom=1)), prior=prior, t=t)
    assert found.model_calls == prior.calls == 2 * n * math.ceil(steps * t) * B


def test_the_papers_setting_costs_161_predictions_on_average():
    """N = 10 and S = 15 (methods.md, section 3.6), over times 0.02 to 0.98: against 2 of the plain score."""
    x, prior = torch.zeros(96, 3, 1, 1, dtype=torch.float64), Seen()
    t = torch.linspace(0.02, 0.98, 96, dtype=torch.float64)
    found = run(Weighted(options(candidates=10, lookahead=15)), prior=prior, t=t, x=x)
    assert found.model_calls / 96 == pytest.approx(161, abs=2)
    assert prior.batches[0] == 2 * 10 * 96
    assert len(prior.batches) == 15


@pytest.mark.parametrize(("steps", "calls"), [(1, 1), (15, 8)])
def test_candidates_share_their_batches(steps, calls):
    for n in (2, 10):
        prior = Seen()
        run(Weighted(options(candidates=n, lookahead=steps, top=1, bottom=1)), prior=prior)
        assert prior.batches == [2 * n * B] * calls


def test_a_scoring_scale_beside_a_plain_guidance_costs_one_batch_more():
    """At a scale of 1 the negative was not asked for."""
    prior = Seen()
    plain = GuidanceOptions(scale=1.0, clamp=False)
    found = run(Weighted(options(scale=7.0)), prior=prior, guided=plain)
    assert prior.batches == [4 * B, 8 * B]
    assert found.model_calls == 12 * B


# Multi-view items


@pytest.mark.parametrize("strategy", ["softmax", "best", "min-max"])
def test_views_of_a_group_share_their_weights(strategy):
    """Two groups of four views: one reward, the mean, and one choice for each group."""
    values = image("rewards", (5, 8))
    x, prior = 0.5 * image("x", (8, 3, 4, 4)), Seen(views=4)
    t = torch.tensor([0.3] * 4 + [0.8] * 4, dtype=torch.float64)
    chosen = Weighted(options(candidates=5, strategy=strategy))
    found = run(chosen, Given(values), prior=prior, x=x, t=t)
    torch.testing.assert_close(found.rewards, values.view(5, 2, 4).mean(2))
    assert (found.kept.view(-1, 2, 4) == found.kept.view(-1, 2, 4)[..., :1]).all()
    each = torch.stack([sds(n, prior=prior, x=x, t=t) for n in drawn(5, x)])
    for g, views in enumerate((slice(0, 4), slice(4, 8))):
        weights = omegas(found.rewards[:, g], chosen.options)[:, None, None, None, None]
        torch.testing.assert_close(
            found.value[views], (weights * each[:, views]).sum(0), rtol=1e-11, atol=1e-12
        )


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_estimates_are_decoded_and_judged_in_parts(batch):
    """--reward.batch: what does not fit at once comes in parts, and the rewards are the same."""
    sizes = []

    class Counting(Seen):
        def decode(self, x):
            sizes.append(len(x))
            return super().decode(x)

    at = moment(Counting(), X, 0.5, options=GUIDED)
    sizes.clear()  # the moment has a picture, too
    estimates = torch.stack([X, -X, 0.5 * X, 0.1 * X])
    whole = RewardEnsemble(rewards=(Linear(),), weights=(1.0,), options=RewardOptions())
    parts = RewardEnsemble(rewards=(Linear(),), weights=(1.0,), options=RewardOptions(batch=batch))
    torch.testing.assert_close(
        judge(at, estimates, parts), judge(at, estimates, whole), rtol=1e-12, atol=1e-12
    )
    *small, all_at_once = sizes
    assert sum(small) == all_at_once == 4 * B
    assert max(small) == batch
