"""CLIP score and PickScore against transformers' own CLIP, and what all CLIP rewards have in common."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import (
    WIDTH,
    clip_model,
    open_clip_tensors,
    pictures,
    processor,
    tokenizer,
    write_aesthetic,
    write_clip,
    write_hpsv2,
)
from transformers import CLIPModel, CLIPProcessor

from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.rewards import load_reward
from splatgen.rewards.pictures import CLIP_STD, cropped, normalised

PROMPTS = ["a red cube", "cat", "a red cube"]
TOLD = ("clip", "clip-b32", "pickscore", "hpsv2", "hpsv2.0")  # those that read prompts
ALL = (*TOLD, "aesthetic", "aesthetic-v2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name in ("clip", "clip-b32", "pickscore"):
        write_clip(folder / name)
    for name in ("hpsv2", "hpsv2.0"):
        write_hpsv2(folder, name)
    write_aesthetic(folder)
    return folder


@pytest.fixture(scope="module")
def load(weights):
    """A reward by name, loaded once."""
    loaded = {}

    def get(name):
        if name not in loaded:
            loaded[name] = load_reward(name, LoadOptions(weights=str(weights)))
        return loaded[name]

    return get


def as_transformers_has_it(folder, images, prompts):
    """Logits [B] of 8-bit images for one prompt each, all by transformers."""
    whole = CLIPProcessor(image_processor=processor(), tokenizer=tokenizer(folder))
    inputs = whole(text=list(prompts), images=list(images.numpy()), return_tensors="pt", padding=True)
    with torch.no_grad():
        return CLIPModel.from_pretrained(folder).eval()(**inputs).logits_per_image.diagonal()


@pytest.mark.parametrize("name", ["clip", "clip-b32", "pickscore"])
def test_scores_are_transformers_logits(load, weights, name):
    images = (255 * pictures(3, 28, 28)).round().to(torch.uint8)
    wanted = as_transformers_has_it(weights / name, images, PROMPTS)
    wanted = wanted * (1.0 if name == "pickscore" else 100.0 / math.exp(4.0))
    torch.testing.assert_close(load(name)(images / 255, PROMPTS), wanted, atol=1e-4, rtol=0)
    assert wanted.std() > 0.5


@pytest.mark.parametrize("size", [(28, 28), (45, 31), (20, 22), (64, 51), (300, 300)])
def test_pictures_of_any_size_are_transformers_pixels_up_to_its_rounding(size):
    images = (255 * pictures(2, *size)).round().to(torch.uint8)
    wanted = processor()(list(images.numpy()), return_tensors="pt").pixel_values
    found = normalised(cropped(images / 255, 28))
    assert (found - wanted).abs().max() < 1.1 / 255 / min(CLIP_STD)  # 8 bits, rounded twice


def test_clip_score_is_a_hundred_cosines_whatever_the_file_says_and_pickscore_goes_by_the_file(load):
    assert load("clip").scale == 100.0
    assert load("pickscore").scale == pytest.approx(math.exp(4.0))


def test_both_ways_to_mark_the_end_of_a_text_score_alike(tmp_path, load):
    """Configurations of before 2023 call it 2, and mean the highest token."""
    write_clip(tmp_path / "clip", clip_model(end=2))
    older = load_reward("clip", LoadOptions(weights=str(tmp_path)))
    assert older.text_tower.get().config.eos_token_id == 2
    torch.testing.assert_close(older(pictures(), PROMPTS), load("clip")(pictures(), PROMPTS))


def test_the_width_of_the_shared_space_is_the_whole_models(tmp_path, load):
    """The towers' own configurations often say 512, which transformers' CLIPModel ignores."""
    folder = write_clip(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["projection_dim"] = config["vision_config"]["projection_dim"] = 512
    (folder / "config.json").write_text(json.dumps(config))
    reward = load_reward("clip", LoadOptions(weights=str(tmp_path)))
    assert reward.embed_pixels(torch.zeros(1, 3, 28, 28)).shape == (1, WIDTH)
    torch.testing.assert_close(reward(pictures(), PROMPTS), load("clip")(pictures(), PROMPTS))


def test_files_with_the_buffers_of_older_versions_are_read(tmp_path):
    folder = write_clip(tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    for tower, count in (("text_model", 77), ("vision_model", 5)):
        tensors[f"{tower}.embeddings.position_ids"] = torch.arange(count)[None]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert load_reward("clip", LoadOptions(weights=str(tmp_path)))(pictures(), PROMPTS).isfinite().all()


def test_a_model_of_which_there_is_only_the_pickle_is_read_without_running_it(tmp_path, load):
    folder = write_clip(tmp_path / "clip-b32")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    older = load_reward("clip-b32", LoadOptions(weights=str(tmp_path)))
    torch.testing.assert_close(older(pictures(), PROMPTS), load("clip-b32")(pictures(), PROMPTS))
    torch.save({"logit_scale": object}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="more than tensors"):
        load_reward("clip-b32", LoadOptions(weights=str(tmp_path)))


@pytest.mark.parametrize("name", ALL)
def test_a_batch_scores_as_its_images_do_alone(load, name):
    reward, images = load(name), pictures()
    each = torch.cat([reward(images[n : n + 1], PROMPTS[n : n + 1]) for n in range(3)])
    together = reward(images, PROMPTS)
    assert together.shape == (3,)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, each, atol=1e-5 * max(reward.mean, 1.0), rtol=1e-5)


@pytest.mark.parametrize("name", TOLD)
def test_an_image_gets_the_score_of_its_own_prompt(load, name):
    reward, images = load(name), pictures(1).expand(3, -1, -1, -1)
    scores = reward(images, PROMPTS)
    torch.testing.assert_close(scores[0], scores[2])
    assert abs(scores[0] - scores[1]) > 1e-4


@pytest.mark.parametrize("size", [(28, 28), (40, 33), (15, 20)])
@pytest.mark.parametrize("name", ["clip", "hpsv2", "aesthetic-v2"])
def test_the_gradient_is_the_slope_of_the_whole_reward(weights, name, size):
    reward = load_reward(name, LoadOptions(weights=str(weights)))
    reward.image_tower.double()
    if name == "aesthetic-v2":
        reward.head.double()
    images = pictures(2, *size).double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:2]).sum(), images)
    for seed in range(3):
        way = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ahead, behind = (reward(images.detach() + e * way, PROMPTS[:2]).sum() for e in (1e-5, -1e-5))
        slope = (ahead - behind) / 2e-5
        torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_weights_take_no_gradient_and_do_not_learn_to_drop_out(load, name):
    reward = load(name)
    networks = [reward.image_tower, reward.text_tower.get() if name in TOLD else reward.head]
    for network in networks:
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(reward(pictures(), PROMPTS), reward(pictures(), PROMPTS))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_scores_nearly_the_same_with_a_finite_gradient(weights, load, name, precision):
    reward = load_reward(name, LoadOptions(weights=str(weights), precision=precision))
    assert reward.image_tower.dtype == getattr(torch, precision)
    images = pictures().requires_grad_()
    scores = reward(images, PROMPTS)
    assert scores.dtype == torch.float32
    exact = load(name)(pictures(), PROMPTS).detach()
    scale = max(getattr(reward, "scale", 1.0), 1.0)
    assert (scores - exact).abs().max() < {"float16": 0.01, "bfloat16": 0.1}[precision] * scale
    scores.sum().backward()
    assert images.grad.dtype == torch.float32
    assert images.grad.isfinite().all()
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize("name", TOLD)
def test_prompts_are_embedded_once_and_the_text_tower_comes_back_for_new_ones(tmp_path, name):
    write = write_hpsv2 if name.startswith("hpsv2") else lambda folder, name: write_clip(folder / name)
    write(tmp_path, name)
    reward = load_reward(name, LoadOptions(weights=str(tmp_path)))
    reward.prepare(PROMPTS)
    known = reward(pictures(), PROMPTS)
    reward.release()
    fresh = reward(pictures(), ["cube", *PROMPTS[1:]])
    torch.testing.assert_close(fresh[1:], known[1:])
    reward.release()
    for file in (tmp_path / name).iterdir():  # from here on only what is in memory can be used
        if file.suffix in (".pt", ".safetensors"):
            file.unlink()
    assert torch.equal(reward(pictures(), PROMPTS), known)
    with pytest.raises(WeightsError, match="does not exist"):
        reward.prepare(["a new one"])


def test_what_a_reward_says_of_itself(load, weights):
    for name in ALL:
        reward = load(name)
        assert reward.name == name
        assert reward.views == 1
        assert str(weights / name) in reward.source
        assert reward.spread > 0
    assert 18 < load("pickscore").mean < 23
    assert 20 < load("clip").mean < 35
    assert load("clip-b32").mean > load("clip").mean


def broken(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("text_projection.weight"), "lacks text_projection.weight"),
        (lambda t: t.pop("vision_model.post_layernorm.bias"), "lacks vision_model.post_layernorm.bias"),
        (lambda t: t.update(head=torch.zeros(1)), "has, and the architecture has not, head"),
        (lambda t: t.pop("logit_scale"), "no logit_scale"),
        (lambda t: t.update({"visual_projection.weight": torch.zeros(7, 32)}), "another shape of"),
    ],
)
def test_weights_of_another_architecture_are_refused_in_one_line(tmp_path, change, says):
    broken(write_clip(tmp_path / "pickscore"), change)
    with pytest.raises(WeightsError, match=says) as caught:
        load_reward("pickscore", LoadOptions(weights=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_cut_files_and_configurations_of_other_models_are_refused(tmp_path):
    folder = write_clip(tmp_path / "clip")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_reward("clip", LoadOptions(weights=str(tmp_path)))
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="CLIPConfig"):
        load_reward("clip", LoadOptions(weights=str(tmp_path)))


def test_open_clips_and_transformers_towers_are_the_same_network(load, tmp_path):
    """The renamed weights, written in transformers' layout, score as CLIPModel does with them."""
    reward = load("hpsv2")
    model = CLIPModel(
        clip_model().config.from_dict(
            {
                "text_config": reward.text_tower.get().config.to_dict(),
                "vision_config": reward.image_tower.config.to_dict(),
                "projection_dim": WIDTH,
            }
        )
    ).eval()
    whole = {**reward.text_tower.get().state_dict(), **reward.image_tower.state_dict()}
    model.load_state_dict({**whole, "logit_scale": open_clip_tensors()["logit_scale"]})
    pixels, ids = torch.randn(3, 3, 28, 28), reward.tokens(PROMPTS)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image.diagonal()
    cosine = (reward.embed_pixels(pixels) * reward.embed_tokens(ids)).sum(-1)
    np.testing.assert_allclose(math.exp(4.6) * cosine.numpy(), logits.numpy(), atol=1e-4)
