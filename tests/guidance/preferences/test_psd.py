"""PSD against its formulas: the pair, its adaptive scale, and the negative that learns. In float64."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from analytic import moment
from analytic_rewards import Given, GivenNoise, Linear, Near, Seen, ensemble, image

from splatgen.config import GuidanceOptions, PSDOptions
from splatgen.guidance.denoiser import Guided
from splatgen.guidance.distillation import gradient
from splatgen.guidance.preferences import PSD, Choice, NoPreference
from splatgen.guidance.scores import SDS
from splatgen.guidance.scores.base import gaussian
from splatgen.runs import packing
from splatgen.scene.cameras import turntable

B, SHAPE, SCALE = 2, (2, 3, 4, 4), 3.0
GUIDED = GuidanceOptions(scale=SCALE, clamp=False)
PERP_NEG = GuidanceOptions(scale=SCALE, clamp=False, view_prompts="blend", perp_neg=True)
X = 0.5 * image("x", SHAPE)
NOISE = gaussian(moment(Seen(), X, 0.5), 2)
APART = Given(torch.tensor([[0.2, 0.9], [0.7, 0.1]]))  # the second wins for one view, the first for the other
GAPS = torch.tensor([0.5, 0.8], dtype=torch.float64)


def run(
    preference, reward=None, *, noise=NOISE, prior=None, x=X, t=0.5, guided=GUIDED, negative="", **change
):
    prior = prior or Seen()
    row = preference.negative(prior.embed([negative]))
    at = moment(prior, x, t, options=guided, negative=row, **change)
    return gradient(
        at, GivenNoise(noise) if noise is not None else SDS(), preference, ensemble(reward or APART)
    )


def sds(noise, **change):
    return run(NoPreference(), noise=noise[None], **change).value


def psd(**change):
    return PSD(PSDOptions(**{"learn": False, **change}))


def predictions(noise, *, x=X, t=0.5, guided=GUIDED, prior=None, negative=""):
    """e_y, e_n and the guided prediction of one noise, each [B, C, h, w]."""
    prior = prior or Seen()
    at = moment(prior, x, t, options=guided, negative=negative)
    found = at.guided(at.noised(noise[None])).map(lambda z: z[0])
    return found.conditional, found.base, found.eps


def norms(z):
    return z.flatten(1).norm(dim=1)


def won(first, second):
    """Of the pair the winner's by APART, and the loser's."""
    return torch.stack([second[0], first[1]]), torch.stack([first[0], second[1]])


# The pair


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_the_direction_is_its_formula(rho, temperature, t):
    """d_gen + gamma d_cls + beta d_pref, term by term."""
    gamma = SCALE - 1
    (y0, n0, e0), (y1, n1, e1) = (predictions(n, t=t) for n in NOISE)
    e_y, _ = won(y0, y1)
    e_n, _ = won(n0, n1)
    e_win, e_lose = won(e0, e1)
    noise_win, noise_lose = won(*NOISE)
    d_gen, d_cls = e_y - noise_win, e_y - e_n
    d_pref = (e_win - rho * noise_win) - (e_lose - rho * noise_lose)
    beta = gamma * norms(d_cls) / norms(d_pref) * torch.sigmoid(-GAPS / temperature)
    expected = d_gen + gamma * d_cls + beta.view(-1, 1, 1, 1) * d_pref
    found = run(psd(rho=rho, temperature=temperature), t=t)
    # Rewards are float32 numbers: 0.7 - 0.2 is not quite 0.5.
    torch.testing.assert_close(found.value, expected, rtol=1e-6, atol=1e-6)
    assert found.kept.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("rho", [0.0, 1.0])
@pytest.mark.parametrize("guided", [GUIDED, PERP_NEG])
def test_the_term_has_the_norm_of_guidance_times_the_doubt(rho, guided):
    """|beta d_pref| = gamma |d_cls| sigmoid(-gap), exactly, whatever d_pref is."""
    reward = Given(GAPS.new_tensor([[0.25, 1.0], [0.75, 0.5]]))
    found = run(psd(rho=rho), reward, guided=guided)
    (y0, _, e0), (y1, _, e1) = (predictions(n, guided=guided) for n in NOISE)
    gaps = GAPS.new_tensor([0.5, 0.5])
    plain = torch.stack([(e1 - NOISE[1])[0], (e0 - NOISE[0])[1]])
    added = torch.stack([(e1 - y1)[0], (e0 - y0)[1]])  # what guidance, and Perp-Neg, add
    torch.testing.assert_close(
        norms(found.value - plain), norms(added) * torch.sigmoid(-gaps), rtol=1e-12, atol=0
    )
    assert found.metrics["preference/gap"] == 0.5
    assert found.metrics["preference/strength"] == pytest.approx(float(torch.sigmoid(-gaps[0])))


def test_doubt_is_largest_at_a_tie_and_a_clear_win_is_the_plain_score():
    tie = run(psd(), Given(torch.zeros(2, B)))
    y, _, e = predictions(NOISE[0])
    torch.testing.assert_close(norms(tie.value - sds(NOISE[0])), 0.5 * norms(e - y), rtol=1e-12, atol=0)
    clear = run(psd(), Given(torch.tensor([[900.0] * B, [0.0] * B])))
    assert torch.equal(clear.value, sds(NOISE[0]))


def test_the_order_of_the_noises_does_not_matter():
    turned = run(psd(), Given(APART.values.flip(0)), noise=NOISE.flip(0))
    assert torch.equal(turned.value, run(psd()).value)


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_equal_noises_are_the_plain_score(rho):
    found = run(psd(rho=rho), noise=NOISE[:1].repeat(2, 1, 1, 1, 1))
    assert torch.equal(found.value, sds(NOISE[0]))


def test_a_negative_like_the_prompt_is_the_plain_score():
    """Then guidance adds nothing, and the term has its norm."""
    options = GuidanceOptions(scale=SCALE, clamp=False, view_prompts="none")
    found = run(psd(), guided=options, negative="a")
    expected, _ = won(
        sds(NOISE[0], guided=options, negative="a"), sds(NOISE[1], guided=options, negative="a")
    )
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-14)


def test_within_the_gap_there_is_no_term():
    found = run(psd(gap=0.6))
    assert torch.equal(found.value[0], sds(NOISE[1])[0])
    assert torch.equal(found.value[1], run(psd()).value[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_leaves_the_other_candidate_alone(bad):
    found = run(psd(), Given(torch.tensor([[bad, bad], [-5.0, bad]])))
    assert torch.equal(found.value, torch.stack([sds(NOISE[1])[0], sds(NOISE[0])[1]]))
    assert found.metrics["preference/bad_rewards"] == 3
    assert math.isfinite(found.metrics["preference/gap"])


def test_a_broken_loser_spoils_nothing():
    noise = NOISE.clone()
    noise[1] = math.nan
    assert torch.equal(run(psd(), Linear(), noise=noise).value, sds(NOISE[0]))


def test_norms_are_those_of_each_item():
    """Two items in a batch move as each does alone."""
    x = X * torch.tensor([1.0, 30.0]).view(2, 1, 1, 1)
    both, cameras = run(psd(), x=x).value, turntable(B, size=4)
    for b in range(B):
        s = slice(b, b + 1)
        alone = run(psd(), Given(APART.values[:, s]), x=x[s], noise=NOISE[:, s], cameras=cameras[s])
        torch.testing.assert_close(both[s], alone.value, rtol=1e-12, atol=1e-13)


def test_views_of_a_group_share_reward_norm_and_term():
    x, prior = 0.5 * image("x", (8, 3, 4, 4)), Seen(views=4)
    noise = image("pair", (2, *x.shape))
    values = torch.tensor([[0.0, 0.0, 0.0, 1.0] * 2, [0.1, 0.1, 0.1, 0.2] * 2])
    found = run(psd(), Given(values), prior=prior, x=x, noise=noise)
    assert found.kept.tolist() == [[0] * 8, [1] * 8]  # 0.25 against 0.125 on the average
    (y, _, e), (_, _, e_lose) = (predictions(n, x=x, prior=prior) for n in noise)
    d_pref = (e - noise[0]) - (e_lose - noise[1])
    doubt = float(torch.sigmoid(torch.tensor(-0.125)))
    for views in (slice(0, 4), slice(4, 8)):
        beta = doubt * (e - y)[views].norm() / d_pref[views].norm()
        expected = (e - noise[0] + beta * d_pref)[views]
        torch.testing.assert_close(found.value[views], expected, rtol=1e-6, atol=1e-6)


def test_half_precision_does_not_overflow():
    """Norms of 16,384 numbers around 200 are 25,600, their squares are beyond float16."""
    shape, half = (1, 4, 64, 64), torch.float16

    def big(purpose):
        return (200.0 * image(purpose, (2, *shape))).to(half)

    e_y, e_n = big("y"), big("n")
    tries = Guided(
        eps=e_n + 2.0 * (e_y - e_n), x0=e_y, conditional=e_y, base=e_n, direction=e_y - e_n, scale=2.0
    )
    at = moment(Seen(), torch.zeros(shape, dtype=half), 0.5)
    choice = Choice(kept=torch.tensor([[0], [1]]), weights=torch.tensor([[1.0], [0.25]]))
    residuals = tries.eps - big("noise")
    found = psd().combine(at, tries, residuals, choice)
    assert found.dtype == half
    term = (found - residuals[0]).float().norm()
    assert float(term) == pytest.approx(0.25 * float(tries.classifier[0].float().norm()), rel=1e-2)
    apart = torch.full_like(residuals[0], 2.0**-24)  # the ratio of the norms is beyond float16, too
    found = psd().combine(at, tries, torch.stack([apart, torch.zeros_like(apart)]), choice)
    size = 0.25 * float(tries.classifier[0].float().norm())
    assert float((found - apart).float().norm()) == pytest.approx(size, rel=1e-2)


# The negative that learns


def learning(**change):
    return PSD(PSDOptions(**{"learn": True, "interval": 1, "t_limit": 1.0, "lr": 1e-2, **change}))


def negative(preference):
    return copy.deepcopy(preference.state_dict()["negative"])["colour"]


def climbed(preference):
    """The gradient of the reward that Adam saw first: its moment is (1 - 0.9) times that, downhill."""
    (state,) = preference.state_dict()["optimizer"]["state"].values()
    return -state["exp_avg"] / 0.1


def reward_of(row, reward, rows, t, prior, guided):
    """The mean reward of the winners' estimates (APART's) with a negative [1, 3]."""
    at = moment(prior, X, t, options=guided, negative="bad")
    x_t, _ = won(*at.noised(NOISE))
    found = at.guided(x_t[None]).map(lambda z: z[0])
    aside = found.direction - (found.conditional - found.base)
    e_n = prior.predict(x_t, at.t, {"colour": row.expand(B, 3)}, at.cameras)
    alpha, sigma = at.amplitudes()
    x0 = (x_t - sigma * (e_n + SCALE * (found.conditional - e_n + aside))) / alpha
    return reward(prior.decode(x0), ("a",) * B)[rows].mean()


class Ranked(Linear):
    """Ranks as APART does; scores estimates by another reward."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __call__(self, images, prompts):
        if not images.requires_grad:
            return APART(images, prompts)
        return self.inner(images, prompts)


@pytest.mark.parametrize("reward", [Linear(scale=5.0), Near()])
@pytest.mark.parametrize("guided", [GUIDED, PERP_NEG])
@pytest.mark.parametrize(("t", "rows"), [((0.3, 0.5), [0, 1]), ((0.3, 0.8), [0]), ((0.9, 0.6), [1])])
def test_its_gradient_is_the_slope_of_the_winners_reward(reward, guided, t, rows):
    """Central differences in float64; only items at times up to the limit count."""
    prior, t = Seen(), torch.tensor(t, dtype=torch.float64)
    preference = learning(t_limit=0.6)
    found = run(preference, Ranked(reward), prior=prior, t=t, guided=guided, negative="bad")
    start, h = prior.embed(["bad"])["colour"], 1e-5
    slopes = []
    for step in h * torch.eye(3, dtype=torch.float64):
        up, down = (reward_of(start + s * step, reward, rows, t, prior, guided) for s in (1, -1))
        slopes.append((up - down) / (2 * h))
    torch.testing.assert_close(climbed(preference), torch.stack(slopes)[None], rtol=1e-6, atol=1e-9)
    assert climbed(preference).norm() > 1e-4
    middle = reward_of(start, reward, rows, t, prior, guided)
    assert found.metrics["preference/negative_reward"] == pytest.approx(float(middle))
    torch.testing.assert_close(
        negative(preference) - start, 1e-2 * climbed(preference).sign(), rtol=1e-3, atol=0
    )


def test_it_starts_as_the_given_negative_and_guides_from_then_on():
    prior, preference = Seen(), learning()
    given = prior.embed(["bad"])
    assert torch.equal(preference.negative(given)["colour"], given["colour"])
    run(preference, prior=prior, reward=Linear(), negative="bad")
    now = preference.negative(given)["colour"]
    assert not torch.equal(now, given["colour"])
    assert torch.equal(given["colour"], prior.embed(["bad"])["colour"])  # the prompt's own row is left alone
    moved = run(preference, prior=prior, reward=Linear(), negative="bad").value
    assert not torch.equal(moved, run(learning(), prior=prior, reward=Linear(), negative="bad").value)


def test_the_step_itself_is_guided_by_the_negative_as_it_was():
    a, b = learning(lr=0.5), psd()
    assert torch.equal(run(a, Linear(), negative="bad").value, run(b, Linear(), negative="bad").value)


def test_a_rate_of_0_leaves_it_and_without_learning_it_is_given():
    preference, given = learning(lr=0.0), Seen().embed(["bad"])
    for step in range(3):
        run(preference, Linear(), negative="bad", step=step)
    assert torch.equal(negative(preference), given["colour"])
    assert psd().negative(given) is given
    assert psd().state_dict() == {}


def test_a_small_rate_climbs_a_smooth_reward():
    preference = learning(lr=1e-2)
    seen = [run(preference, Near(), negative="bad").metrics["preference/negative_reward"] for _ in range(25)]
    assert all(b > a for a, b in pairwise(seen))


def test_it_learns_every_few_iterations_whatever_the_time():
    preference = learning(interval=3)
    found = [run(preference, Linear(), step=n, t=0.1 + 0.09 * n) for n in range(8)]
    assert ["preference/negative_reward" in f.metrics for f in found] == [n in (0, 3, 6) for n in range(8)]
    assert [f.model_calls for f in found] == [(5 if n in (0, 3, 6) else 4) * B for n in range(8)]


def test_beyond_the_limit_it_does_not_learn_and_costs_nothing():
    preference, prior = learning(t_limit=0.4), Seen()
    t = torch.tensor([0.3, 0.5], dtype=torch.float64)
    assert run(preference, Linear(), prior=prior, t=t).model_calls == prior.calls == 4 * B + 1
    before = negative(preference)
    assert run(preference, Linear(), t=0.5).model_calls == 4 * B
    assert torch.equal(negative(preference), before)


def test_a_pair_is_four_predictions_in_one_batch_and_learning_one_more():
    prior = Seen()
    run(learning(), Linear(), prior=prior, noise=None)
    assert prior.batches == [4 * B, B]


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (89, 1.0), (90, 1.0), (95, 0.5), (99, 0.1)])
def test_its_rate_falls_to_0_in_the_last_share_of_the_run(step, share):
    preference = learning(lr=0.4, anneal=0.1)
    run(preference, Linear(), step=step, steps=100)
    (group,) = preference.state_dict()["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(0.4 * share)


@pytest.mark.parametrize("bad", ["reward", "gradient"])
def test_what_is_not_finite_is_not_learned(bad):
    class Broken(Linear):
        def __call__(self, images, prompts):
            if bad == "reward":
                return super().__call__(images, prompts) * math.nan
            return (images - images.detach()).flatten(1).abs().sqrt().sum(1)  # 0, with an infinite slope

    preference = learning()
    found = run(preference, Ranked(Broken()), negative="bad")
    assert found.metrics["preference/bad_negative"] == 1
    assert torch.equal(negative(preference), Seen().embed(["bad"])["colour"])
    run(preference, Linear(), negative="bad")
    assert torch.isfinite(negative(preference)).all()


def test_nothing_is_left_on_prior_and_reward():
    """The gradient passes through both and stays on neither."""
    prior, reward = Seen(), Linear()
    prior.knob, reward.knob = (torch.nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(2))
    predict, score = prior.predict, reward.__call__
    prior.predict = lambda *inputs: prior.knob * predict(*inputs)
    used = type("Used", (Linear,), {"__call__": lambda self, *inputs: reward.knob * score(*inputs)})()
    preference = learning()
    found = run(preference, used, prior=prior, negative="bad")
    assert climbed(preference).norm() > 0
    assert prior.knob.grad is None
    assert reward.knob.grad is None
    assert not found.value.requires_grad
    assert not preference.negative(prior.embed(["bad"]))["colour"].requires_grad


@pytest.mark.parametrize("early", [True, False])
def test_what_it_learned_survives_a_checkpoint(early):
    """Restored before or after the first call of `negative`; the steps that follow are the same."""
    given = Seen().embed(["bad"])
    whole, half = learning(), learning()
    for step in range(3):
        run(whole, Near(), negative="bad", step=step)
        run(half, Near(), negative="bad", step=step)
    tensors, rest = packing.pack(copy.deepcopy(half.state_dict()))
    again = learning()
    if not early:
        again.negative(given)
    again.load_state_dict(packing.unpack(tensors, rest))
    kept = again.state_dict()  # saved once more, before anything was done
    assert torch.equal(kept["negative"]["colour"], negative(whole))
    assert torch.equal(again.negative(given)["colour"], negative(whole))
    for step in range(3, 6):
        assert torch.equal(
            run(again, Near(), negative="bad", step=step).value,
            run(whole, Near(), negative="bad", step=step).value,
        )
    assert torch.equal(negative(again), negative(whole))


def test_nothing_learned_is_nothing_to_restore():
    preference = learning()
    preference.load_state_dict(preference.state_dict())
    assert preference.state_dict() == {}
    assert torch.equal(preference.negative(Seen().embed(["bad"]))["colour"], Seen().embed(["bad"])["colour"])
