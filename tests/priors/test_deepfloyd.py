"""DeepFloyd IF's first stage and T5: the real classes with few random weights, loaded as users do."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_t5
import torch
from analytic import moment
from diffusers import DDIMScheduler, DDPMScheduler, IFPipeline, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5EncoderModel

from splatgen.config import GuidanceOptions, PriorOptions, PSDOptions, RewardOptions, VSDOptions
from splatgen.guidance.denoiser import Denoiser
from splatgen.guidance.distillation import gradient
from splatgen.guidance.inversion import ddim_step
from splatgen.guidance.preferences import PSD, NoPreference
from splatgen.guidance.scores import SDS, VSD
from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.priors import load_prior
from splatgen.priors.t5 import read_pieces, read_tokenizer
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable

PLAIN = {  # blocks of Stable Diffusion
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
}
CAMERAS = turntable(2, size=8)
PROMPTS = ["  A red Cube, side view", ""]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of published models."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_t5.deepfloyd(folder / "deepfloyd")
    return folder


def load(weights, **load_options):
    return load_prior("deepfloyd", PriorOptions(), LoadOptions(weights=str(weights), **load_options))


@pytest.fixture(scope="module")
def prior(weights):
    return load(weights)


@pytest.fixture(scope="module")
def pipeline(weights):
    """diffusers' own, out of the same files."""
    folder = weights / "deepfloyd"
    return IFPipeline(
        tokenizer=read_tokenizer(folder / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDPMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


@pytest.fixture
def copied(weights, tmp_path):
    """The same weights, to be spoilt."""
    shutil.copytree(weights, tmp_path / "weights")
    return tmp_path / "weights"


def randn(*shape, purpose="x", dtype=torch.float32):
    return torch.randn(*shape, generator=rng(0, 0, purpose), dtype=dtype)


class Redness:
    """An analytic reward: how much redder the left half is than the right."""

    name, views, mean, spread = "redness", 1, 0.0, 1.0

    def __call__(self, images, prompts):
        left, right = images.chunk(2, dim=-1)
        return left[:, 0].mean((1, 2)) - right[:, 1:].mean((1, 2, 3))


# What it is


def test_it_is_a_pixel_prior_of_its_unets_side(weights, prior):
    assert (prior.name, prior.views, prior.resolution) == ("deepfloyd", 1, 8)
    assert prior.x_range is None  # pixels, but no published code clamps their estimates
    assert prior.source == str(weights / "deepfloyd")
    assert not any(p.requires_grad for p in prior.unet.parameters())


def test_images_are_averaged_down_and_come_back(prior):
    fine = torch.rand(2, 3, 32, 32, generator=rng(0, 0, "image"))
    x = prior.encode(fine)
    torch.testing.assert_close(x[0, 1, 2, 3], 2 * fine[0, 1, 8:12, 12:16].mean() - 1)
    torch.testing.assert_close(prior.decode(x), fine.unflatten(3, (8, 4)).unflatten(2, (8, 4)).mean((3, 5)))
    assert torch.equal(prior.preview(x), prior.decode(x))
    assert prior.encode(fine[..., :20]).shape == prior.encode(fine[..., :5, :5]).shape == (2, 3, 8, 8)


def test_amplitudes_are_those_of_the_published_schedule(pipeline, prior):
    t = torch.tensor([0.0, 0.02, 0.5, 0.98, 1.0])
    alpha, sigma = prior.alpha_sigma(t)
    table = pipeline.scheduler.alphas_cumprod[[0, 20, 500, 980, 999]]
    torch.testing.assert_close(alpha.flatten() ** 2, table, rtol=1e-4, atol=0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(5, 1, 1, 1))
    assert float(alpha[2]) == pytest.approx(2**-0.5, rel=0.02)  # a cosine, but for its small offset


# Text


def test_prompts_are_read_as_diffusers_pipeline_reads_them(pipeline, prior):
    """Which passes the mask to T5, and not on to the UNet."""
    told = prior.embed(PROMPTS)
    text, negative = pipeline.encode_prompt(PROMPTS[:1], device="cpu")
    assert set(told) == {"states"}
    assert told["states"].dtype == torch.float32
    torch.testing.assert_close(told["states"], torch.cat([text, negative]), rtol=0, atol=1e-6)
    torch.testing.assert_close(prior.embed(["a red cube, side view", ""])["states"], told["states"])
    assert not torch.allclose(told["states"][0], prior.embed(["a blue cube"])["states"][0], atol=1e-3)


def test_a_prompt_that_would_be_cut_is_refused(prior):
    longest = " ".join(["red"] * 76)
    assert prior.embed([longest])["states"].shape == (1, 77, tiny_t5.T5_WIDTH)
    with pytest.raises(ValueError, match=r"has 77 tokens and deepfloyd reads 76: shorten it"):
        prior.embed(["", f"{longest} red"])


def test_t5_is_let_go_and_comes_back(weights, copied):
    prior = load(copied)
    before = prior.embed(PROMPTS)["states"]
    prior.release()
    assert torch.equal(prior.embed(PROMPTS)["states"], before)
    prior.release()
    shutil.rmtree(copied / "deepfloyd" / "text_encoder")  # so it was really let go
    with pytest.raises(WeightsError, match=r"text_encoder"):
        prior.embed(PROMPTS)


@given(st.text(st.sampled_from("abcdefgh red.'-XYZ\t?ü"), max_size=40))
@settings(max_examples=30)
def test_both_forms_of_the_tokenizer_agree(tokenizers, text):
    first, second = (tokenizer(text).input_ids for tokenizer in tokenizers)
    assert first == second
    assert first[-1] == 1


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for form in ("json", "spiece"):
        tiny_t5.save_t5_tokenizer(folder / form, form)
    return [read_tokenizer(folder / form) for form in ("json", "spiece")]


def test_a_sentencepiece_model_holds_pieces_scores_and_a_map_of_characters():
    given_map = (8).to_bytes(4, "little") + bytes(20)
    pieces, charsmap = read_pieces(tiny_t5.spiece(tiny_t5.PIECES, given_map))
    assert [text for text, _ in pieces] == [text for text, _ in tiny_t5.PIECES]
    assert [score for _, score in pieces] == pytest.approx([score for _, score in tiny_t5.PIECES])
    assert charsmap == given_map
    assert read_pieces(tiny_t5.spiece(tiny_t5.PIECES))[1] is None
    with pytest.raises(ValueError, match="map of characters is damaged"):
        read_pieces(tiny_t5.spiece(tiny_t5.PIECES, given_map[:9]))


def test_every_cut_of_a_sentencepiece_model_is_noticed():
    data = tiny_t5.spiece(tiny_t5.PIECES[:6])
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"it (ends|holds|is|lacks)"):
            read_pieces(data[:length])


@pytest.mark.parametrize(
    "piece",
    [
        tiny_t5.field(1, b"\xff") + tiny_t5.field(2, 1.0),
        tiny_t5.field(1, b"a") + tiny_t5.field(2, b"one"),
        tiny_t5.field(1, 7) + tiny_t5.field(2, 1.0),
        tiny_t5.field(2, 1.0),
        b"\x0b",
    ],
    ids=["no text", "no score", "a number", "nothing", "a group"],
)
def test_what_is_no_piece_is_refused(tmp_path, piece):
    (tmp_path / "spiece.model").write_bytes(tiny_t5.field(1, piece) + tiny_t5.spiece(tiny_t5.PIECES))
    with pytest.raises(WeightsError, match=r"T5Tokenizer can't be loaded from .*; fetch it again"):
        read_tokenizer(tmp_path)


def test_without_its_files_there_is_no_tokenizer(tmp_path):
    with pytest.raises(WeightsError, match=r"neither tokenizer\.json nor spiece\.model"):
        read_tokenizer(tmp_path)


# The denoiser


def test_predictions_are_the_first_three_channels_at_the_rows_of_the_schedule(prior):
    x, t, told = randn(2, 3, 8, 8), torch.tensor([0.02, 0.9]), prior.embed(PROMPTS)
    with torch.no_grad():
        eps = prior.predict(x, t, told, CAMERAS)
        out = prior.unet(x, torch.tensor([20, 900]), encoder_hidden_states=told["states"]).sample
    assert out.shape == (2, 6, 8, 8)
    assert torch.equal(eps, out[:, :3])


def test_a_guided_step_is_diffusers_pipelines(pipeline, prior):
    """From the row 501 to the row 1 by DDIM, with the pipeline's own text, guidance and split of channels."""
    pipeline.set_progress_bar_config(disable=True)
    usual, steps = pipeline.scheduler, []
    pipeline.scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False, steps_offset=1)
    pipeline.scheduler.register_to_config(variance_type="fixed_small")  # so that it splits the channels
    pipeline(
        PROMPTS[0],
        num_inference_steps=2,
        guidance_scale=7.0,
        negative_prompt="blue",
        generator=torch.Generator().manual_seed(3),
        clean_caption=False,
        output_type="pt",
        callback=lambda n, row, x: steps.append((int(row), x)),
    )
    pipeline.scheduler = usual
    (row, theirs), (later, _) = steps
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    at = moment(prior, x, row / 1000, prompt=PROMPTS[0], negative="blue", cameras=CAMERAS[:1])
    denoiser = Denoiser(prior, GuidanceOptions(clamp=False))
    guided = denoiser.guided(x, at.t, at.plain(), CAMERAS[:1], scale=7.0)
    to = torch.full_like(at.t, later / 1000)
    torch.testing.assert_close(ddim_step(prior, x, guided.eps, at.t, to), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_a_strong_guidance_keeps_all_of_its_gradient(prior, t):
    """threestudio's is e - n with e guided by 20 (21 here); estimates beyond -1..1 are not clamped."""
    x = torch.rand(2, 3, 8, 8, generator=rng(0, 0, "x")) * 2 - 1
    options = GuidanceOptions(scale=21.0, view_prompts="none")  # with the program's own clamping
    at = moment(prior, x, t, prompt=PROMPTS[0], options=options, cameras=CAMERAS[:2])
    n = torch.randn(x.shape, generator=at.rng("noise"))
    x_t = at.noised(n[None])
    e_y, e_n = (at.guided(x_t, scale=w).eps[0] for w in (1.0, 0.0))
    found = gradient(at, SDS(), NoPreference(), None)
    assert found.x0.abs().max() > 1.0
    torch.testing.assert_close(found.value, e_n + 21.0 * (e_y - e_n) - n, rtol=1e-4, atol=1e-4)


def test_a_step_in_half_precision_answers_in_the_precision_of_the_asker(weights):
    prior = load(weights, precision="bfloat16", checkpointing=True)
    x, told = randn(2, 3, 8, 8), prior.embed(PROMPTS)
    assert told["states"].dtype == torch.float32
    eps = prior.predict(x, torch.tensor([0.3, 0.8]), told, CAMERAS)
    assert eps.dtype == torch.float32
    assert prior.unet.dtype == torch.bfloat16
    exact = load(weights)
    torch.testing.assert_close(
        eps, exact.predict(x, torch.tensor([0.3, 0.8]), exact.embed(PROMPTS), CAMERAS), rtol=0, atol=0.05
    )


def test_vsd_trains_all_of_a_copy_of_its_unet_and_leaves_the_prior(weights):
    prior = load(weights)
    x, options = randn(2, 3, 8, 8).tanh(), GuidanceOptions(scale=7.5)
    t, told = torch.full((2,), 0.5), prior.embed(PROMPTS)
    with torch.no_grad():
        before = prior.predict(x, t, told, CAMERAS)
    score = VSD(VSDOptions(lr=1e-2, camera_dropout=0.0), prior, seed=0)
    with torch.no_grad(), score.adapter.enabled():
        assert torch.equal(score.adapter.predict(x, t, told, CAMERAS, torch.ones(2)), before)
    start = {name: p.detach().clone() for name, p in score.parameters.items()}
    for number in range(3):  # in the first, what multiplies a zero has no gradient yet
        at = moment(prior, x, 0.5, cameras=CAMERAS, options=options, prompt="a red cube", step=number)
        gradient(at, score, NoPreference(), None)
    still = {name for name, p in score.parameters.items() if torch.equal(p, start[name])}
    assert not still
    with torch.no_grad():
        assert torch.equal(prior.predict(x, t, told, CAMERAS), before)


def test_psd_learns_its_negative_through_the_unet(prior):
    preference = PSD(PSDOptions(interval=1, lr=1e-2))
    ensemble = RewardEnsemble(rewards=(Redness(),), weights=(1.0,), options=RewardOptions())
    given = prior.embed(["blue"])
    negative = preference.negative(given)
    at = moment(
        prior, randn(2, 3, 8, 8), 0.3, cameras=CAMERAS, options=GuidanceOptions(scale=7.5), negative=negative
    )
    gradient(at, SDS(), preference, ensemble)
    moved = preference.negative(given)["states"] != given["states"]
    assert moved.float().mean() > 0.99  # Adam's first step is lr for whatever has a gradient


# Files


def test_a_folder_that_a_user_names_takes_the_place_of_the_published_one(weights):
    folder = weights / "deepfloyd"
    prior = load_prior("deepfloyd", PriorOptions(model=str(folder)), LoadOptions())
    assert prior.source == str(folder)


def test_weights_that_are_not_there_are_said_to_be_missing(tmp_path):
    with pytest.raises(WeightsError, match=r"splatgen fetch deepfloyd.*accepting the licence"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("unet/config.json", "unet/config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "unet"),
        ("text_encoder/config.json", "text_encoder/config.json"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("scheduler/scheduler_config.json", "scheduler"),
        ("tokenizer/spiece.model", "spiece.model"),
    ],
)
def test_a_missing_file_is_named(copied, lost, named):
    (copied / "deepfloyd" / lost).unlink()
    with pytest.raises(WeightsError, match=named):
        load(copied)


@pytest.mark.parametrize(
    "cut",
    ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "tokenizer/spiece.model"],
)
def test_a_file_that_was_cut_is_noticed_before_a_run_begins(copied, cut):
    path = copied / "deepfloyd" / cut
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=cut.split("/", maxsplit=1)[0]):
        load(copied).embed(PROMPTS)


def test_a_single_file_is_refused(weights):
    file = weights / "deepfloyd" / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(WeightsError, match="is a single file: give deepfloyd as a folder"):
        load_prior("deepfloyd", PriorOptions(model=str(file)), LoadOptions())


def test_a_later_stage_is_refused(tmp_path):
    tiny_t5.deepfloyd(tmp_path / "stage", channels=6)
    with pytest.raises(WeightsError, match=r"takes 6 channels .* give a first stage"):
        load_prior("deepfloyd", PriorOptions(model=str(tmp_path / "stage")), LoadOptions())


def test_another_kind_of_model_is_refused(copied):
    other = UNet2DConditionModel(in_channels=3, block_out_channels=(8, 16), norm_num_groups=4, **PLAIN)
    other.save_pretrained(copied / "deepfloyd" / "unet")
    with pytest.raises(WeightsError, match="unet takes no text of T5: give a first stage"):
        load(copied)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_of_another_architecture_are_refused(copied, part):
    path = copied / "deepfloyd" / part / "config.json"
    settings = json.loads(path.read_text())
    settings |= {"block_out_channels": [16, 32], "num_layers": 3}
    path.write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match=f"be loaded from .*/{part}: |/{part} does not fit"):
        load(copied).embed(PROMPTS)
