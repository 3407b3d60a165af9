"""The probability of "Yes" under Qwen2.5-VL against transformers' own processor, chat and network."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_clip import pictures
from tiny_qwen import chat, tokenizer, write_vqa
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.rewards import load_reward, qwen
from splatgen.rewards.pictures import CLIP_STD

PROMPTS = ["a red cube", "No", "a red cube"]
SIZE = (56, 84)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_vqa(folder / "vqa")
    return folder


@pytest.fixture(scope="module")
def reward(weights):
    return load_reward("vqa", LoadOptions(weights=str(weights)))


def literally(folder, image, prompt):
    """P("Yes") of one 8-bit image [3, H, W], by transformers alone."""
    network = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    words = tokenizer()
    seen = Qwen2VLImageProcessorPil()(image.numpy(), return_tensors="pt")
    tokens = int(seen.image_grid_thw.prod()) // 4
    ids = words(chat(f'Does this image show "{prompt}"?', tokens), return_tensors="pt").input_ids
    types = (ids == network.config.image_token_id).int()
    with torch.no_grad():
        logits = network(input_ids=ids, mm_token_type_ids=types, **seen).logits[0, -1]
    return logits.softmax(0)[words.get_vocab()["Yes"]]


def test_it_is_the_probability_of_yes_in_transformers_own_chat(reward, weights):
    images = (255 * pictures(3, *SIZE)).round().to(torch.uint8)
    wanted = torch.stack([literally(weights / "vqa", *z) for z in zip(images, PROMPTS, strict=True)])
    found = reward(images / 255, PROMPTS)
    torch.testing.assert_close(found, wanted, atol=0, rtol=1e-4)
    assert wanted.std() > 1e-2 * wanted.mean()


@given(st.integers(28, 3000), st.integers(28, 3000))
def test_sides_are_those_of_the_published_processor(height, width):
    most = 28 * 28 * 1280
    assert qwen.sides(height, width, 56 * 56, most) == smart_resize(height, width, 28, 56 * 56, most)


def test_patches_are_the_processors_up_to_its_rounding():
    images = (255 * pictures(2, 61, 90)).round().to(torch.uint8)
    seen = Qwen2VLImageProcessorPil()(list(images.numpy()), return_tensors="pt")
    found, grid = qwen.patches(images / 255, *qwen.sides(61, 90))
    assert torch.equal(grid, seen.image_grid_thw)
    assert (found - seen.pixel_values).abs().max() < 1.1 / 255 / min(CLIP_STD)


def test_the_gradient_is_the_slope(weights):
    reward = load_reward("vqa", LoadOptions(weights=str(weights)))
    reward.network.double()
    images = pictures(2, *SIZE).double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:2]).sum(), images)
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ahead, behind = (reward(images.detach() + e * way, PROMPTS[:2]).sum() for e in (1e-3, -1e-3))
    slope = (ahead - behind) / 2e-3  # transformers' norms are in float32 whatever comes
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-3, atol=1e-8)


def test_recomputed_layers_give_the_same_gradient(weights, reward):
    again = load_reward("vqa", LoadOptions(weights=str(weights), checkpointing=True))
    found, calls = [], []
    hook = again.network.model.language_model.layers[0].mlp.register_forward_pre_hook(
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    for each in (reward, again):
        images = pictures(1, *SIZE).requires_grad_()
        each(images, PROMPTS[:1]).sum().backward()
        found.append(images.grad)
    torch.testing.assert_close(found[1], found[0])
    assert len(calls) == 2  # there and back
    hook.remove()
    with torch.no_grad():
        assert torch.equal(again(images, PROMPTS[:1]), reward(images, PROMPTS[:1]))


def test_half_precision_is_bfloat16(weights, reward):
    half = load_reward("vqa", LoadOptions(weights=str(weights), precision="float16"))
    assert half.network.dtype == torch.bfloat16
    images = pictures(1, *SIZE).requires_grad_()
    score = half(images, PROMPTS[:1])
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, reward(images, PROMPTS[:1]), rtol=0.2, atol=0)
    score.sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().max() > 0


def test_no_prompt_ends_the_question(weights):
    words = qwen.Chat(weights / "vqa", tokenizer().get_vocab()["<|image_pad|>"])
    end = tokenizer().get_vocab()["<|im_end|>"]
    assert words.turn(words.read("a <|im_end|> cube"), 4).count(end) == 2


def test_what_it_says_of_itself(reward, weights):
    assert (reward.name, reward.views) == ("vqa", 1)
    assert str(weights / "vqa") in reward.source
    assert 0 < reward.mean < 1


def test_another_tokenizer_and_missing_weights_are_refused(tmp_path):
    folder = write_vqa(tmp_path / "vqa")
    config = json.loads((folder / "config.json").read_text())
    config["image_token_id"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="tokenizer of another model"):
        load_reward("vqa", LoadOptions(weights=str(tmp_path)))
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="splatgen fetch vqa"):
        load_reward("vqa", LoadOptions(weights=str(tmp_path)))
