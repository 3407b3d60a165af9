"""ImageReward on files as it is published, with few weights, and against what the real package computed."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import tiny_blip
import torch

from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.rewards import load_reward
from splatgen.rewards.blip import architecture, load_network, renamed
from splatgen.rewards.image_reward import ImageRewardNetwork
from splatgen.runs.rng import rng

GOLDEN = Path(__file__).parents[1] / "fixtures" / "imagereward_tiny.pt"
PROMPTS = ["a red cube", "a blue sphere of sand", ""]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny_blip.save_image_reward(folder)
    return folder


@pytest.fixture(scope="module")
def reward(weights):
    return load(weights)


def load(weights, **kept):
    return load_reward("image-reward", LoadOptions(weights=str(weights), **kept))


def pictures(count=3, height=20, width=24, dtype=torch.float32):
    """Away from 0 and 1, where resizing clamps."""
    noise = torch.rand(count, 3, height, width, generator=rng(0, 0, "pictures"), dtype=torch.float64)
    return (0.3 + 0.4 * noise).to(dtype)


def golden(tmp_path):
    """What image-reward 1.5 computed with random weights, and our network with the same weights."""
    found = torch.load(GOLDEN, weights_only=True)
    path = tmp_path / "ImageReward.pt"
    torch.save(found["checkpoint"], path)
    heads, med = (
        found["vision"]["num_heads"],
        {"num_attention_heads": found["med_config"]["num_attention_heads"]},
    )
    network = load_network(ImageRewardNetwork, path, LoadOptions(), med=med, vision_heads=heads)
    return found, network


def test_scores_and_gradients_are_those_of_the_published_package(tmp_path):
    found, network = golden(tmp_path)
    pixels = found["pixel_values"].clone().requires_grad_()
    scores = network(pixels, found["input_ids"], found["attention_mask"])
    scores.sum().backward()
    assert torch.allclose(scores, found["reward"], rtol=0, atol=1e-5)
    assert (pixels.grad - found["grad"]).norm() <= 1e-4 * found["grad"].norm()


def test_every_published_tensor_has_its_place_at_full_size():
    """BLIP ViT-L/16, BERT 12 x 768 and 30524 words: 446 million numbers, as 1.79 GB of float32 are."""
    shapes = tiny_blip.published(seen=1024, width=768, layers=(24, 12), side=224, patch=16, words=30524)
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
        blip = architecture(tensors, Path("ImageReward.pt"), {"num_attention_heads": 12})
        network = ImageRewardNetwork(blip)
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in renamed(tensors).items()} == wanted
    assert blip.side == 224
    assert blip.vision.config.num_attention_heads == 16
    assert blip.text.config.num_attention_heads == 12
    assert sum(p.numel() for p in network.parameters()) == 446_206_689


def test_the_head_takes_published_statistics_off(reward):
    """A head of zeros but for its last bias scores (bias - 0.16717) / 1.03334."""
    network = load_zeroed(reward)
    ids, mask = reward._words(["a red cube"])
    with torch.no_grad():
        found = network(torch.zeros(1, 3, 16, 16), ids, mask)
    assert float(found) == pytest.approx((2.0 - 0.16717362830052426) / 1.0333394966054072, rel=1e-6)


def load_zeroed(reward):
    network = ImageRewardNetwork(reward.network.blip)
    with torch.no_grad():
        for parameter in network.mlp.parameters():
            parameter.zero_()
        network.mlp[-1].bias.fill_(2.0)
    return network


def test_gradients_are_those_of_finite_differences(weights):
    reward = load(weights)
    reward.network.double()
    images = pictures(2, dtype=torch.float64).requires_grad_()
    direction = torch.randn(images.shape, generator=rng(0, 0, "direction"), dtype=torch.float64)

    def total(x):
        return reward(x, PROMPTS[:2]).sum()

    (gradient,) = torch.autograd.grad(total(images), images)
    step = 1e-5
    with torch.no_grad():
        measured = (total(images + step * direction) - total(images - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(measured), rel=1e-6)
    assert gradient.abs().amax((1, 2, 3)).min() > 1e-6


def test_pixels_outside_the_middle_square_do_not_count(reward):
    images = pictures(1, height=16, width=32).requires_grad_()
    reward(images, ["a red cube"]).sum().backward()
    assert images.grad[..., 8:24].abs().amax((0, 1, 2)).min() > 0
    assert not images.grad[..., :8].any()
    assert not images.grad[..., 24:].any()


def test_a_batch_scores_like_its_pictures_alone(reward):
    images = pictures()
    with torch.no_grad():
        together = reward(images, PROMPTS)
        alone = [reward(images[n : n + 1], PROMPTS[n : n + 1]) for n in range(3)]
    assert together.shape == (3,)
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert together.std() > 1e-2


def test_scores_depend_on_the_prompt_and_on_the_picture(reward):
    """Were the text encoder's mask causal, the first token could not see the prompt."""
    images = pictures(2)
    with torch.no_grad():
        same = reward(images[:1].repeat(2, 1, 1, 1), ["a red cube", "a red sphere"])
        seen = reward(images, ["a red cube"] * 2)
    assert abs(float(same[0] - same[1])) > 1e-3
    assert abs(float(seen[0] - seen[1])) > 1e-3


def test_padding_is_not_read(reward):
    network = reward.network
    ids, mask = reward._words(["a red cube"])
    scrambled = torch.where(mask.bool(), ids, 7)
    pixels = pictures(1, 16, 16)
    with torch.no_grad():
        usual, other = network(pixels, ids, mask), network(pixels, scrambled, mask)
        unmasked = network(pixels, scrambled, torch.ones_like(mask))
    assert torch.equal(usual, other)
    assert abs(float(usual - unmasked)) > 1e-4


def test_prompts_become_35_tokens_between_cls_and_sep(reward):
    (ids,), (mask,) = reward._words(["A red CUBE"])
    names = [tiny_blip.VOCABULARY[n] for n in ids.tolist()]
    assert names == ["[CLS]", "a", "red", "cube", "[SEP]"] + 30 * ["[PAD]"]
    assert mask.tolist() == 5 * [1] + 30 * [0]


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("", []),
        ("  Red,cube ", ["red", ",", "cube"]),
        ("réd", ["red"]),
        ("redo bus", ["red", "##o", "b", "##u", "##s"]),
        ("赤い", ["[UNK]", "[UNK]"]),
    ],
)
def test_prompts_are_split_as_berts(reward, prompt, tokens):
    ids, mask = reward._words([prompt])
    names = [tiny_blip.VOCABULARY[n] for n in ids[0, : int(mask.sum())].tolist()]
    assert names == ["[CLS]", *tokens, "[SEP]"]


def test_the_end_of_a_long_prompt_is_not_read_and_a_warning_says_so_once(reward):
    start = ("a " * 33).strip()
    long = [f"{start} Red cube, side view", f"{start} blue"]
    with pytest.warns(UserWarning, match="reads 33 tokens.*'Red cube, side view', nor the ends of 1 others"):
        reward.prepare([*long, "a cube"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward.prepare([start, *long])
        with torch.no_grad():
            cut = reward(pictures(1).repeat(3, 1, 1, 1), [start, *long])
    assert torch.allclose(cut, cut[:1].expand(3), atol=1e-5)


def test_releasing_changes_nothing(reward):
    images = pictures()
    with torch.no_grad():
        before = reward(images, PROMPTS)
        reward.release()
        assert torch.equal(reward(images, PROMPTS), before)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_towers_go_to_half_precision_and_the_head_does_not(weights, reward, precision):
    half = load(weights, precision=precision)
    images = pictures().requires_grad_()
    scores = half(images, PROMPTS)
    scores.sum().backward()
    with torch.no_grad():
        exact = reward(images, PROMPTS)
    assert half.network.blip.vision.dtype == half.network.blip.text.dtype == getattr(torch, precision)
    assert half.network.mlp[0].weight.dtype == scores.dtype == torch.float32
    assert torch.allclose(scores.detach(), exact, atol=0.03)
    assert images.grad.isfinite().all()
    assert images.grad.any()


def test_networks_are_frozen_and_named(reward, weights):
    assert not any(p.requires_grad for p in reward.network.parameters())
    assert not any(module.training for module in reward.network.modules())
    assert (reward.name, reward.views, reward.mean, reward.spread) == ("image-reward", 1, 0.0, 1.0)
    assert str(weights / "image-reward") in reward.source


def resave(change):
    def spoil(folder):
        tensors = torch.load(folder / "ImageReward.pt", weights_only=True)
        change(tensors)
        torch.save(tensors, folder / "ImageReward.pt")

    return spoil


def cut_file(folder):
    path = folder / "ImageReward.pt"
    path.write_bytes(path.read_bytes()[:1000])


def write_med(**changes):
    return lambda folder: (folder / "med_config.json").write_text(json.dumps(tiny_blip.MED | changes))


def cut_vocabulary(folder):
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(tiny_blip.VOCABULARY[:-3]))


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 4}, {"layer_norm_eps": 0.1}, {"hidden_act": "relu"}]
)
def test_what_tensors_do_not_tell_is_read_from_the_configuration(weights, reward, tmp_path, change):
    shutil.copytree(weights, tmp_path / "weights")
    write_med(**change)(tmp_path / "weights" / "image-reward")
    images = pictures()
    with torch.no_grad():
        apart = load(tmp_path / "weights")(images, PROMPTS) - reward(images, PROMPTS)
    assert apart.abs().max() > 1e-3


LAYER = "blip.visual_encoder.blocks.1.attn.proj.weight"
SPOILED = {
    "no checkpoint": (lambda f: (f / "ImageReward.pt").unlink(), "lacks ImageReward.pt"),
    "no configuration": (lambda f: (f / "med_config.json").unlink(), "lacks med_config.json"),
    "no vocabulary": (lambda f: (f / "tokenizer" / "vocab.txt").unlink(), "lacks vocab.txt"),
    "half a file": (cut_file, "ImageReward.pt"),
    "not a file of tensors": (lambda f: (f / "ImageReward.pt").write_text("<html>"), "is damaged"),
    "another model": (lambda f: torch.save({"state_dict": {}}, f / "ImageReward.pt"), "patch_embed"),
    "a list": (lambda f: torch.save([1, 2], f / "ImageReward.pt"), "holds a list"),
    "a layer is missing": (resave(lambda t: t.pop(LAYER)), "lacks .*layers.1.self_attn.projection.weight"),
    "a tensor too many": (resave(lambda t: t.update(extra=torch.ones(1))), "has not, extra"),
    "another shape": (resave(lambda t: t.update({LAYER: torch.ones(3, 3)})), "another shape of .*projection"),
    "a number for a tensor": (resave(lambda t: t.update({LAYER: 3})), "another shape of .*projection"),
    "no patches": (resave(lambda t: t.update({"blip.visual_encoder.pos_embed": torch.ones(3)})), "pos_embed"),
    "another width of one tensor": (
        resave(lambda t: t.update({"blip.visual_encoder.cls_token": torch.ones(1, 1, 8)})),
        "another shape of .*class_embedding",
    ),
    "broken configuration": (lambda f: (f / "med_config.json").write_text("{"), "med_config.json"),
    "a list for a configuration": (lambda f: (f / "med_config.json").write_text("[1]"), "med_config.json"),
    "heads that do not divide": (write_med(num_attention_heads=3), "multiple of the number"),
    "heads that are no number": (write_med(num_attention_heads="two"), "invalid literal"),
    "another vocabulary": (cut_vocabulary, "has 63 words .* has 66"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_files_that_do_not_fit_are_told_apart(weights, tmp_path, case):
    spoil, message = SPOILED[case]
    shutil.copytree(weights, tmp_path / "weights")
    spoil(tmp_path / "weights" / "image-reward")
    with pytest.raises(WeightsError, match=message):
        load(tmp_path / "weights")
