"""Stable Diffusion as a prior, on diffusers' and transformers' own classes with few random weights."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import shutil
import socket
from pathlib import Path

import huggingface_hub.constants
import pytest
import tiny_diffusion as tiny
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from splatgen.config import (
    GuidanceOptions,
    PriorOptions,
    PSDOptions,
    RewardOptions,
    SDIOptions,
    VSDOptions,
    WeightedOptions,
)
from splatgen.guidance.distillation import gradient
from splatgen.guidance.preferences import PSD, NoPreference, Weighted
from splatgen.guidance.scores import SDI, SDS, VSD
from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.priors import load_prior
from splatgen.priors.stable_diffusion import StableDiffusionPrior
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable

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


PANEL = RewardEnsemble(rewards=(Redness(),), weights=(1.0,), options=RewardOptions())


def step(prior, score, preference, t=0.5, number=0):
    """One step of guidance on two views."""
    moment = bench.moment_at(prior, randn(2, 4, 8, 8), t, GUIDED)
    given = prior.embed(["blurry"])
    negative = {"states": preference.negative(given)["states"].expand(2, -1, -1)}
    told = dataclasses.replace(moment.conditions, negative=negative)
    moment = dataclasses.replace(moment, conditions=told, plain=lambda: told, step=number)
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


# Out of files, as users load them.


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Loading asks nobody."""

    def refuse(*args):
        raise AssertionError(f"something called {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """WEIGHTS, with sd15 and sd21 in it."""
    weights = tmp_path_factory.mktemp("weights")
    for family in ("sd15", "sd21"):
        tiny.write_folder(weights / family, family)
    return weights


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def loaded(request, folder):
    return load(folder, request.param)


def load(folder, name="sd15", load_options=None, **options):
    return load_prior(name, PriorOptions(**options), LoadOptions(weights=str(folder), **(load_options or {})))


def refused(folder, words, name="sd15", **options):
    """One line that says so, the message as a whole."""
    with pytest.raises(WeightsError, match=words) as found:
        load(folder, name, **options).embed(["a"])
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 500
    return str(found.value)


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def same_networks(a, b):
    return all(same(getattr(a, name), getattr(b, name)) for name in ("unet", "vae", "text_encoder"))


def pipeline_of(prior, place):
    """diffusers' own, of the same files."""
    parts = {"vae": prior.vae, "unet": prior.unet, "text_encoder": prior.text_encoder}
    return StableDiffusionPipeline(
        **parts,
        tokenizer=prior.tokenizer,
        scheduler=DDIMScheduler.from_pretrained(place / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_a_loaded_model_says_what_it_is(loaded, folder):
    assert (loaded.views, loaded.x_range, loaded.prediction) == (1, None, "epsilon")
    assert loaded.resolution == tiny.SIDE
    assert loaded.source == str(folder / loaded.name)
    for network in (loaded.unet, loaded.vae, loaded.text_encoder):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def test_loaded_weights_are_those_of_the_files(loaded):
    parts = tiny.networks(loaded.name)
    assert all(same(getattr(loaded, name), network) for name, network in parts.items())


def test_loaded_prompts_are_embedded_as_the_pipeline_embeds_them(loaded, folder):
    prompts = ["a red Cube!", ""]
    states, negative = pipeline_of(loaded, folder / loaded.name).encode_prompt(prompts, "cpu", 1, True)
    assert torch.allclose(loaded.embed(prompts)["states"], states, atol=1e-6)
    assert torch.allclose(loaded.embed(["", ""])["states"], negative, atol=1e-6)
    filled = loaded.tokenizer(["a"], padding="max_length", max_length=5).input_ids[0][-1]
    assert filled == (0 if loaded.name == "sd21" else 513)  # each model was trained with its own


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("betas", [(0.00085, 0.012), (0.001, 0.02)])
def test_loaded_estimates_are_those_of_diffusers_sampler(folder, tmp_path, kind, betas):
    shutil.copytree(folder / "sd15", tmp_path / "sd15")
    numbers = dict(zip(("beta_start", "beta_end"), betas, strict=True))
    tiny.write_scheduler(tmp_path / "sd15", "sd15", prediction_type=kind, **numbers)
    prior = load(tmp_path)
    schedule = DDIMScheduler.from_pretrained(tmp_path / "sd15" / "scheduler")
    schedule.set_timesteps(1000)
    network = UNet2DConditionModel.from_pretrained(folder / "sd15" / "unet").double()
    prior.unet.double()
    x_t, t, told = randn(3, 4, 8, 8, dtype=torch.float64), torch.tensor([0.02, 0.5, 0.98]), prior.embed("abc")
    with torch.no_grad():
        eps, (alpha, sigma) = (
            prior.predict(x_t, t, told, turntable(3, size=16)),
            prior.alpha_sigma(t.double()),
        )
        for n, row in enumerate([20, 500, 980]):
            s = slice(n, n + 1)
            out = network(x_t[s], row, encoder_hidden_states=told["states"][s].double()).sample
            expected = schedule.step(out, row, x_t[s]).pred_original_sample
            x0 = (x_t[s] - sigma[s] * eps[s]) / alpha[s]
            assert torch.allclose(x0, expected, rtol=1e-6, atol=1e-6)  # its table is in float32


def test_attention_is_torchs_own_in_every_network(loaded):
    assert {type(p) for p in loaded.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert {type(p) for p in loaded.vae.attn_processors.values()} == {AttnProcessor2_0}
    assert loaded.text_encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_is_the_folder(loaded, tmp_path, suffix):
    parts, path = tiny.networks(loaded.name), tmp_path / f"made{suffix}"
    tensors = tiny.single_file(loaded.name, parts)
    if suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 3}, path)
    else:
        save_file(tensors, path)
    tiny.write_small(tmp_path / "weights" / loaded.name, loaded.name, parts, prediction_type="v_prediction")
    other = load(tmp_path / "weights", loaded.name, model=str(path))
    assert same_networks(loaded, other)
    assert other.prediction == "velocity"  # as its base says
    assert other.source == f"{path}, which predicts what {loaded.name} does, for it does not say"
    assert torch.equal(loaded.embed(["a!"])["states"], other.embed(["a!"])["states"])


def test_a_single_file_takes_the_precision_that_is_asked_for(folder, tmp_path):
    tensors = tiny.single_file("sd15", tiny.networks("sd15"))
    save_file({key: value.half() for key, value in tensors.items()}, tmp_path / "half.safetensors")
    prior = load(folder, model=str(tmp_path / "half.safetensors"), load_options={"precision": "bfloat16"})
    assert {p.dtype for n in (prior.unet, prior.vae, prior.text_encoder) for p in n.parameters()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.diffusion_model.time_embed.0.bias"), "lacks time_embedding.linear_1.bias"),
        (lambda t: t.pop("first_stage_model.quant_conv.bias"), "lacks quant_conv.bias"),
        (lambda t: [t.pop(k) for k in [*t] if k.startswith("cond_")], "does not fit CLIPTextModel: it lacks"),
        (
            lambda t: t.update({"model.diffusion_model.input_blocks.0.0.bias": torch.zeros(9)}),
            "has another shape of conv_in.bias",
        ),
        (
            lambda t: t.update({"model.diffusion_model.input_blocks.1.1.norm.scale": torch.zeros(9)}),
            "norm.scale",
        ),
        (
            lambda t: t.update({"model.diffusion_model.extra.weight": torch.zeros(9)}),
            "1 tensors have no place in the published architecture",
        ),
        (
            lambda t: t.update({"cond_stage_model.transformer.text_model.extra": torch.zeros(9)}),
            "the architecture has not, extra",
        ),
        (
            lambda t: t.update({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}),
            "holds a model for inpainting: give a model of Stable Diffusion 1 or 2",
        ),
        (
            lambda t: t.update({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 8, 3, 3)}),
            "shown a picture, too",
        ),
        (lambda t: t.update({"conditioner.embedders.1.x": torch.zeros(1)}), "holds Stable Diffusion XL"),
        (lambda t: t.update({"conditioner.embedders.0.x": torch.zeros(1)}), "holds the refiner of SDXL"),
        (lambda t: t.clear(), "holds no weights of a Stable Diffusion UNet"),
        (
            lambda t: (t.clear(), t.update(lora_unet_x=torch.zeros(1))),
            "LoRA weights .they go into prior.lora",
        ),
    ],
)
def test_a_single_file_that_is_not_whole_is_refused(folder, tmp_path, change, words):
    tensors = tiny.single_file("sd15", tiny.networks("sd15"))
    change(tensors)
    save_file(tensors, tmp_path / "odd.safetensors")
    assert "odd.safetensors" in refused(folder, words, model=str(tmp_path / "odd.safetensors"))


def test_a_single_file_of_another_version_is_refused(folder, tmp_path):
    save_file(tiny.single_file("sd21", tiny.networks("sd21")), tmp_path / "two.safetensors")
    refused(folder, "does not fit", model=str(tmp_path / "two.safetensors"))


def test_a_single_file_wants_its_base_and_says_how_to_get_it(tmp_path):
    save_file(tiny.single_file("sd15", tiny.networks("sd15")), tmp_path / "made.safetensors")
    words = r"made.safetensors is a single file, .* `splatgen fetch sd15 --small"
    refused(tmp_path / "none", words, model=str(tmp_path / "made.safetensors"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_channels": 9}, "holds a model for inpainting"),
        ({"in_channels": 8}, "a model that is shown a picture, too .8 channels in"),
        (
            {"addition_embed_type": "text_time"},
            "holds Stable Diffusion XL: give a model of Stable Diffusion 1",
        ),
        ({"encoder_hid_dim": 4096}, "holds DeepFloyd IF"),
        ({"class_embed_type": "projection"}, "told a class, or the embedding of a picture"),
        ({"num_class_embeds": 1000}, "told a class"),
        ({"cross_attention_dim": 99}, "UNet2DConditionModel can't be loaded from .* expected shape"),
    ],
)
def test_another_architecture_is_named(folder, tmp_path, change, words):
    shutil.copytree(folder / "sd15", tmp_path / "odd")
    path = tmp_path / "odd" / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(folder, words, model=str(tmp_path / "odd"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: shutil.rmtree(f / "unet"), "odd holds a StableDiffusionPipeline"),
        (lambda f: (shutil.rmtree(f / "unet"), (f / "model_index.json").unlink()), "no unet/config.json"),
        (lambda f: (f / "vae" / "config.json").unlink(), "vae has no config.json"),
        (lambda f: (f / "tokenizer" / "vocab.json").unlink(), "tokenizer has no vocab.json"),
        (lambda f: (f / "tokenizer" / "vocab.json").write_text("{"), "CLIPTokenizer can't be loaded"),
        (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json is missing"),
        (lambda f: tiny.write_scheduler(f, "sd15", beta_schedule="odd"), "DDPMScheduler can't be loaded"),
        (lambda f: tiny.write_scheduler(f, "sd15", prediction_type="sample"), "predicts 'sample'"),
        (
            lambda f: tiny.write_scheduler(f, "sd15", _class_name="FlowMatchEulerDiscreteScheduler"),
            "no table",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path, change, words):
    shutil.copytree(folder / "sd15", tmp_path / "odd")
    change(tmp_path / "odd")
    refused(folder, words, model=str(tmp_path / "odd"))


def test_parts_of_different_sizes_are_refused(folder, tmp_path):
    tiny.write_folder(
        tmp_path / "odd",
        "sd15",
        parts={**tiny.networks("sd15"), "unet": tiny.unet("sd15", cross_attention_dim=24)},
    )
    refused(folder, "takes 24 text features and gets 16", model=str(tmp_path / "odd"))


def test_a_model_can_be_named_by_its_id_in_the_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    place, commit = tmp_path / "models--some--model", "0123456789" * 4
    shutil.copytree(folder / "sd21", place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    (place / "refs" / "v2").write_text(commit)
    for options in ({}, {"revision": "v2"}, {"revision": commit}):
        assert load(folder, model="some/model", **options).source == f"some/model@{commit}"
    refused(folder, "there are no weights at 'some/model'", model="some/model", revision="v3")
    refused(folder, "there are no weights at 'some/other'", model="some/other")


def test_half_precision_files_are_read_where_there_are_no_others(folder, tmp_path):
    tiny.write_folder(tmp_path / "sd15", "sd15", half=True)
    full, half = load(folder), load(tmp_path)
    for name in ("unet", "vae", "text_encoder"):
        a, b = getattr(full, name), getattr(half, name)
        assert b.dtype == torch.float32
        pairs = list(zip(a.state_dict().values(), b.state_dict().values(), strict=True))
        assert all(torch.equal(x.half().float(), y) for x, y in pairs)
        assert not all(torch.equal(x, y) for x, y in pairs)


def test_loaded_in_half_precision_it_takes_and_gives_the_callers(folder):
    full, half = load(folder), load(folder, load_options={"precision": "bfloat16"})
    assert {n.dtype for n in (half.unet, half.vae, half.text_encoder)} == {torch.bfloat16}
    images, t = torch.rand(2, 3, 16, 16, generator=rng(0, 0, "image")), torch.tensor([0.3, 0.9])
    told = [prior.embed(["a", ""]) for prior in (full, half)]
    assert {c["states"].dtype for c in told} == {torch.float32}
    with torch.no_grad():
        x, y = (prior.encode(images) for prior in (full, half))
        e, f = (p.predict(x, t, c, turntable(2, size=16)) for p, c in zip((full, half), told, strict=True))
        i, j, k = full.decode(x), half.decode(x), half.preview(x)
    assert {z.dtype for z in (y, f, j, k)} == {torch.float32}
    for ours, close in ((x, y), (e, f), (i, j)):
        assert 0 < (ours - close).norm() < 0.05 * ours.norm()


def test_the_text_encoder_is_let_go_and_loaded_again(folder):
    prior = load(folder)
    before, network = prior.embed(["a"])["states"], prior.text_encoder
    prior.release()
    prior.release()
    assert torch.equal(prior.embed(["a"])["states"], before)
    assert prior.text_encoder is not network


def test_previews_come_from_the_tiny_autoencoder(folder, tmp_path):
    refused(tmp_path, "`splatgen fetch taesd", preview="tiny", model=str(folder / "sd15"))
    tiny.tiny_vae().save_pretrained(folder / "taesd")
    prior, x = load(folder, preview="tiny"), 3.0 * randn(2, 4, 8, 8)
    expected = AutoencoderTiny.from_pretrained(folder / "taesd").decode(x).sample
    assert expected.min() < -0.1  # it speaks -1..1
    found = prior.preview(x)
    assert torch.allclose(found, (expected / 2 + 0.5).clamp(0, 1), atol=1e-6)
    plain = load(folder)
    assert torch.equal(plain.preview(x), plain.decode(x))
    assert torch.equal(prior.decode(x), plain.decode(x))


@contextlib.contextmanager
def batches(network):
    """The sizes of the batches that a network's forward sees."""
    seen = []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    yield seen
    handle.remove()


@pytest.mark.parametrize(("at_once", "sizes"), [(0, [5]), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_so_many_latents_are_decoded_at_once_where_no_gradient_is_asked(folder, at_once, sizes):
    prior, x = load(folder, load_options={"decode": at_once}), randn(5, 4, 8, 8)
    whole = prior.decode(x.requires_grad_())
    for work in (prior.decode, prior.preview):
        with torch.no_grad(), batches(prior.vae.decoder) as seen:
            assert torch.allclose(work(x), whole, atol=1e-6)
        assert seen == sizes
    with batches(prior.vae.decoder) as seen:
        prior.decode(x).sum().backward()
    assert seen == [5]


def test_checkpointing_changes_no_gradient_and_runs_the_blocks_again(folder):
    found = []
    for checkpointing in (False, True):
        prior = load(folder, load_options={"checkpointing": checkpointing})
        states = prior.embed(["a"])["states"].requires_grad_()
        block, x_t, t = prior.unet.up_blocks[-1].resnets[-1], randn(1, 4, 8, 8), torch.tensor([0.5])
        with batches(block) as seen:
            eps = prior.predict(x_t, t, {"states": states}, turntable(1, size=16))
            (gradient_,) = torch.autograd.grad(prior.decode(eps).square().sum(), states)
        assert len(seen) == 1 + checkpointing
        found.append(gradient_)
        with torch.no_grad(), batches(block) as seen:
            prior.predict(x_t, t, {"states": states}, turntable(1, size=16))
        assert len(seen) == 1
    assert found[0].abs().max() > 0
    assert torch.allclose(*found, rtol=1e-4, atol=1e-7)


def test_the_denoiser_is_compiled_when_that_is_asked_for(folder):
    assert load(folder).unet._compiled_call_impl is None
    prior = load(folder, load_options={"compile": True})
    assert prior.unet._compiled_call_impl is not None
    assert prior.vae._compiled_call_impl is None


def networks_of(prior):
    return {"unet": prior.unet, "text_encoder": prior.text_encoder}


def styled_by(folder, tmp_path, tensors, metadata=None, **options):
    save_file(tensors, tmp_path / "style.safetensors", metadata=metadata)
    return load(folder, lora=str(tmp_path / "style.safetensors"), **options)


def is_merged(usual, styled, added, scale=1.0):
    return all(
        torch.allclose(
            networks_of(styled)[part].get_submodule(name).weight,
            networks_of(usual)[part].get_submodule(name).weight + scale * delta,
            atol=1e-6,
        )
        for (part, name), delta in added.items()
    )


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_lora_files_are_merged(folder, tmp_path, form, scale):
    usual = load(folder)
    tensors, added = tiny.lora(networks_of(usual), form, alphas=form == "kohya")
    styled = styled_by(folder, tmp_path, tensors, lora_scale=scale)
    assert len(added) > 30
    assert is_merged(usual, styled, added, scale)
    assert styled.source == f"{usual.source} + {scale:g} of {tmp_path / 'style.safetensors'}"
    before = styled.embed(["a"])["states"]
    assert not torch.allclose(before, usual.embed(["a"])["states"], atol=1e-3)
    styled.release()
    assert torch.equal(styled.embed(["a"])["states"], before)


def test_lora_files_of_diffusers_own_writer_are_merged_with_their_alphas(folder, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    usual, taught = load(folder), load(folder)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"], alpha_pattern={"attn2.to_q": 5.0})
    taught.unet.add_adapter(config)
    with torch.no_grad():
        for n, p in enumerate(p for name, p in taught.unet.named_parameters() if "lora" in name):
            p.copy_(0.3 * randn(*p.shape, purpose=f"shake {n}"))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(taught.unet),
        unet_lora_adapter_metadata=taught.unet.peft_config["default"].to_dict(),
        weight_name="style.safetensors",
    )
    styled = load(folder, lora=str(tmp_path / "style.safetensors"))
    a, b, c = (prior_predict(prior) for prior in (usual, taught, styled))
    assert torch.allclose(b, c, atol=1e-5)
    assert not torch.allclose(a, c, atol=1e-2)


def test_vsds_copy_starts_from_merged_weights(folder, tmp_path):
    tensors, added = tiny.lora({"unet": load(folder).unet}, "kohya")
    styled = styled_by(folder, tmp_path, tensors)
    before, adapter = prior_predict(styled), copy_of(styled)
    assert torch.equal(seen(styled, adapter), before)
    assert torch.equal(prior_predict(styled), before)
    assert is_merged(load(folder), load(folder, lora=str(tmp_path / "style.safetensors")), added)


SECOND = "lora_te2_text_model_encoder_layers_0_mlp_fc1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.clear(), "holds no LoRA weights"),
        (
            lambda t: t.update({"lora_unet_nothing_to_q.alpha": torch.tensor(1.0)}),
            "not plain LoRA|has lora_unet_",
        ),
        (lambda t: t.update({"some.weight": torch.zeros(2)}), "style.safetensors"),
        (lambda t: t.pop("lora_unet_mid_block_resnets_0_conv1.lora_up.weight"), "style.safetensors"),
        (
            lambda t: t.update(
                {"lora_unet_mid_block_resnets_0_conv1.lora_down.weight": torch.zeros(0, 16, 3, 3)}
            ),
            "has no two matrices for unet.mid_block.resnets.0.conv1",
        ),
        (lambda t: t.update({"lora_unet_x.dora_scale": torch.zeros(2)}), "is not plain LoRA"),
        (lambda t: t.update({"lora_unet_x.hada_w1_a": torch.zeros(2)}), "style.safetensors"),
        (
            lambda t: t.update({f"{SECOND}.lora_{d}.weight": torch.zeros(2, 2) for d in ("up", "down")}),
            "changes text_encoder_2",
        ),
        (
            lambda t: t.update(
                {f"lora_unet_nowhere.lora_{d}.weight": torch.zeros(2, 2) for d in ("up", "down")}
            ),
            "changes nowhere.*, which unet has not",
        ),
        (
            lambda t: t.update(
                {"lora_unet_mid_block_resnets_0_conv1.lora_up.weight": torch.zeros(99, 1, 1, 1)}
            ),
            "give LoRA weights that were trained on this model",
        ),
    ],
)
def test_lora_files_that_do_not_fit_are_refused(folder, tmp_path, change, words):
    tensors, _ = tiny.lora({"unet": load(folder).unet}, "kohya")
    change(tensors)
    save_file(tensors, tmp_path / "style.safetensors")
    refused(folder, words, lora=str(tmp_path / "style.safetensors"))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "can't be loaded"),
        ("[]", "can't be loaded"),
        ('{"unet.use_dora": true}', "is not plain LoRA .unet.use_dora"),
        ('{"unet.use_rslora": true}', "is not plain LoRA .unet.use_rslora"),
        ('{"unet.lora_alpha": "words"}', "can't be loaded"),
    ],
)
def test_lora_files_with_odd_words_about_them_are_refused(folder, tmp_path, said, words):
    tensors, _ = tiny.lora({"unet": load(folder).unet}, "peft")
    save_file(tensors, tmp_path / "style.safetensors", metadata={"lora_adapter_metadata": said})
    refused(folder, words, lora=str(tmp_path / "style.safetensors"))


@pytest.mark.parametrize("key", ["conv_in.lora_B.bias", "conv_in.lora_B.weight", "conv_in.lora_A.bias"])
def test_lora_files_with_something_left_over_are_refused(folder, tmp_path, key):
    tensors, _ = tiny.lora({"unet": load(folder).unet}, "peft")
    save_file({**tensors, f"unet.{key}": torch.zeros(8, 2)}, tmp_path / "style.safetensors")
    refused(folder, f"has unet.{key}, which is not LoRA", lora=str(tmp_path / "style.safetensors"))


def test_lora_files_that_are_none_are_refused(folder, tmp_path):
    refused(folder, "does not exist", lora=str(tmp_path / "none.safetensors"))
    (tmp_path / "style.safetensors").write_bytes(b"")
    refused(folder, "can't be loaded", lora=str(tmp_path / "style.safetensors"))
    torch.save({}, tmp_path / "style.pt")
    refused(folder, "are read from .safetensors files", lora=str(tmp_path / "style.pt"))


def test_a_loaded_model_reads_75_tokens(loaded):
    loaded.embed(["a " * 75])
    with pytest.raises(ValueError, match=f"has 76 tokens and {loaded.name} reads 75: shorten it"):
        loaded.embed(["a " * 76])
