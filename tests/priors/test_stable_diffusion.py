"""Stable Diffusion as a prior, on diffusers' and transformers' own classes with few random weights."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn.functional import interpolate

from splatgen.cameras import turntable
from splatgen.config import (
    GuidanceOptions,
    PSDOptions,
    RewardOptions,
    SDIOptions,
    VSDOptions,
    WeightedOptions,
)
from splatgen.guidance import gradient
from splatgen.panel import Panel
from splatgen.preferences import PSD, NoPreference, Weighted
from splatgen.priors.stable_diffusion import StableDiffusionPrior
from splatgen.rng import rng
from splatgen.scores import SDI, SDS, VSD

FILE = Path(__file__).parents[2] / "benchmarks" / "reward_step.py"
SPEC = importlib.util.spec_from_file_location("reward_step", FILE)
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)

SCHEDULE = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
GUIDED = GuidanceOptions(scale=7.5)


def make(prediction_type="epsilon"):
    """Images of 16 pixels, latents of 8."""
    return bench.stable_diffusion(
        channels=(8, 16), vae_channels=(8, 8), text=(16, 1), latents=8, prediction_type=prediction_type
    )


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def either(request):
    return make(request.param)


@pytest.fixture(scope="module")
def prior():
    return make()


def randn(*shape, purpose="x", dtype=torch.float32):
    return torch.randn(*shape, generator=rng(0, 0, purpose), dtype=dtype)


class Redness:
    """An analytic reward: how much redder the left half is than the right."""

    name, views, mean, spread = "redness", 1, 0.0, 1.0

    def __call__(self, images, prompts):
        left, right = images.chunk(2, dim=-1)
        return left[:, 0].mean((1, 2)) - right[:, 1:].mean((1, 2, 3))


PANEL = Panel(rewards=(Redness(),), weights=(1.0,), options=RewardOptions())


def step(prior, score, preference, t=0.5, number=0):
    """One step of guidance on two views."""
    moment = bench.moment_at(prior, randn(2, 4, 8, 8), t, GUIDED)
    given = prior.embed(["blurry"])
    negative = {"states": preference.negative(given)["states"].expand(2, -1, -1)}
    told = dataclasses.replace(moment.conditions, negative=negative)
    moment = dataclasses.replace(moment, conditions=told, plain=told, step=number)
    return gradient(moment, score, preference, PANEL), moment


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (0.02, 0.9813),
        (0.1, 0.8942),
        (0.25, 0.6738),
        (0.5, 0.2763),
        (0.55, 0.2139),
        (0.98, 0.00584),
        (1.0, 0.00466),
    ],
)
def test_amplitudes_are_those_of_the_published_schedule(prior, t, expected):
    alpha, sigma = prior.alpha_sigma(torch.tensor([t, t]))
    assert alpha.shape == sigma.shape == (2, 1, 1, 1)
    assert float(alpha[0] ** 2) == pytest.approx(expected, rel=1e-3)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(2, 1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_published_fractions_name_the_same_row_in_every_precision(prior, dtype):
    t = torch.tensor([0.0, 0.02, 0.5, 0.98, 0.999, 1.0], dtype=dtype)
    alpha, _ = prior.alpha_sigma(t)
    assert alpha.dtype == dtype
    rows = torch.tensor([0, 20, 500, 980, 999, 999])
    assert torch.equal(alpha.flatten(), SCHEDULE.double()[rows].sqrt().to(dtype))


def test_amplitudes_fall_and_rise_with_time(prior):
    alpha, sigma = prior.alpha_sigma(torch.linspace(0, 1, 3001))
    assert (alpha.flatten().diff() <= 0).all()
    assert (sigma.flatten().diff() >= 0).all()
    assert len(alpha.unique()) == 1000


def test_predictions_are_noise_whatever_the_network_was_trained_on(either):
    x_t, t, states = randn(3, 4, 8, 8), torch.tensor([0.02, 0.5, 0.9]), either.embed(["a", "b", ""])["states"]
    with torch.no_grad():
        eps = either.predict(x_t, t, {"states": states}, turntable(3, size=16))
        out = either.unet(x_t, torch.tensor([20, 500, 900]), encoder_hidden_states=states).sample
    if either.prediction == "epsilon":
        assert torch.equal(eps, out)
    else:  # v = alpha eps - sigma x0, solved for both
        a = SCHEDULE[[20, 500, 900]].sqrt().view(-1, 1, 1, 1)
        s = (1 - SCHEDULE[[20, 500, 900]]).sqrt().view(-1, 1, 1, 1)
        assert torch.allclose(eps, s * x_t + a * out, atol=1e-6)
        x0 = (x_t - s * eps) / a
        assert torch.allclose(out, a * eps - s * x0, atol=1e-5)


def test_predictions_read_the_prompt_the_time_and_the_image(prior):
    def predict(x, t, prompt):
        with torch.no_grad():
            return prior.predict(x, torch.tensor([t]), prior.embed([prompt]), turntable(1, size=16))

    x = randn(1, 4, 8, 8)
    usual = predict(x, 0.5, "a red cube")
    assert not torch.allclose(usual, predict(x, 0.5, "a blue cube"), atol=1e-5)
    assert not torch.allclose(usual, predict(x, 0.6, "a red cube"), atol=1e-5)
    assert not torch.allclose(usual, predict(x + 1, 0.5, "a red cube"), atol=1e-3)


def test_rows_of_a_batch_do_not_touch_each_other(prior):
    x, t, states = randn(3, 4, 8, 8), torch.tensor([0.1, 0.5, 0.9]), prior.embed(["a", "b", ""])["states"]
    cameras = turntable(3, size=16)
    with torch.no_grad():
        together = prior.predict(x, t, {"states": states}, cameras)
        for n in range(3):
            s = slice(n, n + 1)
            alone = prior.predict(x[s], t[s], {"states": states[s]}, cameras[s])
            assert torch.allclose(together[s], alone, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (12, 20)])
def test_images_of_any_size_become_latents_and_latents_images(prior, size):
    x = prior.encode(torch.rand(2, 3, *size, generator=rng(0, 0, "image")))
    assert x.shape == (2, 4, 8, 8)
    images = prior.decode(x)
    assert images.shape == (2, 3, 16, 16)
    assert images.min() >= 0
    assert images.max() <= 1


def test_latents_are_the_posteriors_mean_scaled_and_decoding_undoes_the_scale(prior):
    images = torch.rand(1, 3, 16, 16, generator=rng(0, 0, "image"))
    x = prior.encode(images)
    assert torch.equal(x, prior.encode(images))
    assert torch.equal(x, prior.vae.encode(2 * images - 1).latent_dist.mean * 0.18215)
    bare = prior.vae.decode(x / 0.18215).sample
    assert torch.allclose(prior.decode(x), (bare / 2 + 0.5).clamp(0, 1), atol=1e-6)


def test_shrinking_averages_before_it_samples(prior):
    fine = (
        torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(16).expand(1, 3, 64, 64)
    )  # grey, but for two pixels of four
    grey = prior.encode(torch.full((1, 3, 16, 16), 0.5))
    sampled = prior.encode(interpolate(fine, size=(16, 16), mode="bilinear"))
    assert (prior.encode(fine) - grey).norm() < 0.2 * (sampled - grey).norm()


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_gradients_reach_through_the_autoencoder(direction):
    prior = make()
    prior.vae.double()
    start = torch.rand(1, 3, 24, 24, generator=rng(0, 0, "image")).double()
    start = start if direction == "encode" else prior.encode(start)
    work = getattr(prior, direction)
    toward, weights = randn(*start.shape, dtype=torch.float64), randn(*work(start).shape, dtype=torch.float64)
    x = start.requires_grad_()
    (gradient_,) = torch.autograd.grad((work(x) * weights).sum(), x)
    h = 1e-5
    with torch.no_grad():
        up, down = ((work(start + s * h * toward) * weights).sum() for s in (1, -1))
    assert float((gradient_ * toward).sum()) == pytest.approx(float((up - down) / (2 * h)), rel=1e-5)
    assert all(p.grad is None for p in prior.vae.parameters())


def test_prompts_are_embedded_a_row_each_without_regard_to_the_others(prior):
    both = prior.embed(["a red cube, front view", ""])["states"]
    assert both.shape == (2, 77, 16)
    assert torch.allclose(both[:1], prior.embed(["a red cube, front view"])["states"], atol=1e-6)
    assert not torch.allclose(both[0], both[1], atol=1e-2)
    assert not both.requires_grad


def test_a_prompt_of_75_tokens_fits_and_one_more_is_refused(prior):
    prior.embed(["a " * 75])
    with pytest.raises(ValueError, match=r"'a a a .* has 76 tokens and tiny-sd reads 75: shorten it"):
        prior.embed(["fine", "a " * 76])


def test_half_precision_networks_take_and_give_the_callers_precision():
    prior = make()
    full = prior.encode(torch.full((1, 3, 16, 16), 0.3))
    for network in (prior.unet, prior.vae, prior.text_encoder):
        network.to(torch.bfloat16)
    x = prior.encode(torch.full((1, 3, 16, 16), 0.3))
    assert x.dtype == prior.decode(x).dtype == torch.float32
    assert torch.allclose(x, full, atol=0.02)
    eps = prior.predict(x, torch.tensor([0.5]), prior.embed(["a"]), turntable(1, size=16))
    assert eps.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction_type": "sample"}, "predicts 'sample': give a model of epsilon or v_prediction"),
        ({"alphas_cumprod": SCHEDULE.flip(0)}, "schedule"),
        ({"alphas_cumprod": torch.cat([SCHEDULE[:-1], torch.zeros(1)])}, "rescaled to end at 0"),
        ({"alphas_cumprod": SCHEDULE[None]}, "schedule"),
    ],
)
def test_parts_that_do_not_fit_are_refused(prior, changes, words):
    parts = {"unet": prior.unet, "vae": prior.vae, "text_encoder": prior.text_encoder}
    parts |= {"tokenizer": prior.tokenizer, "alphas_cumprod": SCHEDULE, "prediction_type": "epsilon"}
    with pytest.raises(ValueError, match=words):
        StableDiffusionPrior(**{**parts, **changes}, name="odd", resolution=16)


def test_parts_of_different_models_are_refused(prior):
    wide = bench.stable_diffusion(channels=(8, 16), vae_channels=(8, 8), text=(32, 1), latents=8)
    with pytest.raises(ValueError, match="takes 16 text features and gets 32"):
        StableDiffusionPrior(
            unet=prior.unet,
            vae=prior.vae,
            text_encoder=wide.text_encoder,
            tokenizer=prior.tokenizer,
            alphas_cumprod=SCHEDULE,
            prediction_type="epsilon",
            name="odd",
            resolution=16,
        )


def test_networks_are_frozen_and_out_of_training():
    prior = make()
    for network in (prior.unet, prior.vae, prior.text_encoder):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def copy_of(prior, purpose="lora"):
    return prior.adapter(2, rng(0, 0, purpose))


def copy_predict(prior, adapter, told=(1.0, 0.0)):
    """Predictions of the copy, which must be switched on, for two views."""
    states, t = prior.embed(["a", "b"]), torch.tensor([0.3, 0.7])
    return adapter.predict(randn(2, 4, 8, 8), t, states, turntable(2, size=16), torch.tensor(told))


def seen(prior, adapter, told=(1.0, 0.0)):
    with torch.no_grad(), adapter.enabled():
        return copy_predict(prior, adapter, told)


def prior_predict(prior):
    return prior.predict(
        randn(2, 4, 8, 8), torch.tensor([0.3, 0.7]), prior.embed(["a", "b"]), turntable(2, size=16)
    )


@pytest.mark.parametrize("train", [False, True])
def test_an_untrained_copy_is_the_prior_to_the_bit(train):
    prior = make()
    before = prior_predict(prior)
    adapter = copy_of(prior)
    prior.unet.train(train)
    assert torch.equal(seen(prior, adapter), before)
    assert torch.equal(prior_predict(prior), before)


def test_gradients_reach_every_matrix_of_the_copy_and_its_camera():
    prior = make()
    adapter = copy_of(prior)
    parameters = adapter.parameters()
    attentions = sum(name.endswith(".to_q.weight") for name, _ in make().unet.named_parameters())
    lora = [name for name in parameters if ".vsd." in name]
    assert len(lora) == attentions * 4 * 2  # q, k, v, out; two matrices each
    with torch.no_grad():  # past the start, where one matrix of each pair is zero and hides the other
        for n, p in enumerate(parameters.values()):
            p.add_(0.1 * randn(*p.shape, purpose=f"shake {n}"))
    with adapter.enabled():
        loss = (copy_predict(prior, adapter) * randn(2, 4, 8, 8, purpose="weights")).sum()
        found = torch.autograd.grad(loss, list(parameters.values()))
    assert all(g.abs().max() > 0 for g in found)
    assert all(p.grad is None for p in prior.unet.parameters())


def test_a_trained_copy_sees_the_camera_and_leaves_the_prior_alone():
    prior = make()
    before, adapter = prior_predict(prior), copy_of(prior)
    with torch.no_grad():
        for n, p in enumerate(adapter.parameters().values()):
            p.add_(0.1 * randn(*p.shape, purpose=f"shake {n}"))
    told, untold = seen(prior, adapter), seen(prior, adapter, told=(0.0, 0.0))
    assert not torch.allclose(told[0], untold[0], atol=1e-4)
    assert torch.allclose(told[1], untold[1], atol=1e-6)
    assert not torch.allclose(untold, before, atol=1e-4)
    assert torch.equal(prior_predict(prior), before)


def test_a_second_copy_replaces_the_first():
    prior = make()
    before, first = prior_predict(prior), copy_of(prior)
    with torch.no_grad():
        for p in first.parameters().values():
            p.add_(1.0)
    second = copy_of(prior, "another")
    assert torch.equal(seen(prior, second), before)
    assert len(second.parameters()) == len(first.parameters())


def test_a_copys_weights_follow_its_generator_and_nothing_else():
    state = torch.get_rng_state()
    a, b, c = (copy_of(make(), purpose).parameters() for purpose in ("lora", "lora", "other"))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_a_copy_of_a_half_precision_network_trains_in_full():
    prior = make()
    prior.unet.to(torch.bfloat16)
    before, adapter = prior_predict(prior), copy_of(prior)
    assert {p.dtype for p in adapter.parameters().values()} == {torch.float32}
    assert torch.equal(seen(prior, adapter), before)


@pytest.mark.parametrize("cell", ["sds", "sdi", "vsd", "reward-sds", "reward-vsd", "reward-sdi", "psd"])
def test_every_method_takes_a_finite_step(cell):
    prior = make("v_prediction" if cell == "vsd" else "epsilon")
    score = SDS()
    if "vsd" in cell:
        score = VSD(VSDOptions(rank=2), prior, 0)
    elif "sdi" in cell:
        score = SDI(SDIOptions())
    preference = NoPreference()
    if "reward" in cell:
        preference = Weighted(WeightedOptions(candidates=4, lookahead=3))
    elif cell == "psd":
        preference = PSD(PSDOptions())
    found, _ = step(prior, score, preference)
    assert found.value.shape == (2, 4, 8, 8)
    assert torch.isfinite(found.value).all()
    assert found.value.abs().max() > 0
    assert all(p.grad is None for p in prior.unet.parameters())


def test_before_it_learns_vsd_is_classifier_score_distillation():
    prior = make()
    found, moment = step(prior, VSD(VSDOptions(rank=2), prior, 0), NoPreference())
    x_t = moment.noised(torch.randn(moment.x.shape, generator=moment.rng("noise")))
    guided = moment.guided(x_t[None])
    with torch.no_grad():  # in a batch of the same size as the copy's: sums differ by rounding otherwise
        e_y = prior.predict(x_t, moment.t, moment.conditions.positive, moment.cameras)
    assert torch.equal(found.value, guided.eps[0] - e_y)
    assert torch.allclose(found.value, 6.5 * guided.direction[0], atol=1e-5)


def test_vsds_copy_learns_the_renders():
    prior = make()
    score = VSD(VSDOptions(rank=2, lr=1e-2), prior, 0)
    before = {name: p.detach().clone() for name, p in score.parameters.items()}
    moved = set()
    for n in range(2):  # at first the gradient of one matrix of each pair is zero
        found, _ = step(prior, score, NoPreference(), number=n)
        assert found.metrics["score/lora_loss"] > 0
        moved |= {name for name, p in score.parameters.items() if not torch.equal(p, before[name])}
    assert moved == set(before)


def test_psd_learns_all_of_its_negative_embedding_on_the_reward():
    prior = make()
    preference = PSD(PSDOptions(interval=1, lr=1e-2))
    given = prior.embed(["blurry"])["states"]
    found, _ = step(prior, SDS(), preference)
    learned = preference.negative({"states": given})["states"]
    assert learned.shape == (1, 77, 16)
    assert ((learned - given).abs() > 0).all()  # Adam's first step is lr for whatever has a gradient
    later, moment = step(prior, SDS(), preference, t=0.5)
    assert torch.equal(moment.conditions.negative["states"][0], learned[0])
    assert later.metrics["preference/negative_reward"] > found.metrics["preference/negative_reward"]


@pytest.mark.parametrize(("t", "views", "levels"), [(0.2, 2, 1), (0.5, 1, 3), (0.98, 1, 5)])
def test_reward_sds_in_one_batch_is_the_loop_over_its_candidates(t, views, levels):
    prior = make()
    for network in (prior.unet, prior.vae, prior.text_encoder):
        network.double()
    options = WeightedOptions(candidates=5, lookahead=5)
    moment = bench.moment_at(prior, randn(views, 4, 8, 8, dtype=torch.float64), t, GUIDED)
    ours, calls = bench.batched(moment, PANEL, options)
    loop, loop_calls = bench.literal(moment, PANEL, options)
    assert bench.difference(ours, loop) < 1e-9
    assert calls == views * 2 * 5 * levels
    assert loop_calls == calls + views * 2 * 4
