"""Guided predictions: conventions, rescaling, Perp-Neg, and batches in parts."""

import math

import pytest
import torch
from analytic import PLAIN, ConstantPrior, GaussianPrior, GroupPrior, moment, normal, pattern
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from splatgen.config import GuidanceOptions
from splatgen.guidance.denoiser import Denoiser, amplitudes, cfg, gather, inner, perpendicular, spread
from splatgen.scene.cameras import orbit, turntable

few = hypothesis_settings(deadline=None, max_examples=20)
times = st.floats(0.02, 0.98)
scales = st.floats(0, 100)
PERP_NEG = GuidanceOptions(scale=7.5, clamp=False, view_prompts="blend", perp_neg=True)


def options(**change):
    return GuidanceOptions(**{"scale": 1.0, "clamp": False, **change})


def guided(prior, x_t, t, given=PLAIN, **more):
    """Predictions [B, C, h, w] for a single candidate."""
    step = moment(prior, x_t, t, options=given, **more)
    return step.guided(x_t[None]).map(lambda z: z[0])


def around(count):
    """Views of all kinds: front, between, side, behind, and from overhead."""
    azimuth = torch.linspace(0, 330, count)
    return orbit(azimuth, torch.tensor([10.0, 70.0, -5.0])[torch.arange(count) % 3], size=6)


# Conventions


@few
@given(st.floats(-2, 200))
def test_the_two_conventions_of_guidance_differ_by_one(gamma):
    e_y, e_n = normal("y"), normal("n")
    torch.testing.assert_close(cfg(e_y, e_n, 1 + gamma), e_y + gamma * (e_y - e_n), rtol=1e-12, atol=1e-11)


def test_scale_0_is_unconditional_and_1_conditional():
    e_y, e_n = normal("y"), normal("n")
    assert torch.equal(cfg(e_y, e_n, 0.0), e_n)
    torch.testing.assert_close(cfg(e_y, e_n, 1.0), e_y, rtol=0, atol=1e-15)


@few
@given(times, scales)
def test_a_guided_prediction_is_cfg_of_the_priors_own(t, scale):
    prior, x_t, cameras = GroupPrior(1), normal("x"), turntable(2, size=6)
    words = [f"a, {word} view" for word in ("front", "back")]  # azimuths 0 and 180
    ts = torch.full((2,), t, dtype=torch.float64)
    e_y, e_n = (prior.predict(x_t, ts, prior.embed(p), cameras) for p in (words, ["dull"] * 2))
    found = guided(prior, x_t, t, options(scale=scale), negative="dull")
    torch.testing.assert_close(found.eps, cfg(e_y, e_n, scale), rtol=1e-12, atol=1e-12)


@few
@given(scales, times)
def test_a_negative_like_the_prompt_makes_the_scale_irrelevant(scale, t):
    prior, x_t = GroupPrior(1), normal("x")
    given_options = options(scale=scale, view_prompts="none")
    plain = guided(prior, x_t, t, options(view_prompts="none"), negative="a")
    found = guided(prior, x_t, t, given_options, negative="a")
    torch.testing.assert_close(found.eps, plain.eps, rtol=0, atol=1e-12)


def test_the_prediction_is_affine_in_the_scale_and_continuous_at_1():
    prior, x_t = GroupPrior(1), normal("x")
    e0, e1, beside, e5 = (guided(prior, x_t, 0.5, options(scale=w)).eps for w in (0.0, 1.0, 1 + 1e-12, 5.0))
    torch.testing.assert_close(e5 - e0, 5 * (e1 - e0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(e1, beside, rtol=0, atol=1e-10)
    assert (e1 - e0).abs().max() > 0.01


@pytest.mark.parametrize(("scale", "calls"), [(0.0, 2), (1.0, 2), (3.0, 4)])
def test_the_negative_is_left_out_where_it_cancels(scale, calls):
    prior = GroupPrior(1)
    step = moment(prior, normal("x"), 0.5, options=options(scale=scale))
    step.guided(normal("x")[None])
    assert prior.calls == step.denoiser.images == calls


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 30.0])
def test_what_guidance_adds_is_gamma_times_the_difference(scale):
    found = guided(GroupPrior(1), normal("x"), 0.5, options(scale=scale))
    torch.testing.assert_close(found.classifier, found.eps - found.conditional, rtol=0, atol=1e-13)
    if scale > 1:
        direction = found.conditional - found.base
        torch.testing.assert_close(found.classifier, (scale - 1) * direction, rtol=1e-12, atol=1e-12)


def test_prompt_and_negative_see_the_same_cameras_in_one_call():
    seen = []

    def mean(cameras):
        seen.append(cameras)
        return pattern(cameras)

    cameras = turntable(2, size=6)
    guided(GaussianPrior(mean), normal("x"), 0.5, options(scale=3.0))
    assert len(seen) == 1
    assert torch.equal(seen[0].azimuth, cameras.azimuth.repeat(2))
    assert torch.equal(seen[0].c2w, cameras.c2w.repeat(2, 1, 1))


# The one-step estimate


@few
@given(times, scales)
def test_the_residual_is_sigma_over_alpha_times_the_error_of_the_noise(t, scale):
    """x - x0 = sigma / alpha (e - n)."""
    prior, x, n = GaussianPrior(pattern, spread=0.3), normal("x"), normal("n")
    step = moment(prior, x, t, options=options(scale=scale))
    alpha, sigma = step.amplitudes()
    found = step.guided(step.noised(n[None]))
    error = (x - found.x0[0]) - sigma / alpha * (found.eps[0] - n)
    assert error.abs().max() < 1e-10 * max(1.0, scale) * float(sigma.max() / alpha.min())


@few
@given(times, st.sampled_from([0.0, 0.3, 1.0]), st.booleans(), st.sampled_from([1.0, 3.0, 50.0]))
def test_rescaling_and_clamping_keep_estimate_and_noise_in_agreement(t, rescale, clamp, scale):
    prior, x_t = GaussianPrior(pattern, spread=0.3), 2 * normal("x")
    found = guided(prior, x_t, t, options(scale=scale, rescale=rescale, clamp=clamp))
    alpha, sigma = amplitudes(prior, torch.full((2,), t, dtype=torch.float64))
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x_t, rtol=0, atol=1e-11)
    if clamp:
        assert found.x0.abs().max() <= 1.0


@pytest.mark.parametrize("views", [1, 2, 4])
def test_full_rescaling_gives_the_conditional_spread_of_the_whole_group(views):
    """Lin et al. 2023, eq. 15-16 with phi = 1; phi = 1/2 lies halfway, MVDream's over all views."""
    prior, x_t = GroupPrior(views), normal("x", 4, 3, 6, 6)
    free, half, full = (guided(prior, x_t, 0.6, options(scale=8.0, rescale=r)) for r in (0.0, 0.5, 1.0))
    alpha, sigma = amplitudes(prior, torch.full((4,), 0.6, dtype=torch.float64))
    usual = (x_t - sigma * free.conditional) / alpha

    def spreads(x):  # by the definition, over channels, pixels and views
        return torch.stack([group.flatten().std() for group in x.split(views)])

    assert not torch.allclose(spreads(free.x0), spreads(usual), rtol=0.1)
    torch.testing.assert_close(spreads(full.x0), spreads(usual), rtol=1e-6, atol=0)
    torch.testing.assert_close(half.x0, 0.5 * (free.x0 + full.x0), rtol=1e-12, atol=1e-12)
    between = spreads(half.x0)
    assert (between > torch.minimum(spreads(usual), spreads(free.x0))).all()
    assert (between < torch.maximum(spreads(usual), spreads(free.x0))).all()


def test_spread_is_one_number_for_the_views_of_an_item():
    x = normal("x", 4, 3, 6, 6)
    found = spread(x, 2).flatten()
    assert found.tolist() == pytest.approx([float(x[:2].std())] * 2 + [float(x[2:].std())] * 2, rel=1e-12)


def test_plain_predictions_are_neither_rescaled_nor_clamped():
    prior, x_t = GaussianPrior(pattern, spread=0.3), 3 * normal("x")
    step = moment(prior, x_t, 0.6, options=options(scale=8.0, rescale=0.7, clamp=True))
    free = moment(prior, x_t, 0.6, options=options(scale=8.0)).guided(x_t[None])
    assert torch.equal(step.guided(x_t[None], plain=True).eps, free.eps)
    assert not torch.allclose(step.guided(x_t[None]).eps, free.eps)


def test_latents_without_a_range_are_never_clamped():
    prior, x_t = GaussianPrior(pattern, spread=0.3, x_range=None), 9 * normal("x")
    free, clamped = (guided(prior, x_t, 0.5, options(clamp=c)) for c in (False, True))
    assert torch.equal(free.x0, clamped.x0)
    assert free.x0.abs().max() > 1


def test_at_time_0_the_estimate_is_the_picture_itself():
    """Also where a table of amplitudes begins above 0, as Stable Diffusion's does."""

    class Late(ConstantPrior):
        def alpha_sigma(self, t):
            return super().alpha_sigma(t + 0.01)

    x = normal("x")
    found = guided(Late(0.5), x, 0.0, options(rescale=0.5, scale=3.0))
    assert torch.equal(found.x0, x)
    assert found.eps.isfinite().all()


# Parts


@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 3, 4, 5, 1000])
@pytest.mark.parametrize("perp_neg", [False, True])
def test_parts_give_what_the_whole_batch_gives(views, batch, perp_neg):
    prior, x_t = GroupPrior(views), normal("x", 8, 3, 6, 6)
    given_options = {"scale": 3.0, "view_prompts": "blend", "perp_neg": perp_neg}
    whole, parts = (
        guided(prior, x_t, 0.4, options(batch=n, **given_options), cameras=around(8)) for n in (0, batch)
    )
    assert torch.equal(parts.eps, whole.eps)


@pytest.mark.parametrize(("views", "batch", "sizes"), [(1, 3, [3, 3, 2]), (2, 3, [2] * 4), (4, 1, [4, 4])])
def test_parts_are_whole_groups_as_large_as_allowed(views, batch, sizes):
    prior = GroupPrior(views)
    seen = []

    def network(x_t, t, condition, cameras):
        seen.append(len(x_t))
        assert len(t) == len(condition["colour"]) == len(cameras) == len(x_t)
        return x_t

    denoiser = Denoiser(prior, options(batch=batch))
    x_t, t = normal("x", 8, 3, 6, 6), torch.linspace(0.1, 0.9, 8)
    found = denoiser.raw(x_t, t, prior.embed(["a"] * 8), turntable(8, size=6), network)
    assert torch.equal(found, x_t)
    assert seen == sizes
    assert denoiser.images == 8
    assert prior.calls == 0  # the network stood in for it


def test_candidates_are_views_of_the_same_moment():
    """Predictions [K, B] of a batch are those of every candidate alone."""
    prior, x_t = GroupPrior(2), normal("x", 3, 4, 3, 6, 6)
    step = moment(prior, x_t[0], torch.tensor([0.2, 0.2, 0.7, 0.7]), options=options(scale=3.0))
    together = step.guided(x_t).eps
    for k in range(3):
        assert torch.equal(together[k], step.guided(x_t[k : k + 1]).eps[0])


def test_some_views_alone_are_what_they_are_among_all():
    prior, x_t = GroupPrior(1), normal("x", 2, 5, 3, 6, 6)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    step = moment(prior, x_t[0], t, options=PERP_NEG, cameras=around(5))
    rows = torch.tensor([4, 1])
    assert torch.equal(step.guided(x_t[:, rows], rows=rows).eps, step.guided(x_t).eps[:, rows])


def test_gather_takes_a_candidate_for_every_view():
    z = normal("z", 3, 2, 1, 1, 1)
    kept = torch.tensor([[2, 0], [1, 1]])
    found = gather(z, kept)
    assert found.shape == (2, 2, 1, 1, 1)
    assert found.flatten().tolist() == [float(z[k, b]) for k, b in ((2, 0), (0, 1), (1, 0), (1, 1))]


# Perp-Neg


def test_the_perpendicular_part_has_no_share_of_the_other():
    a, b = normal("a", 5, 3, 6, 6), normal("b", 5, 3, 6, 6)
    part = perpendicular(a, b)
    assert inner(part, b).abs().max() < 1e-12
    torch.testing.assert_close(a - part, inner(a, b) / inner(b, b) * b, rtol=1e-12, atol=1e-12)
    assert torch.equal(perpendicular(a, torch.zeros_like(b)), a)
    assert perpendicular(3 * b, b).abs().max() < 1e-12


def test_perp_neg_is_its_formula():
    """e_n + w (e_pos + sum_i w_i perp(e_i - e_n, e_pos)), written out for one view at 30 degrees."""
    prior, x_t, t = GroupPrior(1), normal("x", 1, 3, 6, 6), torch.tensor([0.4], dtype=torch.float64)
    camera = orbit(torch.tensor([30.0]), torch.tensor([0.0]), size=6)
    front, side, dull = (prior.embed([p]) for p in ("a, front view", "a, side view", "dull"))
    middle = {"colour": front["colour"] * 2 / 3 + side["colour"] / 3}
    e_y, e_front, e_side, e_n = (prior.predict(x_t, t, c, camera) for c in (middle, front, side, dull))
    e_pos = e_y - e_n
    total = e_pos.clone()
    for e, weight in (
        (e_front, -(4 * math.exp(-0.5 * 2 / 3) - 2.426)),
        (e_side, -(4 * math.exp(-0.5 / 3) - 2.426)),
    ):
        away = e - e_n
        total += weight * (away - (away * e_pos).sum() / (e_pos * e_pos).sum() * e_pos)
    found = guided(prior, x_t, t, PERP_NEG, cameras=camera, negative="dull")
    torch.testing.assert_close(found.eps, e_n + 7.5 * total, rtol=1e-6, atol=1e-6)  # weights are float32
    assert (found.eps - cfg(e_y, e_n, 7.5)).abs().max() > 0.1


def test_perp_neg_of_a_batch_is_that_of_each_view_alone():
    """Where images and negatives are laid out in different orders, only a batch of one is right."""
    prior, x_t, cameras = GroupPrior(1), normal("x", 7, 3, 6, 6), around(7)
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    together = guided(prior, x_t, t, PERP_NEG, cameras=cameras).eps
    for b in range(7):
        s = slice(b, b + 1)
        alone = guided(prior, x_t[s], t[s], PERP_NEG, cameras=cameras[s]).eps
        torch.testing.assert_close(together[s], alone, rtol=1e-12, atol=1e-12)


def test_from_overhead_perp_neg_is_plain_guidance():
    prior, x_t = GroupPrior(1), normal("x")
    above = orbit(torch.tensor([0.0, 100.0]), torch.tensor([80.0, 60.0]), size=6)
    blend = options(scale=7.5, view_prompts="blend")
    found, plain = (guided(prior, x_t, 0.5, o, cameras=above) for o in (PERP_NEG, blend))
    torch.testing.assert_close(found.eps, plain.eps, rtol=0, atol=1e-12)


def test_perp_neg_takes_four_images_a_view():
    prior = GroupPrior(1)
    guided(prior, normal("x", 5, 3, 6, 6), 0.5, PERP_NEG)
    assert prior.calls == 20
