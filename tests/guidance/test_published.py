"""Equations and numbers of the published codes, written down again one by one and held against ours.

In float64, on a smooth denoiser in which everything tells (GroupPrior). What presets set is in
test_presets_published.py.
"""

import math

import pytest
import torch
from analytic import GroupPrior, moment, normal
from analytic_rewards import Given, GivenNoise, Near, Seen, ensemble

from splatgen.config import (
    AscentOptions,
    BridgeOptions,
    GuidanceOptions,
    NFSDOptions,
    PSDOptions,
    SDIOptions,
    WeightedOptions,
)
from splatgen.guidance.distillation import annealed_time, draw_times, dreamtime, gradient, time_range
from splatgen.guidance.inversion import falling
from splatgen.guidance.preferences import PSD, Ascent, NoPreference, Weighted
from splatgen.guidance.scores import CSD, NFSD, SDI, SDS, Bridge
from splatgen.runs.rng import rng

X = normal("x", 2, 3, 6, 6)
NOISE = normal("n", 2, 3, 6, 6)


def run(score, preference=None, *, t=0.5, prior=None, rewards=None, x=X, **change):
    prior = prior or GroupPrior(1)
    guided = GuidanceOptions(**{"scale": 7.5, "clamp": False, "view_prompts": "none", **change.pop("o", {})})
    at = moment(prior, x, t, options=guided, **change)
    return gradient(at, score, preference or NoPreference(), rewards)


def drawn(step=0, x=X):
    """The noise of a step that draws it."""
    return torch.randn(x.shape, generator=rng(0, step, "noise")).double()


def e(text, t=0.5, n=None, x=X, prior=None):
    """The prediction for a text, of alpha x + sigma n."""
    prior, n = prior or GroupPrior(1), drawn(x=x) if n is None else n
    at = moment(prior, x, t)
    alpha, sigma = at.amplitudes()
    return prior.predict(alpha * x + sigma * n, at.t, prior.embed([text] * len(x)), at.cameras)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# Weights, limits, scales


class Flow(GroupPrior):
    """A flow: alpha = 1 - t, sigma = t."""

    def alpha_sigma(self, t):
        sigma = t.view(-1, 1, 1, 1)
        return 1.0 - sigma, sigma


def test_flow_weighting_is_the_residual_of_velocities():
    """RFDS (rectified_flow_prior): the target of n - x is v_n + w (v_y - v_n)."""
    found = run(SDS(), t=0.3, prior=Flow(1), o={"scale": 100.0, "weighting": "flow"}, negative="b").value
    n, x_t = drawn(), 0.7 * X + 0.3 * drawn()
    v_y, v_n = ((e(p, 0.3, prior=Flow(1)) - x_t) / 0.7 for p in ("a", "b"))
    close(found, v_n + 100.0 * (v_y - v_n) - (n - X))


def test_stable_diffusion_3s_times_are_the_samplers():
    """RFDS draws rows 300 to 980 of a falling table: s = 0.70 to 0.02, each 3 s / (1 + 2 s)."""
    options = GuidanceOptions(t_min=0.02, t_max=(0.7, 0.7), shift=3.0, times="random")
    t = draw_times(options, SDS(), 0.0, 681, rng(0, 0, "time")).double().sort().values
    s = torch.linspace(0.02, 0.7, 681, dtype=torch.float64)
    torch.testing.assert_close(t, 3.0 * s / (1.0 + 2.0 * s), rtol=0, atol=4e-3)
    assert (float(t.min()), float(t.max())) == pytest.approx((0.0577, 0.875), abs=4e-3)


def test_dmd_weighs_by_the_mean_residual_of_a_view():
    """Consistent Flow Distillation: (e - n) / (mean |e - n| + 1e-8)."""
    r = e("b") + 7.5 * (e("a") - e("b")) - drawn()
    close(
        run(SDS(), o={"weighting": "dmd"}, negative="b").value,
        r / (r.abs().mean((1, 2, 3), keepdim=True) + 1e-8),
    )


@pytest.mark.parametrize(("step", "limit"), [(0, 1.5), (500, 1.75), (1000, 2.0), (1199, 2.0)])
def test_the_gradient_is_clamped_as_gaussiandreamer_does(step, limit):
    """grad_clip [0, 1.5, 2.0, 1000] of 1,200 steps, after w(t)."""
    o = {"scale": 101.0, "weighting": "sds", "clip": (1.5, 2.0), "clip_over": (0.0, 1000 / 1200)}
    found = run(SDS(), o=o, step=step, steps=1200, negative="b").value
    n = drawn(step)
    y, b = (e(p, n=n) for p in ("a", "b"))
    whole = 0.5 * (y + 100.0 * (y - b) - n)
    assert (whole.abs() > limit).any()
    close(found, whole.clamp(-limit, limit))


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(
    ("uncond", "null", "until", "scales"),
    [
        ((0.0, -1.0), (-1.0, 0.0), 0.5, {"scale": 1.0, "scale_end": 2.0, "null_scale": (1.0, 0.0)}),
        ((-1.0, -0.5), (0.0, -0.5), 1.0, {"scale": 2.0, "scale_end": 1.5, "null_scale": (0.0, 0.5)}),
    ],
    ids=["csd-if", "csd-sd-refine"],
)
def test_csd_has_its_published_branches(fraction, uncond, null, until, scales):
    """Its yamls: cond 1, uncond and null from one to the other over `until`, noise 0."""
    done = min(fraction / until, 1.0)
    a, b = (first + (last - first) * done for first, last in (uncond, null))
    o = {**scales, "scale_over": (0.0, until), "weighting": "sds"}
    step = round(100 * fraction)
    n = drawn(step)
    expected = 0.5 * (e("a", n=n) + a * e("b", n=n) + b * e("", n=n))
    close(run(CSD(), o=o, step=step, negative="b").value, expected)


def test_csd_at_a_scale_of_0_is_its_formula_too():
    close(run(CSD(), o={"scale": 0.0}, negative="b").value, e("b") - e("a"))


@pytest.mark.parametrize("t", [0.1, 0.199, 0.2, 0.9])
def test_nfsd_is_its_formula(t):
    """delta_D is e_0 below t = 200 of 1000, else e_0 - e_n; 7.5 times delta_C, e_y - e_0."""
    found = run(NFSD(NFSDOptions()), t=t, negative="ugly").value
    null = e("", t)
    close(found, (null if t < 0.2 else null - e("ugly", t)) + 7.5 * (e("a", t) - null))


def test_nfsds_views_have_times_of_their_own():
    t = torch.tensor([0.1, 0.6], dtype=torch.float64)
    found = run(NFSD(NFSDOptions()), t=t, negative="ugly").value
    null = e("", t)
    flaws = torch.cat([torch.zeros_like(X[:1]), e("ugly", t)[1:]])
    close(found, null - flaws + 7.5 * (e("a", t) - null))


@pytest.mark.parametrize("scale", [40.0, 1.0])
def test_a_bridge_is_sds_and_then_its_second_pair(scale):
    """SDS-Bridge in 2D: from step 500 of 1,000 on w 40 (e_{y, quality} - e_{y, flaws}), and no noise."""
    words = BridgeOptions(quality="sharp", flaws="smooth, blurry")
    o = {"scale": scale, "weighting": "sds"}
    first = run(Bridge(words), o=o, step=499, steps=1000, pair=words)
    n = drawn(499)
    close(first.value, 0.5 * (e("", n=n) + scale * (e("a", n=n) - e("", n=n)) - n))
    second = run(Bridge(words), o=o, step=500, steps=1000, pair=words)
    n = drawn(500)
    expected = 0.5 * scale * (e("a, sharp", n=n) - e("a, smooth, blurry", n=n))
    if scale != 1.0:
        close(second.value, expected)
    assert second.value.abs().max() > 0 or scale == 1.0


# Times


@pytest.mark.parametrize("fraction", [0.0, 0.04, 0.25, 0.81, 1.0])
def test_sqrt_times_are_threestudios(fraction):
    """(max - min) (1 - sqrt(step / steps)) + min, HiFA's."""
    options = GuidanceOptions(t_min=0.02, t_max=(0.98, 0.5))
    expected = (0.98 - 0.02) * (1.0 - fraction**0.5) + 0.02
    assert annealed_time(options, fraction, "sqrt") == pytest.approx(expected)


def weight_of(t):
    if t > 800:
        return math.exp(-((t - 800) ** 2) / (2 * 300**2))
    return math.exp(-((t - 500) ** 2) / (2 * 100**2)) if t < 500 else 1.0


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.77, 0.999])
def test_dreamtimes_times_are_its_own(fraction):
    """The t whose tail of weights is nearest to i / N; m = 800, 500 and s = 300, 100 of 1000."""
    weights = [weight_of(t) for t in range(1, 1001)]
    tails = [sum(weights[t - 1 :]) / sum(weights) for t in range(1, 1001)]
    nearest = min(range(1000), key=lambda n: abs(tails[n] - fraction))
    assert dreamtime(fraction) == pytest.approx((nearest + 1) / 1000, abs=1.1e-3)


def test_dreamtime_stays_in_the_range_and_never_rises():
    options = GuidanceOptions(t_min=0.02, t_max=(0.98, 0.5), times="dreamtime")
    found = [float(draw_times(options, SDS(), n / 200, 1, rng(0, 0, "t"))) for n in range(201)]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == pytest.approx((0.98, 0.02))


def test_one_random_time_for_all_views_is_lucid_dreamers():
    """ind_t is one number a step there; with `random` every view has its own."""
    options = GuidanceOptions(t_min=0.02, t_max=(0.5, 0.5), times="shared")
    found = [draw_times(options, SDS(), 0.0, 4, rng(0, step, "time")) for step in range(50)]
    assert all(len(t.unique()) == 1 and t.shape == (4,) for t in found)
    lowest, *_, highest = sorted(float(t[0]) for t in found)
    assert 0.02 <= lowest < 0.1
    assert 0.4 < highest <= 0.5


def test_lucid_dreamers_range_of_times_is_expressible():
    """max_step + warmup_step (1 - step / 1500): 0.98 at first, 0.5 from step 1,500 of 5,000 on."""
    options = GuidanceOptions(t_min=0.02, t_max=(0.98, 0.5), anneal=(0.0, 0.3))
    found = [time_range(options, step / 5000) for step in (0, 750, 1500, 5000)]
    assert found == [pytest.approx((0.02, high)) for high in (0.98, 0.74, 0.5, 0.5)]


# Several reverse steps


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_probability_flow_distillation_pulls_to_where_the_flow_leads(steps):
    """G = x - x0, x0 by deterministic DDIM from the inverted x_t down to 0 in equal guided steps."""
    options = SDIOptions(reverse=steps, entropy=0.0, tau=0.0)
    prior = GroupPrior(1)
    o = {"scale": 2.0, "weighting": "sigma"}
    at = moment(prior, X, 0.6, options=GuidanceOptions(clamp=False, view_prompts="none", **o))
    y = at.noised(SDI(options).noises(at, 1).noise)[0]
    for k in range(steps):
        here, there = (0.6 * (1 - n / steps) for n in (k, k + 1))
        t = torch.full((2,), here, dtype=torch.float64)
        told = (prior.predict(y, t, prior.embed([p] * 2), at.cameras) for p in ("a", ""))
        y_e, null = told
        guided = null + 2.0 * (y_e - null)
        (a, b), (c, d) = ((math.cos(math.pi / 2 * z), math.sin(math.pi / 2 * z)) for z in (here, there))
        y = c * (y - b * guided) / a + d * guided
    found = run(SDI(options), t=0.6, o=o)
    close(found.value, X - y)


# Preferences


def test_in_the_pure_phase_the_render_is_judged_at_every_time():
    """DreamReward's code, after step 9,800: 1e6 relu(4 - r(render)), also at t below 0.1."""
    seen = []

    class Looking(Near):
        def __call__(self, images, prompts):
            seen.append(images.detach())
            return super().__call__(images, prompts)

    chosen = Ascent(AscentOptions(start=0.6, pure=0.02, straight_through=0.1))
    run(SDS(), chosen, t=0.05, rewards=ensemble(Looking()), prior=Seen(), step=9900, steps=10_000)
    (looked,) = seen
    assert torch.equal(looked, Seen().decode(X))


@pytest.mark.parametrize("start", [0.98, 0.5, 0.0713, 0.03])
def test_the_look_ahead_has_the_grid_of_the_official_3d_code(start):
    """t itself, then those of linspace(0, 999, 15) that are below it, as whole numbers there."""
    grid = [999 * k / 14 / 1000 for k in range(14, -1, -1)]
    expected = [start, *(level for level in grid if level < start - 1e-12)]
    found = falling(torch.tensor([start], dtype=torch.float64), 15, closed=True)[:, 0].tolist()
    assert found[: len(expected)] == pytest.approx(expected, abs=1e-12)
    assert all(level == 0 for level in found[len(expected) :])


@pytest.mark.parametrize("levels", ["steps", "code"])
def test_the_look_ahead_does_not_rescale(levels):
    """The official code's scoring is plain guidance, whatever the loss does."""
    chosen = WeightedOptions(candidates=2, top=1, bottom=1, lookahead=4, scale=5.0, levels=levels, stop=1.0)
    given = [Given(torch.arange(4.0)) for _ in range(2)]
    for reward, rescale in zip(given, (0.0, 0.7), strict=True):
        run(SDS(), Weighted(chosen), rewards=ensemble(reward), prior=Seen(), o={"rescale": rescale})
    torch.testing.assert_close(given[0].images, given[1].images, rtol=1e-12, atol=1e-12)


def test_one_step_of_scoring_at_the_losss_scale_does_not_rescale_either():
    given = [Given(torch.arange(4.0)) for _ in range(2)]
    for reward, rescale in zip(given, (0.0, 0.7), strict=True):
        chosen = Weighted(WeightedOptions(candidates=2, top=1, bottom=1, stop=1.0))
        run(SDS(), chosen, rewards=ensemble(reward), prior=Seen(), o={"rescale": rescale})
    torch.testing.assert_close(given[0].images, given[1].images, rtol=1e-12, atol=1e-12)


def test_psds_scale_is_of_what_guidance_comes_to_after_rescaling():
    """|beta d_pref| = |e_win - e_y| sigmoid(-gap), with the rescaled e_win that the pair is made of."""
    noise = torch.stack([NOISE, normal("m", 2, 3, 6, 6)])
    reward = Given(torch.tensor([2.0, 2.0, 1.0, 1.0]))
    preference = PSD(PSDOptions(learn=False))
    found = run(GivenNoise(noise), preference, rewards=ensemble(reward), o={"rescale": 0.7}, prior=Seen())
    at = moment(
        Seen(), X, 0.5, options=GuidanceOptions(scale=7.5, rescale=0.7, clamp=False, view_prompts="none")
    )
    win, lose = (at.guided(at.noised(n[None])) for n in noise)
    d_pref = (win.eps[0] - noise[0]) - (lose.eps[0] - noise[1])
    for b in range(2):
        pull = (win.eps - win.conditional)[0, b].norm()
        beta = pull / d_pref[b].norm() * torch.sigmoid(torch.tensor(-1.0, dtype=torch.float64))
        expected = win.eps[0, b] - noise[0, b] + beta * d_pref[b]
        torch.testing.assert_close(found.value[b], expected, rtol=1e-6, atol=1e-6)


def test_psds_negative_waits_for_small_times_unless_the_limit_is_lifted():
    """With t_min_start 0.98 the smallest time reaches 0.6 at 31.7 % of the run."""
    options = GuidanceOptions(t_min=0.02, t_min_start=0.98, t_max=(0.98, 0.5), anneal=(0.0, 0.8))
    first = next(n for n in range(1000) if time_range(options, n / 1000)[0] <= 0.6)
    assert first == 317
