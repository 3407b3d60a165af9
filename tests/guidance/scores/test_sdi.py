"""Score distillation via inversion: identities, its counts, and each view alone."""

import itertools
import math

import pytest
import torch
from analytic import PLAIN, ConstantPrior, GaussianPrior, GroupPrior, distil, moment, normal, pattern
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.config import GuidanceOptions, SDIOptions
from splatgen.guidance.denoiser import amplitudes
from splatgen.guidance.distillation import gradient
from splatgen.guidance.inversion import ddim_step, rising, walk
from splatgen.guidance.preferences import NoPreference
from splatgen.guidance.scores import SDI
from splatgen.guidance.scores.base import LATEST, Noised
from splatgen.scene.cameras import turntable

few = settings(deadline=None, max_examples=20)
SILENT = SDIOptions(entropy=0.0)


def options(**change):
    return GuidanceOptions(**{"scale": 7.5, "clamp": False, **change})


def sdi(**change):
    return SDI(SDIOptions(**{"entropy": 0.0, **change}))


def value(step, score):
    return gradient(step, score, NoPreference(), None).value


# Degenerate cases


@few
@given(
    st.floats(0.1, 0.98),
    st.floats(0, 50),
    st.one_of(st.none(), st.floats(-20, 20)),
    st.integers(1, 25),
    st.floats(0, 0.1),
)
def test_a_constant_denoiser_is_inverted_to_its_constant_and_gives_nothing(t, scale, inverse, steps, tau):
    constant, x = normal("constant", 1, 3, 6, 6), normal("x")
    step = moment(ConstantPrior(constant), x, t, options=options(scale=scale))
    score = sdi(scale=inverse, steps=steps, tau=tau)
    noise = score.noises(step, 1).noise[0]
    tolerance = 1e-9 / math.cos(math.pi / 2 * t)
    torch.testing.assert_close(noise, constant.expand(2, -1, -1, -1), rtol=0, atol=tolerance)
    torch.testing.assert_close(value(step, score), torch.zeros_like(x), rtol=0, atol=20 * tolerance)


@pytest.mark.parametrize("inverse", [None, 2.0])
def test_one_step_of_inversion_is_the_prediction_at_the_render_itself(inverse):
    """k = e_inv(x, 0), at the scale of the inversion: minus the guidance's, or what is asked for."""
    step = moment(GroupPrior(1), normal("x"), 0.7, options=options(scale=4.0))
    zero = torch.zeros(2, dtype=torch.float64)
    expected = step.guided(step.x[None], t=zero, scale=-4.0 if inverse is None else inverse, plain=True).eps
    found = sdi(steps=1, scale=inverse).noises(step, 1).noise
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_without_fresh_noise_it_is_deterministic_but_for_the_time():
    step, another = (moment(GroupPrior(1), normal("x"), 0.7, options=options(), step=n) for n in (0, 1))
    still = sdi(tau=0.0)
    assert torch.equal(still.noises(step, 1).noise, still.noises(another, 1).noise)
    assert torch.equal(sdi().noises(step, 1).noise, sdi().noises(step, 1).noise)
    assert not torch.equal(sdi().noises(step, 1).noise, sdi().noises(another, 1).noise)


@few
@given(st.floats(0.1, 0.95), st.floats(0, 10), st.sampled_from([0.0, 0.3]), st.booleans())
def test_the_direction_is_the_way_to_the_estimate(t, scale, entropy, renoise):
    """G = sigma / alpha (e - k) = x - x0, whatever the noise."""
    x = normal("x")
    step = moment(GroupPrior(2), x, t, options=options(scale=scale))
    found = gradient(step, sdi(entropy=entropy, renoise=renoise), NoPreference(), None)
    tolerance = 1e-10 * max(1.0, float(found.value.abs().max()))
    torch.testing.assert_close(found.value, x - found.x0[0], rtol=0, atol=tolerance)


class Cached(SDI):
    """The noise of a step is the guided prediction of the step before."""

    def __init__(self, first):
        super().__init__(SILENT)
        self.noise = first

    def noises(self, moment, count):
        return Noised(noise=self.noise)

    def baseline(self, moment, noised, guided):
        self.noise = guided.eps
        return noised.noise


def test_with_the_last_prediction_as_noise_it_is_ddim_sampling():
    """x <- x - G, k <- e: the estimates of deterministic DDIM, step by step."""
    prior, levels = GroupPrior(2), torch.linspace(0.98, 0.04, 25, dtype=torch.float64).unbind()
    y = normal("start")
    score, x = None, None
    for here, there in itertools.pairwise(levels):
        step = moment(prior, y, here.expand(2), options=options())
        found = step.guided(y[None])
        if x is None:  # the first estimate and its noise begin the distillation
            x, score = found.x0[0], Cached(found.eps)
        else:
            at = moment(prior, x, here.expand(2), options=options())
            torch.testing.assert_close(at.noised(score.noise)[0], y, rtol=0, atol=1e-10)
            x = x - value(at, score)
            torch.testing.assert_close(x, found.x0[0], rtol=0, atol=1e-10)
        y = ddim_step(prior, y, found.eps[0], here.expand(2), there.expand(2))
    assert score is not None


# Views and candidates


def test_every_view_of_a_batch_is_inverted_as_if_alone():
    prior, cameras = GroupPrior(1), turntable(4, size=6)
    x, t = normal("x", 4, 3, 6, 6), torch.tensor([0.33, 0.95, 0.12, 0.5], dtype=torch.float64)
    score = sdi(tau=0.0)
    together = score.noises(moment(prior, x, t, cameras=cameras, options=options()), 1).noise[0]
    for b in range(4):
        s = slice(b, b + 1)
        alone = moment(prior, x[s], t[s], cameras=cameras[s], options=options())
        torch.testing.assert_close(together[s], score.noises(alone, 1).noise[0], rtol=1e-10, atol=1e-10)


def test_the_views_of_an_item_go_to_the_same_time():
    """Inverted with no noise at all, x only shrinks: by how much tells how far it went."""
    x = normal("x", 4, 3, 6, 6)
    step = moment(ConstantPrior(0.0, views=2), x, 0.5, options=PLAIN)
    ends = reached(step, x, sdi(tau=0.2, renoise=False))
    assert ends[0] == pytest.approx(ends[1], abs=1e-9)
    assert ends[2] == pytest.approx(ends[3], abs=1e-9)
    assert abs(ends[0] - ends[2]) > 1e-3


def reached(step, x, score):
    """The time that each view was inverted to, with a denoiser that predicts 0: its latents are alpha x."""
    alpha = step.noised(score.noises(step, 1).noise)[0] / x
    return [float(a.mean().acos() / (math.pi / 2)) for a in alpha]


@pytest.mark.parametrize(("t", "tau"), [(0.2, 1 / 30), (0.9, 0.1), (0.98, 0.5), (0.5, 0.0)])
def test_the_inversion_ends_between_t_and_tau_later_and_never_at_1(t, tau):
    ends = []
    for n in range(40):
        x = normal(f"x{n}")
        step = moment(ConstantPrior(0.0), x, t, step=n, options=PLAIN)
        ends += reached(step, x, sdi(tau=tau, renoise=False))
    assert min(ends) >= t - 1e-9
    assert max(ends) <= min(t + tau, LATEST) + 1e-6
    if 0 < tau < 0.2:
        assert min(ends) < t + 0.1 * tau
        assert max(ends) > t + 0.9 * tau


@pytest.mark.parametrize("candidates", [1, 5])
def test_candidates_share_one_inversion_and_differ_by_their_fresh_noise(candidates):
    prior = GroupPrior(1)
    step = moment(prior, normal("x"), 0.65, options=options())
    score = SDI(SDIOptions(entropy=0.3))
    noise = score.noises(step, candidates).noise
    assert prior.calls == 2 * 2 * 6  # two views, two prompts, int(6.5) steps
    assert noise.shape == (candidates, 2, 3, 6, 6)
    shared = sdi().noises(step, 1).noise
    fresh = (noise - shared) / (0.3 * step.amplitudes()[1])
    torch.testing.assert_close(noise[:1], score.noises(step, 1).noise, rtol=0, atol=0)
    assert fresh.std() == pytest.approx(1, abs=0.15)
    assert all(not torch.allclose(fresh[0], fresh[k]) for k in range(1, candidates))


def test_fresh_noise_on_the_way_is_of_the_posteriors_size_and_each_candidates_own():
    """Predicting 0, x comes to alpha x; two steps to t = 0.8 leave the noise of the second, from 0.4 on."""
    prior, x = ConstantPrior(0.0), torch.zeros(2, 3, 64, 64, dtype=torch.float64)
    step = moment(prior, x, 0.8, options=PLAIN)
    score = SDI(SDIOptions(entropy=0.3, entropy_at="steps", tau=0.0, steps=3))  # int(2.4) steps
    latents = step.noised(score.noises(step, 3).noise)
    assert prior.calls == 3 * 2 * 2 * 2  # candidates, views, steps, prompts
    abar_low, abar_high = (math.cos(math.pi / 2 * t) ** 2 for t in (0.4, 0.8))
    posterior = math.sqrt((1 - abar_low) / (1 - abar_high) * (1 - abar_high / abar_low))
    assert float(latents.std()) == pytest.approx(0.3 * posterior, rel=0.02)
    assert not torch.equal(latents[0], latents[1])
    assert torch.equal(sdi(entropy_at="steps").noises(step, 2).noise[0], sdi().noises(step, 1).noise[0])


def test_without_renoising_the_denoiser_gets_the_latents_of_the_later_time():
    """What is handed over with the label t is what inversion found at t + tau."""
    prior, x, t = GroupPrior(1), normal("x"), torch.tensor([0.35, 0.8], dtype=torch.float64)
    step = moment(prior, x, t, options=options())
    kept, moved = sdi(renoise=False, tau=0.3), sdi(renoise=True, tau=0.3)
    handed = step.noised(kept.noises(step, 1).noise)
    noise = moved.noises(step, 1).noise
    share = torch.rand(2, generator=step.rng("tau")).double()
    end = (t + 0.3 * share).clamp_max(LATEST)
    counts = torch.tensor([3.0, 8.0], dtype=torch.float64)
    top = walk(step, x[None], rising(end, counts), scale=-7.5, plain=True)
    torch.testing.assert_close(handed, top, rtol=1e-9, atol=1e-9)
    alpha, sigma = amplitudes(prior, end)
    torch.testing.assert_close(alpha * x + sigma * noise, top, rtol=1e-9, atol=1e-9)


# Counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("t", "steps"), [(0.98, 9), (0.65, 6), (0.2, 2), (0.15, 1), (0.05, 1)])
def test_a_time_takes_the_whole_part_of_ten_times_it_in_steps(dtype, t, steps):
    """And two more images for the direction: 2 (n + 1) a view."""
    prior = GroupPrior(1)
    step = moment(prior, normal("x").to(dtype), t, options=options())
    assert gradient(step, sdi(), NoPreference(), None).model_calls == prior.calls == 2 * 2 * (steps + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [10, 7])
def test_rounding_takes_no_step_away(dtype, steps):
    t = torch.arange(1, steps).to(dtype) / steps
    t = torch.nextafter(t, torch.zeros_like(t))  # where a schedule lands that was rounded down
    prior = ConstantPrior()
    step = moment(prior, normal("x", steps - 1, 3, 2, 2).to(dtype), t, options=PLAIN)
    sdi(steps=steps, scale=1.0).noises(step, 1)
    assert prior.calls == sum(range(1, steps))


# Distillation


def test_sdi_recovers_the_mean_of_an_analytic_prior():
    """The data is N(pattern, 0.1^2), whatever the prompt: the negative inversion is then the same flow."""
    error = distil(
        GaussianPrior(pattern, spread=0.1), SDI(SDIOptions()), steps=120, options=PLAIN, negative="a"
    )
    print(f"root mean square error {error:.4f}")
    assert error < 0.02
