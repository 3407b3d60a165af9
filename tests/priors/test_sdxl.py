"""Stable Diffusion XL out of files in the published layout, against diffusers' own pipeline."""

from __future__ import annotations

import json

import pytest
import tiny_diffusion as tiny
import torch
from analytic import moment
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from splatgen.config import GuidanceOptions, PriorOptions, PSDOptions, RewardOptions, VSDOptions
from splatgen.guidance.distillation import gradient
from splatgen.guidance.preferences import PSD, NoPreference
from splatgen.guidance.scores import SDS, VSD
from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.priors import load_prior
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable

PROMPTS = ["a red cube, side view", "B!", ""]
CAMERAS = turntable(3, size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """WEIGHTS, with sdxl in it."""
    weights = tmp_path_factory.mktemp("weights")
    tiny.write_folder(weights / "sdxl", "sdxl")
    return weights


@pytest.fixture(scope="module")
def pipeline(folder):
    """diffusers' own, of the same files."""
    place = folder / "sdxl"
    with torch.no_grad():
        return StableDiffusionXLPipeline(
            vae=AutoencoderKL.from_pretrained(place / "vae"),
            text_encoder=CLIPTextModel.from_pretrained(place / "text_encoder"),
            text_encoder_2=CLIPTextModelWithProjection.from_pretrained(place / "text_encoder_2"),
            tokenizer=CLIPTokenizer.from_pretrained(place / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(place / "tokenizer_2"),
            unet=UNet2DConditionModel.from_pretrained(place / "unet"),
            scheduler=EulerDiscreteScheduler.from_pretrained(place / "scheduler"),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )


@pytest.fixture(scope="module")
def prior(folder):
    return load(folder)


def load(folder, load_options=None, **options):
    return load_prior(
        "sdxl", PriorOptions(**options), LoadOptions(weights=str(folder), **(load_options or {}))
    )


def randn(*shape, purpose="x", dtype=torch.float32):
    return torch.randn(*shape, generator=rng(0, 0, purpose), dtype=dtype)


def test_it_is_what_the_files_say(prior, folder):
    assert (prior.name, prior.views, prior.x_range, prior.prediction) == ("sdxl", 1, None, "epsilon")
    assert prior.resolution == tiny.SIDE
    assert prior.source == str(folder / "sdxl")


def test_prompts_are_embedded_as_the_pipeline_embeds_them(prior, pipeline):
    told = prior.embed(PROMPTS[:2])
    states, negative, pooled, negative_pooled = pipeline.encode_prompt(
        PROMPTS[:2], device="cpu", do_classifier_free_guidance=True
    )
    assert set(told) == {"states", "pooled"}
    assert torch.allclose(told["states"], states, atol=1e-6)
    assert torch.allclose(told["pooled"], pooled, atol=1e-6)
    empty = prior.embed(["", ""])
    assert torch.equal(empty["states"], negative)
    assert torch.equal(empty["pooled"], negative_pooled)
    assert not empty["states"].any()


def test_an_empty_prompt_is_embedded_where_the_model_says_so(folder, pipeline, tmp_path):
    tiny.write_folder(tmp_path / "sdxl", "sdxl")
    index = tmp_path / "sdxl" / "model_index.json"
    index.write_text(json.dumps({"force_zeros_for_empty_prompt": False}))
    told = load(tmp_path).embed([""])
    states, _, pooled, _ = pipeline.encode_prompt("", device="cpu", do_classifier_free_guidance=False)
    assert torch.allclose(told["states"], states, atol=1e-6)
    assert torch.allclose(told["pooled"], pooled, atol=1e-6)
    assert told["states"].any()


def test_rows_of_an_embedding_do_not_touch_each_other(prior):
    told = prior.embed(PROMPTS)
    for n, prompt in enumerate(PROMPTS):
        for name, value in prior.embed([prompt]).items():
            assert torch.allclose(told[name][n], value[0], atol=1e-6)


def test_a_prompt_of_75_tokens_fits_and_one_more_is_refused(prior):
    prior.embed(["a " * 75])
    with pytest.raises(ValueError, match="has 76 tokens and sdxl reads 75: shorten it"):
        prior.embed(["a " * 76])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_predictions_and_estimates_are_the_pipelines(folder, pipeline, tmp_path, kind):
    tiny.write_folder(tmp_path / "sdxl", "sdxl", prediction_type=kind)
    prior = load(tmp_path)
    prior.unet.double()
    network = UNet2DConditionModel.from_pretrained(folder / "sdxl" / "unet").double()
    schedule = DDIMScheduler(**tiny.NUMBERS, prediction_type=kind, clip_sample=False, set_alpha_to_one=False)
    schedule.set_timesteps(1000)
    told, x_t, rows = prior.embed(PROMPTS), randn(3, 4, 8, 8, dtype=torch.float64), [20, 500, 980]
    side = (tiny.SIDE, tiny.SIDE)
    size = pipeline._get_add_time_ids(side, (0, 0), side, torch.float64, 16)
    with torch.no_grad():
        t = torch.tensor([0.02, 0.5, 0.98], dtype=torch.float64)
        eps = prior.predict(x_t, t, told, CAMERAS)
        alpha, sigma = prior.alpha_sigma(t)
        x0 = (x_t - sigma * eps) / alpha
        for n, row in enumerate(rows):
            s = slice(n, n + 1)
            added = {"text_embeds": told["pooled"][s].double(), "time_ids": size}
            out = network(
                x_t[s], row, encoder_hidden_states=told["states"][s].double(), added_cond_kwargs=added
            ).sample
            found = schedule.step(out, row, x_t[s]).pred_original_sample
            assert torch.allclose(x0[s], found, rtol=1e-6, atol=1e-7)  # its table is in float32
    assert prior.prediction == ("epsilon" if kind == "epsilon" else "velocity")


def test_predictions_read_the_size_and_the_pooled_prompt(prior):
    told, x_t, t = prior.embed(PROMPTS), randn(3, 4, 8, 8), torch.full((3,), 0.5)
    with torch.no_grad():
        usual = prior.predict(x_t, t, told, CAMERAS)
        other = prior.predict(x_t, t, {**told, "pooled": told["pooled"] + 1}, CAMERAS)
        prior.resolution = 999
        larger = prior.predict(x_t, t, told, CAMERAS)
        prior.resolution = tiny.SIDE
    assert not torch.allclose(usual, other, atol=1e-4)
    assert not torch.allclose(usual, larger, atol=1e-6)


def test_latents_are_the_autoencoders_in_float32_whatever_the_precision(folder, pipeline):
    prior = load(folder, load_options={"precision": "bfloat16"})
    assert prior.unet.dtype == torch.bfloat16
    assert prior.vae.dtype == torch.float32
    images = torch.rand(2, 3, 16, 16, generator=rng(0, 0, "image"))
    with torch.no_grad():
        x = prior.encode(images)
        expected = 0.13025 * pipeline.vae.encode(2 * images - 1).latent_dist.mean
        assert torch.allclose(x, expected, atol=1e-6)
        found = pipeline.vae.decode(x / 0.13025).sample
        assert torch.allclose(prior.decode(x), (found / 2 + 0.5).clamp(0, 1), atol=1e-5)
        eps = prior.predict(x, torch.tensor([0.1, 0.9]), prior.embed(["a", ""]), CAMERAS[:2])
    assert eps.dtype == torch.float32
    assert {value.dtype for value in prior.embed(["a"]).values()} == {torch.float32}


def test_previews_come_from_the_tiny_autoencoder(folder, prior):
    network = tiny.tiny_vae()
    network.save_pretrained(folder / "taesdxl")
    quick = load(folder, preview="tiny")
    x = 3.0 * randn(2, 4, 8, 8)
    with torch.no_grad():
        found = quick.preview(x)
        expected = AutoencoderTiny.from_pretrained(folder / "taesdxl").decode(x).sample
        assert torch.allclose(found, (expected / 2 + 0.5).clamp(0, 1), atol=1e-6)
        assert torch.equal(prior.preview(x), prior.decode(x))
        assert torch.equal(quick.decode(x), prior.decode(x))


def test_text_encoders_are_let_go_and_loaded_again(folder):
    prior = load(folder)
    before, network = prior.embed(PROMPTS), prior.text_encoders[1]
    prior.release()
    after = prior.embed(PROMPTS)
    assert prior.text_encoders[1] is not network
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_text_encoders_on_the_cpu_compute_in_full(folder):
    for device, dtype in (("cpu", torch.float32), ("meta", torch.bfloat16)):  # any device but the CPU
        prior = load(folder, load_options={"precision": "bfloat16", "text_device": device})
        assert {encoder.dtype for encoder in prior.text_encoders} == {dtype}
        assert {encoder.device.type for encoder in prior.text_encoders} == {device}


def test_a_single_file_is_the_folder(folder, prior, tmp_path):
    parts = tiny.networks("sdxl")
    save_file(tiny.single_file("sdxl", parts), tmp_path / "made.safetensors")
    other = load(folder, model=str(tmp_path / "made.safetensors"))
    assert other.source.startswith(f"{tmp_path / 'made.safetensors'}, which predicts")
    pairs = [(prior.unet, other.unet), (prior.vae, other.vae)]
    pairs += zip(prior.text_encoders, other.text_encoders, strict=True)
    for a, b in pairs:
        ours, theirs = a.state_dict(), b.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("form", "original"), [("kohya", False), ("kohya", True), ("peft", False)])
def test_lora_files_are_added_to_all_three_networks(folder, prior, tmp_path, form, original):
    parts = dict(zip(tiny.KOHYA, (prior.unet, *prior.text_encoders), strict=True))
    tensors, added = tiny.lora(parts, form, original=original, alphas=form == "kohya")
    save_file(tensors, tmp_path / "style.safetensors")
    styled = load(folder, lora=str(tmp_path / "style.safetensors"), lora_scale=0.7)
    found = dict(zip(tiny.KOHYA, (styled.unet, *styled.text_encoders), strict=True))
    assert {part for part, _ in added} == set(found)
    for (part, name), delta in added.items():
        usual = parts[part].get_submodule(name).weight
        merged = found[part].get_submodule(name).weight
        assert torch.allclose(merged, usual + 0.7 * delta, atol=1e-6), (part, name)
    assert styled.source == f"{prior.source} + 0.7 of {tmp_path / 'style.safetensors'}"


class Redness:
    """An analytic reward: how red a picture is."""

    name, views, mean, spread, source = "redness", 1, 0.0, 1.0, ""

    def prepare(self, prompts):
        pass

    def release(self):
        pass

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


PANEL = RewardEnsemble(rewards=(Redness(),), weights=(1.0,), options=RewardOptions())


def step(prior, score, preference, number=0):
    """One step of guidance on two views."""
    here = moment(
        prior,
        randn(2, 4, 8, 8),
        0.5,
        options=GuidanceOptions(scale=7.5),
        step=number,
        negative=preference.negative(prior.embed([""])),
    )
    return gradient(here, score, preference, PANEL)


def test_vsds_copy_is_the_prior_until_it_learns_and_sees_the_camera_then(folder):
    prior = load(folder)
    told, t = prior.embed(PROMPTS), torch.tensor([0.1, 0.5, 0.9])
    before = prior.predict(randn(3, 4, 8, 8), t, told, CAMERAS)
    score = VSD(VSDOptions(rank=2, lr=1e-2), prior, 0)
    adapter = prior.adapter(2, rng(0, 0, "lora"))
    with torch.no_grad(), adapter.enabled():
        copy = adapter.predict(randn(3, 4, 8, 8), t, told, CAMERAS, torch.ones(3))
        assert torch.equal(copy, before)
        for n, p in enumerate(adapter.parameters().values()):
            p.add_(0.1 * randn(*p.shape, purpose=f"shake {n}"))
        seen, unseen = (
            adapter.predict(randn(3, 4, 8, 8), t, told, CAMERAS, share * torch.ones(3))
            for share in (1.0, 0.0)
        )
        assert not torch.allclose(seen, unseen, atol=1e-4)
    assert torch.equal(prior.predict(randn(3, 4, 8, 8), t, told, CAMERAS), before)
    score = VSD(VSDOptions(rank=2, lr=1e-2), prior, 0)
    found = step(prior, score, NoPreference())
    assert found.metrics["score/lora_loss"] > 0
    assert torch.isfinite(found.value).all()


def test_psd_learns_states_and_pooled_from_zeros(prior):
    preference = PSD(PSDOptions(interval=1, lr=1e-2))
    found = step(prior, SDS(), preference)
    assert torch.isfinite(found.value).all()
    learned = preference.negative(prior.embed([""]))
    assert set(learned) == {"states", "pooled"}
    assert all((value != 0).float().mean() > 0.9 for value in learned.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / "text_encoder" / "config.json").unlink(),
            "holds the refiner of SDXL: give a model of Stable Diffusion XL",
        ),
        (
            lambda folder: tiny.write_folder(folder, "sd15"),
            "holds Stable Diffusion 1 or 2: give a model of Stable Diffusion XL, or another prior",
        ),
        (
            lambda folder: tiny.write_scheduler(folder, "sdxl", _class_name="EDMEulerScheduler"),
            "has a schedule for EDMEulerScheduler, which is no table of betas",
        ),
        (lambda folder: (folder / "tokenizer_2" / "merges.txt").unlink(), "has no merges.txt"),
        (
            lambda folder: (folder / "text_encoder_2" / "model.safetensors").unlink(),
            "CLIPTextModelWithProjection can't be loaded",
        ),
    ],
)
def test_other_models_and_holes_are_named(tmp_path, change, words):
    tiny.write_folder(tmp_path / "model", "sdxl")
    change(tmp_path / "model")
    with pytest.raises(WeightsError, match=words) as found:
        load(tmp_path, model=str(tmp_path / "model"))
    assert "\n" not in str(found.value)
