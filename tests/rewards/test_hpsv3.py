"""HPSv3 against a literal computation from its published head, chat and places; its files as published."""

from __future__ import annotations

import zipfile

import pytest
import torch
from safetensors.torch import save_file
from tiny_clip import pictures
from tiny_qwen import ENDING, QUESTION, WIDTH, chat, hpsv3_network, hpsv3_tensors, tokenizer, write_hpsv3

from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.rewards import hpsv3, load_reward, qwen

PROMPTS = ["a red cube", "No"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_hpsv3(folder / "hpsv3")
    return folder


@pytest.fixture
def reward(weights, monkeypatch):
    monkeypatch.setattr(hpsv3, "PIXELS", 6 * qwen.UNIT**2)
    return load_reward("hpsv3", LoadOptions(weights=str(weights)))


def literally(folder, image, prompt):
    """The mean that the head makes of <|Reward|>'s state; the picture's tokens stand where its marks are."""
    words = tokenizer()
    network = hpsv3_network(words)
    words.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    head = hpsv3.reward_head(WIDTH).eval()
    head.load_state_dict({n[8:]: v for n, v in hpsv3_tensors(folder).items() if n.startswith("rm_head.")})
    pixels, grid = qwen.patches(image[None], 56, 84)
    said = QUESTION.replace("{text_prompt}", prompt) + ENDING
    ids = words(chat(said, 6), return_tensors="pt").input_ids
    with torch.no_grad():
        seen = network.model.visual(pixels, grid_thw=grid).pooler_output
        states = network.model.language_model.embed_tokens(ids)
        states[ids == network.config.image_token_id] = seen
        states = network.model.language_model(inputs_embeds=states).last_hidden_state
        return head(states[0, (ids[0] == words.get_vocab()["<|Reward|>"]).nonzero().item()])[0]


def test_the_score_is_the_heads_mean_at_the_mark(reward, weights):
    images = pictures(2, 56, 84)
    wanted = torch.stack([literally(weights / "hpsv3", *z) for z in zip(images, PROMPTS, strict=True)])
    torch.testing.assert_close(reward(images, PROMPTS), wanted, atol=1e-5, rtol=1e-4)
    assert (wanted[0] - wanted[1]).abs() > 1e-3


def test_the_gradient_is_the_slope(reward):
    reward.network.double()
    reward.head.double()
    images = pictures(1, 60, 80).double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:1]).sum(), images)
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ahead, behind = (reward(images.detach() + e * way, PROMPTS[:1]).sum() for e in (1e-4, -1e-4))
    slope = (ahead - behind) / 2e-4  # transformers' norms are in float32 whatever comes
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    ("size", "wanted"), [((512, 512), (448, 448)), ((1024, 1024), (448, 448)), ((512, 384), (532, 392))]
)
def test_pictures_are_made_of_about_256_tokens(size, wanted):
    """Numbers worked out by the published formula."""
    assert qwen.sides(*size, hpsv3.PIXELS, hpsv3.PIXELS) == wanted


def test_the_newer_names_of_the_tensors_are_read_too(reward, tmp_path):
    write_hpsv3(tmp_path / "hpsv3")
    network = hpsv3_network(tokenizer()).state_dict()
    head = {n: v for n, v in hpsv3_tensors(tmp_path / "hpsv3").items() if n.startswith("rm_head.")}
    save_file({**{n: v.clone() for n, v in network.items()}, **head}, tmp_path / "hpsv3" / hpsv3.FILE)
    newer = load_reward("hpsv3", LoadOptions(weights=str(tmp_path)))
    torch.testing.assert_close(newer(pictures(1), PROMPTS[:1]), reward(pictures(1), PROMPTS[:1]))


def test_the_head_stays_in_float32(weights):
    half = load_reward("hpsv3", LoadOptions(weights=str(weights), precision="float16"))
    assert half.network.dtype == torch.bfloat16
    assert half.head[0].weight.dtype == torch.float32
    assert half(pictures(1), PROMPTS[:1]).dtype == torch.float32


def test_a_package_without_the_question_and_weights_of_other_words_are_refused(tmp_path):
    folder = tmp_path / "hpsv3"
    write_hpsv3(folder)
    tensors = hpsv3_tensors(folder)
    with zipfile.ZipFile(folder / "question" / hpsv3.PACKAGE, "w") as package:
        package.writestr(hpsv3.QUESTION_FILE, "INSTRUCTION = open('x')\n")
    with pytest.raises(WeightsError, match="does not hold the question"):
        load_reward("hpsv3", LoadOptions(weights=str(tmp_path)))
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()
    save_file(tensors, folder / hpsv3.FILE)
    with pytest.raises(WeightsError, match="does not go with the tokenizer"):
        load_reward("hpsv3", LoadOptions(weights=str(tmp_path)))
