"""Variational score distillation with a copy that is known in closed form."""

from types import SimpleNamespace

import pytest
import torch
from analytic import PLAIN, GaussianAdapter, GaussianPrior, distil, moment, normal, pattern
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.config import GuidanceOptions, VSDOptions
from splatgen.guidance.denoiser import amplitudes
from splatgen.guidance.distillation import gradient, inject
from splatgen.guidance.preferences import NoPreference
from splatgen.guidance.scores import CSD, SDS, VSD
from splatgen.runs.packing import pack, unpack
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable

few = settings(deadline=None, max_examples=20)


def options(**change):
    return GuidanceOptions(**{"scale": 7.5, "clamp": False, **change})


def make(prior=None, **change):
    """A prior and VSD over it."""
    prior = prior or GaussianPrior(pattern, spread=0.3)
    return prior, VSD(VSDOptions(**change), prior, seed=0)


def step_of(prior, score, x, t=0.5, given_options=None, **more):
    return gradient(
        moment(prior, x, t, options=given_options or options(), **more), score, NoPreference(), None
    )


def weights(score):
    return {name: p.detach().clone() for name, p in score.parameters.items()}


def frozen(score):
    """Its state as a checkpoint has it: copies of all tensors, and JSON."""
    tensors, rest = pack(score.state_dict())
    return {name: value.clone() for name, value in tensors.items()}, rest


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Identities


@few
@given(st.floats(0.02, 0.98), st.floats(0, 100), st.sampled_from(["sds", "uniform", "sigma"]))
def test_an_untrained_copy_gives_classifier_score_distillation_exactly(t, scale, weighting):
    """G = w(t) (scale - 1) (e_y - e_n)."""
    prior, score = make()
    x, given_options = normal("x"), options(scale=scale, weighting=weighting)
    found = step_of(prior, score, x, t, given_options).value
    at = moment(prior, x, t, options=given_options)
    x_t = at.noised(score.noises(at, 1).noise)
    e_y, e_n = (at.guided(x_t, scale=w).eps[0] for w in (1.0, 0.0))
    alpha, sigma = at.amplitudes()
    w = {"sds": sigma**2, "uniform": 1.0, "sigma": sigma / alpha}[weighting]
    tolerance = 1e-11 * max(1.0, scale) * float((sigma / alpha).max() + 1)
    torch.testing.assert_close(found, w * (scale - 1) * (e_y - e_n), rtol=0, atol=tolerance)
    if scale > 1:
        csd = step_of(prior, CSD(), x, t, given_options).value
        torch.testing.assert_close(found, csd, rtol=0, atol=tolerance)


@few
@given(st.floats(0.02, 0.98), st.floats(0, 20))
def test_a_copy_that_predicts_the_added_noise_gives_sds(t, scale):
    """It has learned the render itself: spread 0, its mean moved from the prior's to x."""
    prior, score = make(GaussianPrior(pattern), lr=0.0)
    shift = normal("shift", 1, 3, 6, 6)
    x = pattern(turntable(2, size=6)) + shift
    score.adapter.image.data.copy_(shift)
    given_options = options(scale=scale)
    found, sds = (step_of(prior, s, x, t, given_options).value for s in (score, SDS()))
    torch.testing.assert_close(found, sds, rtol=1e-9, atol=1e-9)


def test_the_direction_is_the_difference_of_prior_and_copy():
    """For two Gaussians with the same spread: w(t) sigma alpha (their means' difference) / variance."""
    prior, score = make(lr=0.0)
    shift = normal("shift", 1, 3, 6, 6)
    score.adapter.image.data.copy_(shift)
    found = step_of(prior, score, normal("x"), 0.4, PLAIN).value
    alpha, sigma = amplitudes(prior, torch.full((2,), 0.4, dtype=torch.float64))
    expected = sigma * alpha * shift / (alpha**2 * 0.3**2 + sigma**2)
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-10, atol=1e-12)


# Which gradients go where


def test_neither_loss_reaches_the_others_parameters():
    """The copy's loss does not move the render; the render's gradient does not move the copy."""
    prior, score = make(lr=0.0)
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    x = prior.encode(images)
    found = step_of(prior, score, x)
    assert not found.value.requires_grad
    assert images.grad is None  # learn() ran
    inject(x, found.value)
    torch.testing.assert_close(images.grad, 2 * found.value / 2, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in score.parameters.values())


def test_a_rate_of_0_leaves_the_copy_as_it_is():
    prior, score = make(lr=0.0)
    before = weights(score)
    for step in range(3):
        step_of(prior, score, normal("x"), step=step)
    assert same(weights(score), before)


def test_a_render_that_is_not_finite_does_not_spoil_the_copy():
    prior, score = make(lr=0.1)
    step_of(prior, score, normal("x"))
    before, rest = frozen(score)
    x = normal("x")
    x[0, 0, 2, 2] = float("nan")
    found = step_of(prior, score, x, step=1)
    assert not found.value.isfinite().all()
    assert found.metrics["score/lora_loss"] != found.metrics["score/lora_loss"]
    assert frozen(score)[1] == rest
    assert same(frozen(score)[0], before)


# Training


class Witness(GaussianAdapter):
    """Keeps what it was given last, and what it said."""

    def predict(self, x_t, t, condition, cameras, told):
        e = super().predict(x_t, t, condition, cameras, told)
        self.last = (x_t, t, condition, told, e.detach())
        return e


class WitnessPrior(GaussianPrior):
    def adapter(self, rank, generator):
        return Witness(self, rank, generator)


@pytest.mark.parametrize("step", range(3))
def test_the_loss_is_the_error_of_the_noise_or_of_the_velocity(step):
    """With v = alpha n - sigma x and e = sigma x_t + alpha v, on what the copy was given."""
    losses = {}
    for prediction in ("epsilon", "velocity"):
        prior = WitnessPrior(pattern, spread=0.3, prediction=prediction)
        _, score = make(prior, lr=0.0)
        x = normal("x")
        losses[prediction] = float(score.learn(moment(prior, x, 0.5, step=step))["score/lora_loss"])
        x_t, t, _, _, e = score.adapter.last
        alpha, sigma = amplitudes(prior, t)
        n = (x_t - alpha * x) / sigma
        if prediction == "epsilon":
            expected = (e - n).square().mean()
        else:
            v, v_hat = alpha * n - sigma * x, (e - sigma * x_t) / alpha
            expected = (v_hat - v).square().mean()
        assert losses[prediction] == pytest.approx(float(expected), rel=1e-9)
    assert losses["epsilon"] != pytest.approx(losses["velocity"], rel=0.01)


def test_the_copy_trains_on_fresh_times_and_noises_over_the_whole_range():
    prior = WitnessPrior(pattern, spread=0.3)
    _, score = make(prior, lr=0.0)
    x, times, noises, told = normal("x"), [], [], []
    for step in range(150):
        at = moment(prior, x, 0.5, step=step)
        score.learn(at)
        x_t, t, _, known, _ = score.adapter.last
        alpha, sigma = amplitudes(prior, t)
        noises.append((x_t - alpha * x) / sigma)
        times += t.tolist()
        told += known.tolist()
        assert not torch.allclose(noises[-1], score.noises(at, 1).noise[0])  # not the direction's
    found = torch.tensor(times)
    assert 0.001 <= float(found.min()) < 0.03
    assert 0.97 < float(found.max()) <= 0.999
    assert float(found.mean()) == pytest.approx(0.5, abs=0.06)
    assert float(torch.stack(noises).std()) == pytest.approx(1, abs=0.02)
    assert 1 - sum(told) / len(told) == pytest.approx(0.1, abs=0.05)  # the share without a camera
    assert set(told) == {0.0, 1.0}


def test_the_views_of_an_item_are_trained_at_one_time():
    prior = WitnessPrior(pattern, spread=0.3, views=2)
    _, score = make(prior, lr=0.0, camera_dropout=0.5)
    for step in range(8):
        score.learn(moment(prior, normal("x", 4, 3, 6, 6), 0.5, step=step))
        _, t, _, told, _ = score.adapter.last
        assert t[0] == t[1] != t[2] == t[3]
        assert told[0] == told[1]
        assert told[2] == told[3]


def test_the_loss_falls_on_renders_that_stay():
    prior, score = make(lr=0.05)
    x = pattern(turntable(2, size=6)) + 1.0
    losses = [
        score.learn(moment(prior, x, 0.5, step=step))["score/lora_loss"] for step in [*range(80), *range(20)]
    ]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])  # the same times and noises


@pytest.mark.parametrize("camera", [True, False])
def test_the_camera_reaches_the_copy_where_it_is_told(camera):
    """Renders that differ by their view only; the prior knows nothing of views."""
    cameras = turntable(2, size=6)
    x = 0.8 * torch.deg2rad(cameras.azimuth.double()).cos()[:, None, None, None].expand(-1, 3, 6, 6)
    grey = GaussianPrior(lambda c: torch.zeros(len(c), 3, 6, 6).double(), spread=0.3)
    prior, score = make(grey, lr=0.05, camera=camera)
    for step in range(150):
        score.learn(moment(prior, x, 0.5, cameras=cameras, step=step))
    at = moment(prior, x, 0.5, cameras=cameras)
    noised = score.noises(at, 1)
    e = score.baseline(at, noised, at.guided(at.noised(noised.noise)))[0]
    alpha, sigma = at.amplitudes()
    means = ((at.noised(noised.noise)[0] - e * (alpha**2 * 0.09 + sigma**2) / sigma) / alpha).mean((1, 2, 3))
    if camera:
        assert means.tolist() == pytest.approx([0.8, -0.8], abs=0.15)
    else:
        assert means.tolist() == pytest.approx([0.0, 0.0], abs=0.15)
        assert not score.adapter.turn.any()


@pytest.mark.parametrize(("prompt", "words"), [("view", "a, front view"), ("plain", "a")])
def test_the_copy_reads_the_views_words_or_not(prompt, words):
    class Texts(WitnessPrior):
        def embed(self, prompts):
            said = torch.tensor([float(len(p)) for p in prompts], dtype=torch.float64)
            return {**super().embed(prompts), "length": said}

    prior = Texts(pattern, spread=0.3)
    _, score = make(prior, lr=0.0, prompt=prompt)
    at = moment(prior, normal("x", 1, 3, 6, 6), 0.5)
    for run in (lambda: score.learn(at), lambda: gradient(at, score, NoPreference(), None)):
        run()
        condition = score.adapter.last[2]
        assert condition["length"].tolist() == [len(words)]
        assert set(condition) == {"known", "length"}  # what rides along is taken off again


@pytest.mark.parametrize(
    ("batch", "scale", "images"), [(0, 7.5, 2 + 1 + 1), (0, 1.0, 1 + 1 + 1), (1, 7.5, 4)]
)
def test_images_through_the_denoiser(batch, scale, images):
    """Two of the prior, one of the copy, and one more to train it."""
    prior, score = make()
    found = step_of(prior, score, normal("x"), given_options=options(scale=scale, batch=batch))
    assert found.model_calls == prior.calls + score.adapter.calls == images * 2
    assert score.adapter.calls == 2 * 2


def test_training_in_parts_is_training_at_once():
    found = []
    for batch in (0, 1):
        prior, score = make(lr=0.1)
        for step in range(3):
            step_of(prior, score, normal("x"), given_options=options(batch=batch), step=step)
        found.append(weights(score))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-9)


# State


def test_the_copy_and_its_optimiser_survive_a_resume_bit_for_bit():
    prior, score = make(lr=0.1)
    x = normal("x")
    for step in range(3):
        step_of(prior, score, x, step=step)
    saved = unpack(*frozen(score))
    _, again = make(prior, lr=0.1)
    again.load_state_dict(saved)
    assert same(weights(again), weights(score))
    for step in range(3, 6):
        a, b = (step_of(prior, s, x, step=step) for s in (score, again))
        assert torch.equal(a.value, b.value)
        assert a.metrics == b.metrics
    assert same(weights(again), weights(score))
    assert not same(weights(again), saved["weights"])


def test_the_copy_is_made_of_its_rank_and_the_runs_seed():
    prior = GaussianPrior(pattern)
    adapter = VSD(VSDOptions(rank=7), prior, seed=5).adapter
    assert adapter.rank == 7
    assert torch.equal(torch.rand(3, generator=adapter.generator), torch.rand(3, generator=rng(5, 0, "lora")))


# Distillation


def test_vsd_recovers_the_mean_of_an_analytic_prior():
    """Two Gaussians: the copy follows the render, the render goes where both agree."""
    prior = GaussianPrior(pattern, spread=0.1)
    error = distil(prior, VSD(VSDOptions(lr=0.1), prior, seed=0), steps=150)
    print(f"root mean square error {error:.4f}")
    assert error < 0.06


# Published settings of the copy


class Paired(torch.nn.Module):
    """An adapter with LoRA's names."""

    def __init__(self):
        super().__init__()
        self.found = {
            "block.lora_A.vsd.weight": torch.nn.Parameter(torch.zeros(4, 320)),
            "block.lora_B.vsd.weight": torch.nn.Parameter(torch.zeros(320, 4)),
            "camera.linear_1.weight": torch.nn.Parameter(torch.full((2, 2), 7.0)),
        }

    def parameters(self):
        return self.found


def test_the_published_start_of_lora_is_normal_by_its_rank():
    """diffusers' LoRALinearLayer: down N(0, 1 / rank^2), up 0; torch's rule has 1 / sqrt(3 width)."""
    adapter = Paired()
    prior = SimpleNamespace(adapter=lambda rank, generator: adapter)
    score = VSD(VSDOptions(rank=4, start="normal", betas=(0.9, 0.99), eps=1e-15), prior, 0)
    down = adapter.found["block.lora_A.vsd.weight"].detach()
    assert float(down.std()) == pytest.approx(1 / 4, rel=0.05)
    assert float(down.mean()) == pytest.approx(0.0, abs=0.02)
    assert adapter.found["block.lora_B.vsd.weight"].abs().max() == 0
    assert (adapter.found["camera.linear_1.weight"] == 7.0).all()
    group = score.optimizer.param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.9, 0.99), 1e-15)
    usual = VSD(VSDOptions(), SimpleNamespace(adapter=lambda rank, generator: Paired()), 0)
    assert usual.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
