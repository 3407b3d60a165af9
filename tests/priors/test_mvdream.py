"""MVDream on tiny random weights, saved as they are published, against the published equations."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import tiny_mvdream as tiny
import torch
from analytic import moment
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from transformers import CLIPTextModel

from splatgen.config import (
    Config,
    GuidanceOptions,
    PriorOptions,
    PSDOptions,
    RewardOptions,
    SplatOptions,
    ViewOptions,
    VSDOptions,
    WeightedOptions,
)
from splatgen.guidance.denoiser import Denoiser
from splatgen.guidance.distillation import gradient
from splatgen.guidance.preferences import PSD, NoPreference, Weighted
from splatgen.guidance.scores import SDS, VSD
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.step import render_views
from splatgen.models import open_clip
from splatgen.models.budget import LoadOptions
from splatgen.models.loading import quiet
from splatgen.models.weights import WeightsError
from splatgen.priors import load_prior, mvdream_weights
from splatgen.priors.mvdream import camera_numbers, zero_padded
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.runs.rng import rng
from splatgen.scene.cameras import orbit, sample_orbit, turntable
from splatgen.scene.parameters import new_scene

GUIDED = GuidanceOptions(scale=50.0, rescale=0.5, weighting="sigma", view_prompts="none")
NEAR = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def published():
    return tiny.published()


@pytest.fixture(scope="module")
def home(published, tmp_path_factory):
    """A folder of weights with MVDream in it."""
    folder = tmp_path_factory.mktemp("weights")
    tiny.save(published, folder / "mvdream")
    return folder


def load(home, **options):
    return load_prior("mvdream", PriorOptions(**options), LoadOptions(weights=str(home)))


@pytest.fixture(scope="module")
def prior(home):
    return load(home)


@pytest.fixture(scope="module")
def exact(home):
    """In double precision, to tell an error from rounding."""
    found = load(home)
    found.unet.double()
    found.vae.double()
    return found


@pytest.fixture(scope="module")
def layouts(published, home, prior, tmp_path_factory):
    """The same weights in the other layouts, by name."""
    place = tmp_path_factory.mktemp("layouts")
    tiny.save_tokenizer(place / "tokenizer")
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.save({"state_dict": published.state_dict()}, place / "nested.ckpt")
    for name in ("diffusers", "mvdream_diffusers"):
        folder = place / name
        prior.vae.save_pretrained(folder / "vae")
        mine = mvdream_weights.read(home / "mvdream" / "sd-v2.1-base-4view.pt").text
        encoder = mvdream_weights.load_text(mine, place, torch.float32)
        encoder.save_pretrained(folder / "text_encoder")
        scheduler.save_pretrained(folder / "scheduler")
        tiny.save_tokenizer(folder / "tokenizer")
    prior.unet.save_pretrained(place / "diffusers" / "unet")
    unet = place / "mvdream_diffusers" / "unet"
    unet.mkdir()
    torch.save(published.unet.state_dict(), unet / "diffusion_pytorch_model.bin")
    (unet / "config.json").write_text('{"_class_name": "MultiViewUNetModel"}')
    return place


def randn(*shape, purpose="x", dtype=torch.float64):
    return torch.randn(*shape, generator=rng(0, 0, purpose), dtype=dtype)


def ring(groups=1, **options):
    """Cameras of whole groups, at several heights and distances."""
    return sample_orbit(
        rng(0, 0, "cameras"),
        views=4 * groups,
        size=16,
        elevation=(0, 30),
        distance=(1, 3),
        group=4,
        **options,
    )


def inputs(prior, groups=1):
    """x_t, t and prompts for whole groups."""
    states = prior.embed(["a red fox", "a boat"] * groups)["states"]
    t = torch.tensor([0.3, 0.7]).repeat_interleave(4)[: 4 * groups]
    return randn(4 * groups, 4, 8, 8), t, {"states": states.repeat_interleave(2, 0)}


def predict(prior, x, t, told, cameras):
    with torch.no_grad():
        return prior.predict(x, t, told, cameras)


# The published layout.


def networks_of(checkpoint):
    """Names and shapes that each network wants, and those that it is given, by network."""
    path, unet, vae = checkpoint.path, checkpoint.unet, checkpoint.vae
    text = mvdream_weights.text_layers(checkpoint.text)
    with torch.device("meta"), quiet():
        wanted = {
            "unet": UNet2DConditionModel(**mvdream_weights.unet_config(unet)),
            "vae": AutoencoderKL(**mvdream_weights.vae_config(vae)),
            "text": CLIPTextModel(open_clip.text_config(text, path)),
        }
    given = {
        "unet": mvdream_weights.unet_tensors(unet),
        "vae": mvdream_weights.vae_tensors(vae),
        "text": {k.removeprefix("text_model."): v for k, v in open_clip.text_tower(text).items()},
    }
    given["text"].pop("text_projection.weight")
    return {
        name: tuple(
            {k: tuple(v.shape) for k, v in found.items()} for found in (net.state_dict(), given[name])
        )
        for name, net in wanted.items()
    }


@pytest.mark.parametrize("sizes", [tiny.FULL, tiny.TINY], ids=["full", "tiny"])
def test_every_tensor_of_the_published_file_has_its_place_and_none_is_missing(sizes, tmp_path):
    with torch.device("meta"):
        tensors = tiny.Published(sizes).state_dict()
    checkpoint = mvdream_weights.split(tensors, tmp_path)
    for wanted, found in networks_of(checkpoint).values():
        assert wanted == found
    named = len(checkpoint.unet) + len(checkpoint.vae) + len(checkpoint.text)
    assert len(tensors) == named + len(tiny.schedule())
    last = sum(f"resblocks.{sizes.blocks - 1}." in name for name in checkpoint.text)
    assert last == 12
    assert len(mvdream_weights.text_layers(checkpoint.text)) == len(checkpoint.text) - last


def test_at_full_size_it_is_stable_diffusion_2_1_with_a_camera(tmp_path):
    with torch.device("meta"):
        checkpoint = mvdream_weights.split(tiny.Published(tiny.FULL).state_dict(), tmp_path)
    assert (len(checkpoint.unet), len(checkpoint.vae)) == (686 + 4, 248)
    unet = mvdream_weights.unet_config(checkpoint.unet)
    assert unet["block_out_channels"] == (320, 640, 1280, 1280)
    assert unet["attention_head_dim"] == (5, 10, 20, 20)
    assert (unet["layers_per_block"], unet["cross_attention_dim"], unet["sample_size"]) == (2, 1024, 32)
    assert unet["down_block_types"] == (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    assert unet["up_block_types"] == ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    vae = mvdream_weights.vae_config(checkpoint.vae)
    assert vae["block_out_channels"] == (128, 256, 512, 512)
    assert (vae["layers_per_block"], vae["latent_channels"], vae["scaling_factor"]) == (2, 4, 0.18215)
    text = open_clip.text_config(mvdream_weights.text_layers(checkpoint.text), tmp_path)
    sizes = (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size)
    assert sizes == (1024, 23, 16, 4096)


def test_the_file_alone_makes_the_prior(prior, home):
    assert (prior.name, prior.views, prior.prediction, prior.x_range) == ("mvdream", 4, "epsilon", None)
    assert (
        prior.resolution == 64
    )  # 32 latents, and an autoencoder that halves once: 256 with the published one
    assert prior.source == str(home / "mvdream")
    assert not any(p.requires_grad for net in (prior.unet, prior.vae) for p in net.parameters())


@pytest.mark.parametrize("name", ["nested.ckpt", "diffusers", "mvdream_diffusers"])
def test_other_layouts_of_the_same_weights_predict_the_same(name, layouts, prior, tmp_path):
    other = load_prior("mvdream", PriorOptions(model=str(layouts / name)), LoadOptions(weights=str(tmp_path)))
    x, t, told = inputs(prior)
    torch.testing.assert_close(other.embed(["a boat"]), prior.embed(["a boat"]), **NEAR)
    expected = predict(prior, x, t, told, ring())
    torch.testing.assert_close(predict(other, x, t, told, ring()), expected, **NEAR)
    torch.testing.assert_close(other.decode(x), prior.decode(x), **NEAR)
    assert other.source == str(layouts / name)


def test_a_file_by_itself_takes_the_tokenizer_that_was_fetched(home, layouts, tmp_path):
    (tmp_path / "mine.ckpt").symlink_to(layouts / "nested.ckpt")
    assert load(home, model=str(tmp_path / "mine.ckpt")).views == 4
    with pytest.raises(WeightsError, match=r"no folder tokenizer.*splatgen fetch mvdream --small"):
        load(tmp_path / "elsewhere", model=str(tmp_path / "mine.ckpt"))


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def changed(name, value):
    return lambda tensors: {**tensors, name: value}


UNET = "model.diffusion_model."
CAMERA = f"{UNET}camera_embed.0.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without(CAMERA), "lacks model.diffusion_model.camera_embed.0.weight"),
        (without(f"{UNET}out.2.bias"), "UNet2DConditionModel: it lacks conv_out.bias and 0 others"),
        (without(f"{UNET}out.2.weight"), "out.2.weight"),
        (changed(CAMERA, torch.zeros(128, 12)), "another shape of class_embedding.linear_1.weight"),
        (changed(f"{UNET}image_embed.latents", torch.zeros(1)), "has not, image_embed.latents"),
        (changed(f"{UNET}input_blocks.1.1.extra.weight", torch.zeros(1)), "has not, .*extra.weight"),
        (changed("first_stage_model.loss.weight", torch.zeros(1)), "AutoencoderKL.*loss.weight"),
        (changed("cond_stage_model.model.visual_x", torch.zeros(1)), "CLIPTextModel.*visual_x"),
        (changed("model_ema.decay", torch.zeros(1)), "holds model_ema.decay, which MVDream has not"),
        (without("cond_stage_model.model.ln_final.weight"), "lacks cond_stage_model.model.ln_final.weight"),
        (without("cond_stage_model.model.positional_embedding"), "positional_embedding"),
        (changed("first_stage_model.encoder.conv_in.weight", 3), "AutoencoderKL"),
        (lambda tensors: {"state_dict": {}}, "lacks model.diffusion_model"),
    ],
)
def test_weights_of_another_architecture_are_refused(damage, words, published, home, tmp_path):
    torch.save(damage(published.state_dict()), tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=words) as found:
        load(home, model=str(tmp_path / "odd.pt"))
    assert "\n" not in str(found.value)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "unet" / "config.json").unlink(), "config.json is missing or damaged"),
        (lambda f: edit(f / "unet" / "config.json", class_embed_type=None), "has not, class_embedding"),
        (
            lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"),
            "has prediction_type v_prediction, and MVDream epsilon",
        ),
        (lambda f: (f / "tokenizer" / "vocab.json").unlink(), "has no vocab.json"),
        (lambda f: (f / "unet").rename(f / "net"), "holds neither sd-v2.1-base-4view.pt nor a folder unet"),
    ],
)
def test_folders_that_are_not_whole_are_refused(damage, words, layouts, tmp_path):
    shutil.copytree(layouts / "diffusers", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(WeightsError, match=words):
        load(tmp_path, model=str(tmp_path / "model"))


def test_a_unet_that_is_told_no_camera_is_refused(layouts, prior, tmp_path):
    shutil.copytree(layouts / "diffusers", tmp_path / "model")
    settings = {**prior.unet.config, "class_embed_type": None, "projection_class_embeddings_input_dim": None}
    UNet2DConditionModel(**settings).save_pretrained(tmp_path / "model" / "unet")
    with pytest.raises(WeightsError, match="is told no camera: give weights of MVDream"):
        load(tmp_path, model=str(tmp_path / "model"))


def test_a_text_encoder_of_another_width_is_refused(layouts, tmp_path):
    shutil.copytree(layouts / "diffusers", tmp_path / "model")
    narrow = dataclasses.replace(tiny.TINY, context=128)
    text = mvdream_weights.load_text(tiny.Text(narrow).state_dict(), tmp_path, torch.float32)
    text.save_pretrained(tmp_path / "model" / "text_encoder")
    with pytest.raises(WeightsError, match="takes 64 text features and gets 128"):
        load(tmp_path, model=str(tmp_path / "model"))


# The published equations.


def test_predictions_are_those_of_the_published_network(exact, published):
    x, t, told = inputs(exact, 2)
    cameras = ring(2)
    reference = tiny.published().double().unet
    rows = torch.tensor([300.0] * 4 + [700.0] * 4)
    with torch.no_grad():
        expected = reference(x, rows, told["states"].double(), camera_numbers(cameras).double(), views=4)
    torch.testing.assert_close(predict(exact, x, t, told, cameras), expected, rtol=0, atol=1e-11)
    assert expected.std() > 0.1


def test_latents_and_images_are_those_of_the_published_autoencoder(exact):
    reference = tiny.published().double().first_stage_model
    images, x = torch.rand(2, 3, 64, 64, generator=rng(0, 0, "image")).double(), randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(exact.encode(images), reference.encode(2 * images - 1), rtol=0, atol=1e-11)
        expected = (0.5 * reference.decode(x) + 0.5).clamp(0, 1)
        torch.testing.assert_close(exact.decode(x), expected, rtol=0, atol=1e-11)
    assert expected.std() > 0.1


def test_prompts_are_embedded_as_open_clip_does(prior, published):
    """The last layer but one, then the last norm, with token 0 behind the end."""
    tokens = torch.zeros(2, 77, dtype=torch.long)
    letters = prior._tokenizer.get_vocab()
    tokens[0, :5] = torch.tensor([512, letters["f"], letters["o"], letters["x</w>"], 513])
    tokens[1, :2] = torch.tensor([512, 513])
    with torch.no_grad():
        expected = published.text(tokens)
    torch.testing.assert_close(prior.embed(["Fox", ""])["states"], expected, **NEAR)


def test_an_exclamation_mark_is_a_word_and_no_padding(prior, layouts, tmp_path):
    shutil.copytree(layouts / "diffusers", tmp_path / "model")
    for name in ("tokenizer_config", "special_tokens_map"):  # as Stable Diffusion 2.1 has it
        edit(tmp_path / "model" / "tokenizer" / f"{name}.json", pad_token="!")
    other = load(tmp_path, model=str(tmp_path / "model"))
    torch.testing.assert_close(other.embed(["a fox!"]), prior.embed(["a fox!"]), **NEAR)
    assert not torch.allclose(prior.embed(["a fox!"])["states"], prior.embed(["a fox"])["states"], atol=0.01)


def test_what_follows_the_first_end_is_zero():
    tokens = torch.tensor([[5, 1, 9, 9, 9], [5, 9, 2, 9, 2], [5, 1, 2, 3, 9]])
    assert zero_padded(tokens, 9).tolist() == [[5, 1, 9, 0, 0], [5, 9, 0, 0, 0], [5, 1, 2, 3, 9]]


def test_a_prompt_of_75_tokens_fits_and_one_more_is_refused(prior):
    prior.embed(["a " * 75])
    with pytest.raises(ValueError, match="has 76 tokens and mvdream reads 75: shorten it"):
        prior.embed(["a " * 76])


def test_the_text_encoder_is_let_go_and_comes_back(home):
    prior = load(home)
    before, first = prior.embed(["a boat"]), prior._text.get()
    prior.release()
    again = prior.embed(["a boat"])
    assert prior._text.get() is not first
    assert torch.equal(before["states"], again["states"])


def test_the_schedule_is_the_published_one(prior, published):
    alpha, sigma = prior.alpha_sigma(torch.arange(1000).double() / 1000)
    torch.testing.assert_close(alpha.flatten() ** 2, published.alphas_cumprod.double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        sigma.flatten() ** 2, 1 - published.alphas_cumprod.double(), rtol=1e-5, atol=1e-7
    )
    assert float(alpha[500] ** 2) == pytest.approx(0.2763, abs=5e-5)  # of Stable Diffusion


# Cameras.


def published_camera(elevation, azimuth):
    """The published get_camera: a unit sphere in OpenGL's world, then into Blender's, whose up is Z."""
    e, a = math.radians(elevation), math.radians(azimuth)
    place = torch.tensor([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)]).double()
    forward = normalize(-place, dim=0)
    right = normalize(torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0]).double()), dim=0)
    up = normalize(torch.linalg.cross(right, forward), dim=0)
    c2w = torch.eye(4).double()
    c2w[:3, :3] = torch.stack([right, up, -forward], 1)
    c2w[:3, 3] = place
    turn = torch.tensor([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).double()
    return (turn @ c2w).flatten()


def threestudio_camera(elevation, azimuth, distance):
    """threestudio's camera, of which MVDream-threestudio takes the place to the unit sphere."""
    e, a = math.radians(elevation), math.radians(azimuth)
    place = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)]).double()
    place = distance * place
    look = normalize(-place, dim=0)
    right = normalize(torch.linalg.cross(look, torch.tensor([0.0, 0.0, 1.0]).double()), dim=0)
    up = normalize(torch.linalg.cross(right, look), dim=0)
    c2w = torch.eye(4).double()
    c2w[:3, :3], c2w[:3, 3] = torch.stack([right, up, -look], 1), place / place.norm()
    return c2w.flatten()


@settings(max_examples=40)
@given(st.floats(-85, 85, width=32), st.floats(-360, 360, width=32), st.floats(0.5, 9, width=32))
def test_a_camera_is_told_as_the_published_codes_tell_it(elevation, azimuth, distance):
    ours = orbit(torch.tensor([azimuth]), torch.tensor([elevation]), size=8, distance=distance)
    found = camera_numbers(ours)[0].double()
    torch.testing.assert_close(found, published_camera(elevation, azimuth + 90.0), rtol=0, atol=2e-5)
    torch.testing.assert_close(found, threestudio_camera(elevation, azimuth, distance), rtol=0, atol=2e-5)


def test_our_front_is_the_second_of_the_published_four_views_and_our_right_side_the_third():
    four = [published_camera(15, azimuth) for azimuth in (0, 90, 180, 270)]
    found = camera_numbers(turntable(4, size=8, elevation=15)).double()
    torch.testing.assert_close(found, torch.stack([four[1], four[2], four[3], four[0]]), rtol=0, atol=1e-6)


def test_telling_a_camera_leaves_it_as_it_is():
    cameras = ring()
    before = cameras.c2w.clone()
    camera_numbers(cameras)
    assert torch.equal(cameras.c2w, before)


# Views of a group.


def test_views_in_another_order_are_predicted_in_that_order(exact):
    x, t, told = inputs(exact)
    cameras, order = ring(), torch.tensor([2, 0, 3, 1])
    usual = predict(exact, x, t, told, cameras)
    moved = predict(exact, x[order], t, {"states": told["states"][order]}, cameras[order])
    torch.testing.assert_close(moved, usual[order], rtol=0, atol=1e-11)


def test_the_same_view_four_times_is_predicted_four_times_the_same(exact):
    x, t, told = inputs(exact)
    one = torch.zeros(4, dtype=torch.long)
    found = predict(exact, x[one], t[one], {"states": told["states"][one]}, ring()[one])
    torch.testing.assert_close(found, found[one], rtol=0, atol=1e-11)


def test_a_view_changes_the_others_of_its_group_and_no_other_group(exact):
    x, t, told = inputs(exact, 2)
    usual = predict(exact, x, t, told, ring(2))
    x[5] += 1
    found = predict(exact, x, t, told, ring(2))
    apart = (found - usual).abs().amax((1, 2, 3))
    assert (apart[:4] < 1e-11).all()
    assert (apart[4:] > 1e-3).all()


def test_the_camera_the_prompt_and_the_time_are_read(exact):
    x, t, told = inputs(exact)
    usual = predict(exact, x, t, told, ring())
    turned = orbit(ring().azimuth + 45, ring().elevation, size=16)
    others = [
        predict(exact, x, t, told, turned),
        predict(exact, x, t, {"states": told["states"].flip(0)}, ring()),
        predict(exact, x, t + 0.1, told, ring()),
    ]
    assert all((other - usual).abs().max() > 1e-3 for other in others)
    far = dataclasses.replace(ring(), c2w=ring().c2w.clone())
    far.c2w[:, :3, 3] *= 2
    torch.testing.assert_close(predict(exact, x, t, told, far), usual, rtol=0, atol=1e-5)  # distance is not


@pytest.mark.parametrize("views", [1, 3, 6])
def test_views_that_do_not_fill_groups_are_refused(prior, views):
    x, t, told = inputs(prior, 2)
    told = {"states": told["states"][:views]}
    with pytest.raises(
        ValueError, match=f"mvdream denoises 4 views together and got {views}: give a multiple"
    ):
        prior.predict(x[:views], t[:views], told, ring(2)[slice(views)])


@pytest.mark.parametrize("batch", [0, 3, 6, 9])
def test_batches_that_fit_memory_never_cut_a_group(exact, batch):
    x, t, told = inputs(exact, 2)
    denoiser = Denoiser(exact, GuidanceOptions(batch=batch))
    with torch.no_grad():
        found = denoiser.raw(x, t, told, ring(2))
    torch.testing.assert_close(found, predict(exact, x, t, told, ring(2)), rtol=0, atol=1e-11)


def test_without_cameras_images_are_denoised_one_by_one_as_in_the_published_2d_mode(home, published):
    flat = load(home, camera=False)
    flat.unet.double()
    assert flat.views == 1
    x, t, told = (z[:3] if torch.is_tensor(z) else {"states": z["states"][:3]} for z in inputs(flat))
    found = predict(flat, x, t, told, ring()[slice(3)])
    reference = tiny.published().double().unet
    with torch.no_grad():
        expected = reference(x, torch.full((3,), 300.0), told["states"].double(), None, views=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    assert torch.equal(found, predict(flat, x, t, told, turntable(3, size=16)))


def test_a_run_looks_at_whole_groups_from_relative_distances():
    views = ViewOptions(
        count=8, size=(16,), elevation=(0, 30), distance=(0.9, 0.9), fov=(15, 60), relative=True
    )
    config = Config(prompt="a boat", prior="mvdream", views=views, splats=SplatOptions(count=20))
    _, cameras = render_views(config, new_scene(config, starting_splats(config), "cpu"), 0.0)
    first, second = cameras.elevation.view(2, 4)
    assert first.unique().shape == second.unique().shape == (1,)
    assert first[0] != second[0]
    turns = cameras.azimuth.view(2, 4).diff(dim=1)
    torch.testing.assert_close(turns, torch.full((2, 3), 90.0), rtol=0, atol=1e-3)
    seen = cameras.c2w[:, :3, 3].norm(dim=1) / (
        cameras.K[:, 1, 1] / 8
    )  # the focal length over half the height
    torch.testing.assert_close(seen, torch.full((8,), 0.9))


# Precision, memory, previews.


def test_half_precision_takes_and_gives_the_callers_precision(home, prior):
    half = load_prior("mvdream", PriorOptions(), LoadOptions(weights=str(home), precision="bfloat16"))
    x, t, _ = inputs(prior)
    x = x.float()
    assert {half.unet.dtype, half.vae.dtype, half._text.get().dtype} == {torch.bfloat16}
    found = predict(half, x, t, half.embed(["a boat"] * 4), ring())
    assert found.dtype == half.decode(x).dtype == half.embed(["a boat"])["states"].dtype == torch.float32
    expected = predict(prior, x, t, prior.embed(["a boat"] * 4), ring())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)
    assert expected.std() > 0.1


def test_gradients_are_the_same_when_activations_are_recomputed(home, prior):
    lean = load_prior("mvdream", PriorOptions(), LoadOptions(weights=str(home), checkpointing=True))
    assert lean.unet.is_gradient_checkpointing
    found = []
    for each in (lean, prior):
        x, t, told = inputs(prior)
        states = told["states"].clone().requires_grad_()
        each.predict(x.float(), t, {"states": states}, ring()).square().sum().backward()
        found.append(states.grad)
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0


def test_no_more_latents_are_decoded_at_once_than_fit(home):
    lean, counts = load_prior("mvdream", PriorOptions(), LoadOptions(weights=str(home), decode=3)), []
    lean.vae.decoder.register_forward_hook(lambda net, inputs, out: counts.append(len(out)))
    with torch.no_grad():
        lean.decode(randn(8, 4, 8, 8).float())
    assert counts == [3, 3, 2]


def test_previews_are_decoded_by_the_tiny_autoencoder_where_it_is_asked_for(home, prior, tmp_path):
    (tmp_path / "mvdream").symlink_to(home / "mvdream")
    with torch.random.fork_rng():
        small = AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        )  # fmt: skip
    small.save_pretrained(tmp_path / "taesd")
    quick, x = load(tmp_path, preview="tiny"), randn(2, 4, 8, 8).float()
    assert torch.equal(prior.preview(x), prior.decode(x))
    with torch.no_grad():
        expected = (0.5 * small.decode(x).sample + 0.5).clamp(0, 1)
        torch.testing.assert_close(quick.preview(x), expected)
    torch.testing.assert_close(quick.decode(x), prior.decode(x))


# The copy that VSD trains.


def test_an_untrained_copy_is_the_prior_and_a_trained_one_sees_the_camera(home):
    prior = load(home)
    x, t, told = inputs(prior)
    before = predict(prior, x, t, told, ring())
    adapter = prior.adapter(2, rng(0, 0, "lora"))

    def seen(told_camera):
        with torch.no_grad(), adapter.enabled():
            return adapter.predict(x, t, told, ring(), torch.full((4,), told_camera))

    assert torch.equal(seen(1.0), before)
    with adapter.enabled():
        loss = adapter.predict(x.float(), t, told, ring(), torch.ones(4)).square().sum()
        found = torch.autograd.grad(loss, list(adapter.parameters().values()), allow_unused=True)
    assert sum(g is not None and bool(g.abs().max() > 0) for g in found) > len(found) / 3
    with torch.no_grad():
        for n, p in enumerate(adapter.parameters().values()):
            p.add_(0.1 * randn(*p.shape, purpose=f"shake {n}", dtype=torch.float32))
    assert not torch.allclose(seen(1.0), seen(0.0), atol=1e-4)
    assert torch.equal(predict(prior, x, t, told, ring()), before)


# Guidance.


class Redness:
    """An analytic reward: how much redder the left half is than the right."""

    name, views, mean, spread, source = "redness", 1, 0.0, 1.0, "a formula"

    def __call__(self, images, prompts):
        left, right = images.chunk(2, dim=-1)
        return left[:, 0].mean((1, 2)) - right[:, 1:].mean((1, 2, 3))


PANEL = RewardEnsemble(rewards=(Redness(),), weights=(1.0,), options=RewardOptions())


def test_a_step_is_the_published_reconstruction_loss(exact):
    """G = x0 - x0', x0' the guided estimate, half way to the spread of the conditional one over its group."""
    x, cameras = randn(8, 4, 8, 8), ring(2)
    now = moment(exact, x, 0.5, cameras=cameras, options=GUIDED, prompt="a boat", negative="blurry")
    found = gradient(now, SDS(), NoPreference(), PANEL).value

    noise = SDS().noises(now, 1).noise[0]
    alpha, sigma = exact.alpha_sigma(torch.full((8,), 0.5).double())
    x_t, rows = alpha * x + sigma * noise, torch.full((8,), 0.5)
    e_y, e_n = (
        predict(exact, x_t, rows, {"states": exact.embed([p])["states"].expand(8, -1, -1)}, cameras)
        for p in ("a boat", "blurry")
    )
    guided = (x_t - sigma * (e_n + 50 * (e_y - e_n))) / alpha
    usual = (x_t - sigma * e_y) / alpha
    for g in (slice(0, 4), slice(4, 8)):
        factor = (usual[g].std() + 1e-8) / (guided[g].std() + 1e-8)
        target = 0.5 * factor * guided[g] + 0.5 * guided[g]
        torch.testing.assert_close(found[g], x[g] - target, rtol=1e-8, atol=1e-8)


def test_a_step_on_views_in_another_order_is_the_step_in_that_order(exact):
    x, cameras, order = randn(4, 4, 8, 8), ring(), torch.tensor([1, 3, 0, 2])
    alpha, sigma = exact.alpha_sigma(torch.full((4,), 0.5).double())
    noise = randn(4, 4, 8, 8, purpose="noise")

    def step(rows):
        now = moment(exact, x[rows], 0.5, cameras=cameras[rows], options=GUIDED)
        return now.guided((alpha * x + sigma * noise)[rows][None]).x0[0]

    torch.testing.assert_close(step(order), step(torch.arange(4))[order], rtol=0, atol=1e-8)


@pytest.mark.parametrize("cell", ["reward-sds", "psd", "vsd"])
def test_every_method_takes_a_finite_step(cell, home):
    prior = load(home)
    score = VSD(VSDOptions(rank=2), prior, 0) if cell == "vsd" else SDS()
    preference = NoPreference()
    if cell == "reward-sds":
        preference = Weighted(WeightedOptions(candidates=4, lookahead=3))
    elif cell == "psd":
        preference = PSD(PSDOptions())
    given = prior.embed(["blurry"])
    now = moment(
        prior, randn(8, 4, 8, 8).float(), 0.5, cameras=ring(2), options=GUIDED,
        negative=preference.negative(given),
    )  # fmt: skip
    found = gradient(now, score, preference, PANEL)
    assert found.value.shape == (8, 4, 8, 8)
    assert torch.isfinite(found.value).all()
    assert (found.value.abs().amax((1, 2, 3)) > 0).all()
    if cell == "reward-sds":
        assert found.rewards.shape == (4, 2)  # one of each candidate for a group
    if cell != "vsd":
        assert all((found.kept[:, 4 * n : 4 * n + 4] == found.kept[:, 4 * n, None]).all() for n in range(2))
    if cell == "psd":
        assert math.isfinite(found.metrics["preference/negative_reward"])
        assert not torch.equal(preference.negative(given)["states"], given["states"])
