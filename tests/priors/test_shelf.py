"""The shelf's prior sees cut-outs: coverage and colours without a background."""

import math

import pytest
import shelf_nets
import torch
from torch.nn.functional import avg_pool2d

from splatgen.config import Config, PriorOptions, ViewOptions
from splatgen.guidance.conditioning import embed_prompt
from splatgen.loop import step
from splatgen.loop.encoding import encoder_inputs
from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.priors import PRIORS, load_prior
from splatgen.priors.shelf import ShelfPrior, blurred
from splatgen.rasterizer import render
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable
from splatgen.scene.splats import random_ball
from splatgen.worlds.shelf.model import fold, unfold


def prior(**change) -> ShelfPrior:
    return ShelfPrior(net=shelf_nets.net("prior"), vae=shelf_nets.net("autoencoder"), **change)


def cutout(count=2, side=16):
    alpha = torch.rand(count, 1, side, side)
    return alpha * torch.rand(count, 3, side, side), alpha


def test_encode_is_the_autoencoders_mean_of_colour_and_coverage():
    images, alpha = cutout()
    p = prior()
    x = p.encode(images, alpha)
    assert x.shape == (2, 8, 4, 4)
    folded = fold(2 * torch.cat([images, alpha], 1) - 1)
    torch.testing.assert_close(x, p.vae.encode(folded).latent_dist.mean)
    assert p.resolution == 16


def test_larger_renders_are_averaged_as_the_worlds_own_pixels_are():
    images, alpha = cutout(side=64)
    p = prior()
    torch.testing.assert_close(p.encode(images, alpha), p.encode(avg_pool2d(images, 4), avg_pool2d(alpha, 4)))
    assert p.encode(*cutout(side=40)).shape == (2, 8, 4, 4)


def test_without_coverage_all_is_covered():
    images, _ = cutout()
    p = prior()
    assert torch.equal(p.encode(images), p.encode(images, torch.ones(2, 1, 16, 16)))
    assert not torch.equal(p.encode(images), p.encode(images, torch.zeros(2, 1, 16, 16)))


def test_gradients_reach_colour_and_coverage():
    images, alpha = (t.requires_grad_() for t in cutout())
    prior().encode(images, alpha).square().sum().backward()
    assert images.grad.abs().min() > 0
    assert alpha.grad.abs().min() > 0


def test_decoded_images_stand_on_grey():
    p, x = prior(), torch.randn(2, 8, 4, 4)
    cut = unfold((0.5 * (p.vae.decode(x).sample + 1)).clamp(0, 1))
    torch.testing.assert_close(p.decode(x), (cut[:, :3] + 0.5 * (1 - cut[:, 3:])).clamp(0, 1))
    assert torch.equal(p.preview(x), p.decode(x))


def test_the_noise_is_that_of_the_velocity():
    p, x, t = prior(), torch.randn(2, 8, 4, 4), torch.tensor([0.2, 0.9])
    condition, cameras = p.embed(["a taxi", "a red couch, side view"]), turntable(2, size=16)
    alpha, sigma = p.alpha_sigma(t)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(2, 1, 1, 1))
    assert alpha[0].item() == pytest.approx(math.cos(math.pi / 10))
    eps = p.predict(x, t, condition, cameras)
    v = (eps - sigma * x) / alpha
    x0 = alpha * x - sigma * v
    torch.testing.assert_close(alpha * x0 + sigma * eps, x)


def test_the_camera_is_told_unless_it_is_switched_off():
    x, t = torch.randn(2, 8, 4, 4)[:1].repeat(2, 1, 1, 1), torch.tensor([0.5, 0.5])
    cameras = turntable(2, size=16)
    for camera in (True, False):
        p = prior(camera=camera)
        a, b = p.predict(x, t, p.embed(["a taxi", "a taxi"]), cameras)
        assert torch.allclose(a, b, atol=1e-6) is not camera


def test_words_of_a_view_are_left_to_the_camera_and_no_prompt_is_the_empty_one():
    p = prior()
    plain, told, empty = (p.embed([text])["states"] for text in ("a taxi", "a taxi, back view", ""))
    assert torch.equal(plain, told)
    assert not torch.equal(plain, empty)
    with pytest.raises(ValueError, match="'xyzzy'"):
        p.embed(["a xyzzy"])


def test_half_precision_changes_little():
    x, t, cameras = torch.randn(2, 8, 4, 4), torch.tensor([0.3, 0.7]), turntable(2, size=16)
    found = [p.predict(x, t, p.embed(["a taxi"] * 2), cameras) for p in (prior(), prior(half=True))]
    assert found[1].dtype == torch.float32
    assert 0 < (found[0] - found[1]).abs().mean() < 0.02


def test_a_blur_keeps_plain_pictures_and_smooths_others():
    flat = torch.full((1, 4, 16, 16), 0.3)
    torch.testing.assert_close(blurred(flat, 0.7), flat)
    noise = torch.rand(1, 4, 16, 16)
    assert blurred(noise, 0.7).std() < 0.7 * noise.std()
    images, alpha = cutout()
    assert not torch.equal(prior(blur=0.5).encode(images, alpha), prior().encode(images, alpha))


def test_an_untrained_copy_predicts_what_the_prior_does():
    p = prior()
    x, t, cameras = torch.randn(2, 8, 4, 4), torch.tensor([0.3, 0.7]), turntable(2, size=16)
    condition = p.embed(["a taxi", "a cow"])
    before = p.predict(x, t, condition, cameras)
    adapter = p.adapter(2, rng(0, 0, "adapter"))
    with adapter.enabled():
        torch.testing.assert_close(adapter.predict(x, t, condition, cameras, torch.ones(2)), before)


def test_a_step_gives_coverage_and_takes_the_background_away():
    """However the step's backgrounds fall, the prior sees the same; and the splats get a gradient."""
    p, cameras = prior(), turntable(3, size=16)
    splats = random_ball(rng(0, 0, "init"), count=200, radius=0.6, scale=0.15, opacity=0.6)
    leaves = {name: value.requires_grad_() for name, value in splats.tensors().items()}
    found = []
    for name in ("random", "white", "black"):
        config = Config(prompt="a taxi", prior="shelf", views=ViewOptions(background=name))
        behind = step.background(config, 5, cameras)
        out = render(splats, cameras, behind)
        found.append(p.encode(*encoder_inputs(config.prior, out, behind)))
    black = render(splats, cameras)
    torch.testing.assert_close(found[0], p.encode(black.rgb, black.alpha), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[0], found[2], atol=1e-5, rtol=1e-4)
    found[0].square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves.values())


def test_other_priors_see_the_render_as_it_is():
    config = Config(prompt="a red cube", prior="toybox-mini")
    cameras = turntable(2, size=16)
    splats = random_ball(rng(0, 0, "init"), count=50, radius=0.6, scale=0.15, opacity=0.6)
    out = render(splats, cameras, step.background(config, 0, cameras))

    (seen,) = encoder_inputs(config.prior, out, step.background(config, 0, cameras))
    assert seen is out.rgb


def test_it_loads_from_a_folder_and_says_what_is_missing(tmp_path):
    shelf_nets.write(tmp_path, "autoencoder", "prior")
    found = load_prior("shelf", PriorOptions(model=str(tmp_path)), LoadOptions())
    assert found.name == "shelf"
    assert found.source == str(tmp_path)
    assert embed_prompt(found, "a taxi") is not None
    assert PRIORS["shelf"].coverage
    (tmp_path / "autoencoder.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"autoencoder\.safetensors is missing"):
        load_prior("shelf", PriorOptions(model=str(tmp_path)), LoadOptions())


def test_float32_is_given_where_it_is_asked_for(tmp_path):
    shelf_nets.write(tmp_path, "autoencoder", "prior")
    full = load_prior("shelf", PriorOptions(model=str(tmp_path), dtype="float32"), LoadOptions())
    half = load_prior("shelf", PriorOptions(model=str(tmp_path), dtype="bfloat16"), LoadOptions())
    assert (full.half, half.half) == (False, True)


def test_parts_of_different_sizes_are_refused():
    from splatgen.worlds.shelf import model

    vae = model.autoencoder(model.AutoencoderConfig(size=16, channels=(8, 16), latents=4))
    with pytest.raises(ValueError, match="takes 8 latent channels and gets 4"):
        ShelfPrior(net=shelf_nets.net("prior"), vae=vae)
