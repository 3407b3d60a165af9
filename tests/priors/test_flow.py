"""Stable Diffusion 3 and 3.5, real classes with few random weights; and what scores make of a flow."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import tiny_t5
import torch
from analytic import GaussianPrior, distil, expected_direction, moment, normal, pattern
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from splatgen.config import GuidanceOptions, ISMOptions, PriorOptions, SDIOptions
from splatgen.guidance.denoiser import Denoiser, amplitudes
from splatgen.guidance.distillation import gradient
from splatgen.guidance.inversion import ddim_step, posterior_std, rising, walk
from splatgen.guidance.preferences import NoPreference
from splatgen.guidance.scores import CSD, ISM, SDI, SDS
from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.priors import load_prior
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable

CAMERAS = turntable(2, size=16)
PROMPTS = ["a red cube, side view", ""]
DOUBLE = torch.float64


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of published models."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_t5.sd3(folder / "sd3")
    tiny_t5.sd3(folder / "sd35", version="3.5", t5=False)
    tiny_t5.taesd3(folder / "taesd3")
    return folder


def load(weights, name="sd3", options=None, **load_options):
    return load_prior(name, options or PriorOptions(), LoadOptions(weights=str(weights), **load_options))


@pytest.fixture(scope="module")
def prior(weights):
    return load(weights)


@pytest.fixture(scope="module")
def exact(weights):
    """In float64."""
    prior = load(weights)
    prior.transformer.double()
    return prior


@pytest.fixture(scope="module")
def pipeline(weights):
    """diffusers' own, out of the same files."""
    return make_pipeline(weights / "sd3", t5=True)


def make_pipeline(folder, t5):
    found = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(folder / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        text_encoder_3=T5EncoderModel.from_pretrained(folder / "text_encoder_3") if t5 else None,
        tokenizer_3=T5Tokenizer.from_pretrained(folder / "tokenizer_3") if t5 else None,
    )
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def copied(weights, tmp_path):
    """The same weights, to be spoilt."""
    shutil.copytree(weights, tmp_path / "weights")
    return tmp_path / "weights"


def randn(*shape, purpose="x", dtype=torch.float32):
    return torch.randn(*shape, generator=rng(0, 0, purpose), dtype=dtype)


def velocity(prior, x, t, told):
    """What the network itself says."""
    return prior.transformer(
        hidden_states=x, timestep=1000 * t, encoder_hidden_states=told["states"].to(x),
        pooled_projections=told["pooled"].to(x),
    ).sample  # fmt: skip


# The flow


def test_it_is_a_latent_prior_whose_amplitudes_add_up_to_one(weights, prior):
    assert (prior.name, prior.views, prior.resolution, prior.x_range) == ("sd3", 1, 16, None)
    assert prior.prediction == "velocity"
    assert prior.source == str(weights / "sd3")
    t = torch.tensor([0.0, 0.02, 0.5, 0.98, 1.0])
    alpha, sigma = prior.alpha_sigma(t)
    assert alpha.shape == sigma.shape == (5, 1, 1, 1)
    assert torch.equal(sigma.flatten(), t)
    torch.testing.assert_close(alpha + sigma, torch.ones(5, 1, 1, 1))


def test_noise_and_estimate_are_those_of_the_networks_velocity(exact):
    x, t = randn(2, 16, 8, 8, dtype=DOUBLE), torch.tensor([0.3, 0.97], dtype=DOUBLE)
    told = exact.embed(PROMPTS)
    s = t.view(-1, 1, 1, 1)
    with torch.no_grad():
        eps, v = exact.predict(x, t, told, CAMERAS), velocity(exact, x, t, told)
        found = Denoiser(exact, GuidanceOptions()).finish(x, t, eps, None, None, 1.0)
    torch.testing.assert_close(eps, x + (1 - s) * v, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.x0, x - s * v, rtol=0, atol=1e-12)
    torch.testing.assert_close((1 - s) * found.x0 + s * eps, x, rtol=0, atol=1e-12)


def test_differences_of_noise_are_alpha_times_those_of_velocity(exact):
    """Which is how a loss on velocities is written for predictions of noise."""
    x, t = randn(2, 16, 8, 8, dtype=DOUBLE), torch.tensor([0.3, 0.97], dtype=DOUBLE)
    one, other = (exact.embed([prompt] * 2) for prompt in PROMPTS)
    with torch.no_grad():
        noises = exact.predict(x, t, one, CAMERAS) - exact.predict(x, t, other, CAMERAS)
        velocities = velocity(exact, x, t, one) - velocity(exact, x, t, other)
    assert velocities.abs().max() > 1e-3
    torch.testing.assert_close(noises / exact.alpha_sigma(t)[0], velocities, rtol=0, atol=1e-12)


def test_at_the_end_of_time_all_is_noise_whatever_the_network_says(prior):
    x = randn(2, 16, 8, 8)
    with torch.no_grad():
        assert torch.equal(prior.predict(x, torch.ones(2), prior.embed(PROMPTS), CAMERAS), x)


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_guided_steps_are_diffusers_pipelines(weights, name):
    """Two steps down to 0, with the pipeline's own text, guidance, times and sampler."""
    prior = load(weights, name, PriorOptions(t5=name == "sd3"))
    pipeline = make_pipeline(weights / name, t5=name == "sd3")
    x = start = randn(1, 16, 8, 8)
    theirs = pipeline(
        PROMPTS[0],
        negative_prompt="blue",
        guidance_scale=5.0,
        num_inference_steps=2,
        sigmas=[0.8, 0.4],
        height=16,
        width=16,
        latents=start,
        output_type="latent",
    ).images
    sigmas = pipeline.scheduler.sigmas
    assert sigmas.tolist() == pytest.approx(
        [12 / 13, 2 / 3, 0.0]
    )  # shifted by 3: other sigmas, no other model
    at = moment(prior, x, 0.5, prompt=PROMPTS[0], negative="blue", cameras=CAMERAS[:1])
    denoiser = Denoiser(prior, GuidanceOptions())
    for here, there in itertools.pairwise(sigmas):
        eps = denoiser.guided(x, here[None], at.plain(), CAMERAS[:1], scale=5.0).eps
        x = ddim_step(prior, x, eps, here[None], there[None])
    assert (theirs - start).abs().mean() > 0.1
    torch.testing.assert_close(x, theirs, rtol=1e-4, atol=1e-4)


def test_a_step_in_half_precision_answers_in_the_precision_of_the_asker(weights, prior):
    half = load(weights, precision="bfloat16", checkpointing=True)
    x, t = randn(2, 16, 8, 8), torch.tensor([0.3, 0.8])
    told = half.embed(PROMPTS)
    assert {value.dtype for value in told.values()} == {torch.float32}
    eps = half.predict(x, t, told, CAMERAS)
    assert eps.dtype == torch.float32
    assert half.transformer.dtype == half.latents.vae.dtype == torch.bfloat16
    torch.testing.assert_close(eps, prior.predict(x, t, prior.embed(PROMPTS), CAMERAS), rtol=0, atol=0.1)


# Text


def test_prompts_are_read_as_diffusers_pipeline_reads_them(pipeline, prior):
    told = prior.embed(PROMPTS)
    text, negative, pooled, negative_pooled = pipeline.encode_prompt(*PROMPTS[:1] * 3, device="cpu")
    assert told["states"].shape == (2, 77 + 256, tiny_t5.T5_WIDTH)
    torch.testing.assert_close(told["states"], torch.cat([text, negative]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(told["pooled"], torch.cat([pooled, negative_pooled]), rtol=1e-4, atol=1e-5)


def test_without_t5_zeros_stand_for_its_states_and_its_files_may_be_missing(weights):
    prior = load(weights, "sd35", PriorOptions(t5=False))
    pipeline = make_pipeline(weights / "sd35", t5=False)
    told = prior.embed(PROMPTS[:1])
    text, _, pooled, _ = pipeline.encode_prompt(*PROMPTS[:1] * 3, device="cpu")
    torch.testing.assert_close(told["states"], text, rtol=0, atol=1e-6)
    torch.testing.assert_close(told["pooled"], pooled, rtol=0, atol=1e-6)
    assert not told["states"][:, 77:].any()
    assert told["states"][:, :77].any()
    with pytest.raises(WeightsError, match="text_encoder_3"):
        load(weights, "sd35")


def test_a_prompt_that_would_be_cut_is_refused(prior):
    assert prior.embed(["r" * 75])["states"].shape == (1, 333, tiny_t5.T5_WIDTH)
    with pytest.raises(ValueError, match=r"has 76 tokens and sd3 reads 75: shorten it"):
        prior.embed(["r" * 76])


def test_all_text_encoders_are_let_go_and_come_back(copied):
    prior = load(copied)
    before = prior.embed(PROMPTS)
    prior.release()
    after = prior.embed(PROMPTS)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    prior.release()
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3"):  # so each was really let go
        place = copied / "sd3" / part
        place.rename(copied / "aside")
        with pytest.raises(WeightsError, match=f"{part} has no"):
            prior.embed(PROMPTS)
        (copied / "aside").rename(place)
        prior.release()


# Latents


def test_latents_are_shifted_and_scaled_as_the_pipeline_has_them(pipeline, prior):
    images = torch.rand(2, 3, 32, 32, generator=rng(0, 0, "image"))
    small = torch.nn.functional.interpolate(images, size=(16, 16), mode="bilinear", antialias=True)
    x = prior.encode(images)
    assert x.shape == (2, 16, 8, 8)
    mean = pipeline.vae.encode(2 * small - 1).latent_dist.mean
    torch.testing.assert_close(x, (mean - 0.0609) * 1.5305, rtol=0, atol=1e-5)
    bare = pipeline.vae.decode(x / 1.5305 + 0.0609).sample
    torch.testing.assert_close(prior.decode(x), (bare / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    assert torch.equal(prior.preview(x), prior.decode(x))


def test_previews_can_come_from_the_tiny_autoencoder(weights):
    prior = load(weights, options=PriorOptions(preview="tiny"))
    x = randn(2, 16, 8, 8)
    tiny = AutoencoderTiny.from_pretrained(weights / "taesd3")
    torch.testing.assert_close(prior.preview(x), (tiny.decode(x).sample / 2 + 0.5).clamp(0, 1))
    assert not torch.allclose(prior.preview(x), prior.decode(x), atol=1e-2)


# Files


def lora_file(folder, *keys, rank=2):
    """A LoRA file for attention, in diffusers' layout."""
    path = folder / "lora.safetensors"
    tensors = {}
    for key in keys:
        tensors[f"{key}.lora_A.weight"] = randn(rank, 16, purpose="a")
        tensors[f"{key}.lora_B.weight"] = randn(16, rank, purpose="b")
    save_file(tensors, path)
    return path


def test_lora_weights_are_merged_as_the_pipeline_merges_them(weights, tmp_path):
    path = lora_file(tmp_path, "transformer.transformer_blocks.0.attn.to_q")
    x, t = randn(2, 16, 8, 8), torch.tensor([0.3, 0.8])
    prior = load(weights, options=PriorOptions(lora=str(path), lora_scale=0.5))
    assert prior.source == f"{weights / 'sd3'} + 0.5 of {path}"
    pipeline = make_pipeline(weights / "sd3", t5=True)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=["transformer"], lora_scale=0.5)
    told = prior.embed(PROMPTS)
    with torch.no_grad():
        ours = velocity(prior, x, t, told)
        prior.transformer = pipeline.transformer
        torch.testing.assert_close(ours, velocity(prior, x, t, told), rtol=1e-4, atol=1e-5)
        plain = velocity(load(weights), x, t, told)
    assert (ours - plain).abs().mean() > 1e-3


@pytest.mark.parametrize("key", ["unet.mid_block.to_q", "transformer.transformer_blocks.9.attn.to_q"])
def test_lora_weights_for_another_model_are_refused(weights, tmp_path, key):
    with pytest.raises(WeightsError, match=r"lora\.safetensors changes .*give LoRA weights"):
        load(weights, options=PriorOptions(lora=str(lora_file(tmp_path, key))))


def test_a_folder_that_a_user_names_takes_the_place_of_the_published_one(weights):
    prior = load_prior("sd35", PriorOptions(model=str(weights / "sd3")), LoadOptions())
    assert (prior.name, prior.source) == ("sd35", str(weights / "sd3"))


def test_weights_that_are_not_there_are_said_to_be_missing(tmp_path):
    with pytest.raises(WeightsError, match=r"splatgen fetch sd3.*accepting the licence"):
        load(tmp_path)


PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


@pytest.mark.parametrize(
    "lost",
    [
        *(f"{part}/config.json" for part in PARTS),
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer_2/merges.txt",
        "tokenizer_3/tokenizer.json",
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_missing_file_is_noticed_as_the_model_is_loaded(copied, lost, named):
    (copied / "sd3" / lost).unlink()
    if lost.startswith("tokenizer_3"):
        (copied / "sd3" / "tokenizer_3" / "spiece.model").unlink()
    options = PriorOptions(model=str(copied / "sd3")) if named else PriorOptions()
    with pytest.raises(WeightsError, match=lost.split("/", maxsplit=1)[0]):
        load(copied, options=options)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("named", [False, True])
def test_weights_that_were_cut_are_noticed_before_a_run_begins(copied, part, named):
    (path,) = (copied / "sd3" / part).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    options = PriorOptions(model=str(copied / "sd3")) if named else PriorOptions()
    with pytest.raises(WeightsError, match=part):
        load(copied, options=options).embed(PROMPTS)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("transformer", {"num_layers": 3}),
        ("transformer", {"qk_norm": "rms_norm"}),
        ("vae", {"latent_channels": 4}),
        ("text_encoder_2", {"hidden_size": 32}),
        ("text_encoder_3", {"num_layers": 3}),
    ],
)
def test_weights_of_another_architecture_are_refused(copied, part, change):
    path = copied / "sd3" / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=f"be loaded from .*/{part}: |/{part} does not fit"):
        load(copied).embed(PROMPTS)


def test_parts_that_do_not_belong_together_are_refused(copied):
    folder = copied / "sd3"
    shutil.rmtree(folder / "text_encoder_2")
    shutil.copytree(folder / "text_encoder", folder / "text_encoder_2")
    with pytest.raises(WeightsError, match=r"make 48 and 32 features .* takes 48 and 40"):
        load(copied).embed(PROMPTS)


def test_what_is_no_flow_is_refused(copied, tmp_path):
    path = copied / "sd3" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}))
    with pytest.raises(WeightsError, match="schedule for DDIMScheduler over 1000 times"):
        load(copied)
    file = lora_file(tmp_path, "transformer")
    with pytest.raises(WeightsError, match="is a single file: give sd3 as a folder"):
        load(copied, options=PriorOptions(model=str(file)))


# What samplers and scores make of a flow


class FlowGaussian(GaussianPrior):
    """The exact denoiser of Gaussian data on a flow: x_t ~ N((1 - t) mean, (1 - t)^2 spread^2 + t^2)."""

    prediction = "velocity"

    def alpha_sigma(self, t):
        sigma = t.view(-1, 1, 1, 1)
        return 1.0 - sigma, sigma


TIMES = torch.tensor([0.35, 0.9], dtype=DOUBLE)
times = st.floats(0.0, 0.98)


@given(times, times)
@settings(max_examples=30)
def test_a_step_is_eulers_on_the_velocity(low, high):
    prior, x = FlowGaussian(pattern, spread=0.5), normal("x")
    t, to = (torch.full((2,), value, dtype=DOUBLE) for value in (low, high))
    eps = prior.predict(x, t, prior.embed(["a"] * 2), turntable(2, size=6))
    alpha, sigma = amplitudes(prior, t)
    x0 = (x - sigma * eps) / alpha
    torch.testing.assert_close(ddim_step(prior, x, eps, t, to), x + (high - low) * (eps - x0))


def test_many_steps_follow_the_flow_of_a_gaussian():
    """Data N(0, s^2): the flow scales x by its level's deviation, sqrt((1 - t)^2 s^2 + t^2) / s."""
    step = moment(FlowGaussian(pattern, spread=0.5), normal("x"), TIMES)
    levels = rising(TIMES, torch.full((2,), 400.0))
    x = normal("start", 1, 2, 3, 6, 6)
    top = walk(step, x, levels, scale=0.0, plain=True)  # without a prompt the mean is 0
    alpha, sigma = step.amplitudes()
    torch.testing.assert_close(top, (alpha**2 * 0.25 + sigma**2).sqrt() / 0.5 * x, rtol=0.01, atol=0)
    back = walk(step, top, levels.flip(0), scale=0.0, plain=True)
    torch.testing.assert_close(back, x, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    "prior",
    [
        pytest.param(FlowGaussian(pattern), id="flow"),
        pytest.param(GaussianPrior(pattern), id="cosine"),
    ],
)
def test_noise_added_between_levels_is_that_of_the_posterior(prior):
    """Of Gaussian conditioning, from the two levels alone: x_low = a x0 + s n, x_high = r x_low + q n'."""
    low, high = torch.tensor([0.2, 0.5], dtype=DOUBLE), torch.tensor([0.3, 0.9], dtype=DOUBLE)
    (a, s), (a_high, s_high) = prior.alpha_sigma(low), prior.alpha_sigma(high)
    r = a_high / a
    q = s_high**2 - (r * s) ** 2  # what is added on the way up
    expected = 1.0 / (1.0 / s**2 + r**2 / q)  # precisions add up
    torch.testing.assert_close(posterior_std(prior, low, high), expected.sqrt())


def test_sds_points_where_the_flow_says_on_average():
    many, prior = torch.arange(2).repeat(2000), FlowGaussian(pattern, spread=0.5)
    x, cameras = normal("render").tanh(), turntable(2, size=6)
    at = moment(prior, x[many], TIMES[many], cameras=cameras[many])
    found = gradient(at, SDS(), NoPreference(), None).value.unflatten(0, (2000, 2)).mean(0)
    expected = expected_direction(x, pattern(cameras), *prior.alpha_sigma(TIMES), 0.5)
    assert expected.abs().mean() > 0.3
    assert (found - expected).abs().mean() < 0.03


def test_csd_is_what_guidance_adds():
    x, prior, scale = normal("render").tanh(), FlowGaussian(pattern, spread=0.5), 7.5
    at = moment(prior, x, TIMES, options=GuidanceOptions(scale=scale, clamp=False))
    alpha, sigma = prior.alpha_sigma(TIMES)
    pull = -sigma * alpha * pattern(turntable(2, size=6)) / (alpha**2 * 0.25 + sigma**2)  # e_y - e_n
    torch.testing.assert_close(gradient(at, CSD(), NoPreference(), None).value, (scale - 1) * pull)


def test_sdi_finds_the_noise_of_a_render_and_leaves_what_the_prior_made():
    """Many steps up: the noise takes the render to x_t on the flow, and back down to itself."""
    x, prior = normal("render").tanh(), FlowGaussian(pattern, spread=0.5)
    at = moment(prior, x, TIMES)
    options = SDIOptions(steps=400, scale=1.0, entropy=0.0, tau=0.0)
    found = gradient(at, SDI(options), NoPreference(), None)
    alpha, sigma = prior.alpha_sigma(TIMES)
    mean = pattern(turntable(2, size=6))
    on_flow = alpha * mean + (alpha**2 * 0.25 + sigma**2).sqrt() / 0.5 * (x - mean)
    noise = SDI(options).noises(at, 1).noise
    torch.testing.assert_close(at.noised(noise)[0], on_flow, rtol=0, atol=0.02)
    torch.testing.assert_close(found.value, x - found.x0[0], rtol=0, atol=1e-10)


def test_ism_ends_its_interval_where_a_step_of_the_flow_ends():
    x, prior = normal("render").tanh(), FlowGaussian(pattern, spread=0.5)
    at = moment(prior, x, TIMES)
    options = ISMOptions(interval=0.1, step=0.001, start=0.0)
    noised = ISM(options).noises(at, 1)
    s = TIMES - 0.1
    alpha, sigma = prior.alpha_sigma(s)
    x_s = (alpha**2 * 0.25 + sigma**2).sqrt() / 0.5 * x  # unconditional: the mean is 0
    e_s = sigma * x_s / (alpha**2 * 0.25 + sigma**2)
    torch.testing.assert_close(noised.baseline[0], e_s, rtol=0.01, atol=0.01)
    torch.testing.assert_close(
        at.noised(noised.noise)[0], ddim_step(prior, x_s, e_s, s, TIMES), rtol=0.01, atol=0.01
    )


class Told(FlowGaussian):
    """Knows its mean without a prompt, too."""

    def embed(self, prompts):
        return {"known": torch.ones(len(prompts), dtype=DOUBLE)}


@pytest.mark.parametrize("score", [SDS(), SDI(SDIOptions()), ISM(ISMOptions())], ids=["sds", "sdi", "ism"])
def test_scores_bring_a_picture_to_what_the_flow_knows(score):
    assert distil(Told(pattern, spread=0.1), score, steps=100) < 0.05
