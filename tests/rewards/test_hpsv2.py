"""HPSv2 against scores and gradients that its own package computed, and its file as published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_clip import open_clip_tensors, pictures, write_hpsv2, write_words

from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.rewards import load_reward
from splatgen.rewards.hpsv2 import from_file
from splatgen.rewards.pictures import normalised, padded

GOLDEN = Path(__file__).parents[1] / "fixtures" / "hpsv2_tiny.pt"  # by hpsv2 1.2.0, random weights
PROMPTS = ["a red cube", "a red cube", "cat"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_hpsv2(folder)
    write_hpsv2(folder, "hpsv2.0", {k: 1.01 * v for k, v in open_clip_tensors().items()})
    return folder


@pytest.fixture(scope="module")
def reward(weights):
    return load_reward("hpsv2", LoadOptions(weights=str(weights)))


@pytest.fixture(scope="module")
def golden():
    return torch.load(GOLDEN, weights_only=True)


@pytest.fixture(scope="module")
def parity(golden, tmp_path_factory):
    """The reward with the weights of the fixture, whose heads are narrower than the published ones'."""
    folder = tmp_path_factory.mktemp("golden")
    torch.save(golden["checkpoint"], folder / "file.pt")
    words = write_words(folder / "words", golden["config"]["text_cfg"]["vocab_size"])
    return from_file(folder / "file.pt", words, LoadOptions(), name="hpsv2", source="fixture", heads=(20, 8))


def test_scores_and_gradients_are_those_of_the_package(parity, golden):
    pixels = golden["pixel_values"].clone().requires_grad_()
    score = (parity.embed_pixels(pixels) * parity.embed_tokens(golden["input_ids"])).sum(-1)
    torch.testing.assert_close(score, golden["score"], atol=1e-5, rtol=0)
    score.sum().backward()
    error = (pixels.grad - golden["grad"]).norm() / golden["grad"].norm()
    assert error < 1e-4


def test_the_end_of_a_text_is_its_highest_token_under_both_of_transformers_rules(parity, golden):
    """open_clip pools at the highest id; transformers at the first end, or at the highest if that is 2."""
    tower = parity.text_tower.get()
    found = parity.embed_tokens(golden["input_ids"])
    end = tower.text_model.eos_token_id
    assert end == golden["input_ids"].max()
    try:
        tower.text_model.eos_token_id = 2
        assert torch.equal(parity.embed_tokens(golden["input_ids"]), found)
    finally:
        tower.text_model.eos_token_id = end


def test_the_zeros_after_a_text_change_nothing(parity, golden):
    ids = golden["input_ids"][:2]
    torch.testing.assert_close(parity.embed_tokens(ids[:, :10]), parity.embed_tokens(ids))


def test_the_score_is_the_cosine_of_padded_pictures_and_prompts_without_a_scale(reward):
    images = pictures()
    pixels = normalised(padded(images, 28))
    wanted = torch.nn.functional.cosine_similarity(
        reward.image_tower(pixels).image_embeds,
        reward.text_tower.get()(reward.tokens(PROMPTS)).text_embeds,
    )
    torch.testing.assert_close(reward(images, PROMPTS), wanted)


def test_the_versions_differ_and_say_who_they_are(reward, weights):
    other = load_reward("hpsv2.0", LoadOptions(weights=str(weights)))
    assert (reward.name, other.name) == ("hpsv2", "hpsv2.0")
    assert reward.views == other.views == 1
    assert str(weights / "hpsv2") in reward.source
    assert 0.15 < other.mean < reward.mean < 0.4
    assert 0 < other.spread < reward.spread < 0.1
    assert not torch.allclose(reward(pictures(), PROMPTS), other(pictures(), PROMPTS), atol=1e-4)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("fish &amp;amp; cube", "fish & cube"),
        ("a  red\t cube\n", "a red cube"),
        ("A RED Cube", "a red cube"),
        ("the cat’s “cube”", 'the cat\'s "cube"'),
        ("\ufb01sh", "fish"),
        ("ＲＥＤ　cube", "red cube"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("ΣΑΣ", "σας"),
    ],
)
def test_prompts_are_cleaned_as_open_clip_does(reward, written, meant):
    assert torch.equal(reward.tokens([written]), reward.tokens([meant]))


def test_tokens_begin_and_end_a_text_and_are_zero_after_it(reward):
    ids = reward.tokens(["red", "red cube"]).tolist()
    vocabulary = reward.text_tower.get().config.vocab_size
    assert [row[0] for row in ids] == [vocabulary - 2] * 2
    assert ids[0][2:] == [vocabulary - 1, 0]
    assert ids[1][3:] == [vocabulary - 1]


def test_an_emoji_is_its_four_bytes_and_no_prompt_ends_itself_early(reward):
    assert len(reward.tokens(["🤖"])[0]) == 2 + 4
    end = reward.text_tower.get().config.vocab_size - 1
    ids = reward.tokens(["red <|endoftext|> cube"])[0]
    assert (ids == end).sum() == 1
    assert ids[-1] == end


def test_a_prompt_of_75_tokens_is_read_and_one_of_76_is_refused_by_name(reward):
    reward.prepare(["red " * 75])
    with pytest.raises(
        ValueError, match=r"^the prompt 'red red .*has 76 tokens and hpsv2 reads 75: shorten it$"
    ):
        reward.prepare(["cat", "red " * 76])


def test_a_refused_prompt_leaves_nothing_half_prepared(reward):
    with pytest.raises(ValueError, match="shorten it"):
        reward(pictures(1), ["cube " * 100])
    with pytest.raises(ValueError, match="shorten it"):
        reward(pictures(1), ["cube " * 100])


def drop(tensors):
    del tensors["ln_final.bias"]


def add(tensors):
    tensors["visual.extra"] = torch.zeros(1)


def add_to_the_text(tensors):
    tensors["extra"] = torch.zeros(1)


def reshape(tensors):
    tensors["visual.ln_post.bias"] = torch.zeros(3)


def of_other_heads(tensors):
    tensors["visual.conv1.weight"] = torch.zeros(96, 3, 14, 14)


def without_blocks(tensors):
    for name in [name for name in tensors if name.startswith("transformer.")]:
        del tensors[name]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (drop, "lacks text_model.final_layer_norm.bias"),
        (add, "has, and the architecture has not, visual.extra"),
        (add_to_the_text, "has, and the architecture has not, extra"),
        (reshape, "has another shape of .*post_layernorm.bias"),
        (of_other_heads, "which heads of 80 do not divide"),
        (without_blocks, "has no transformer.resblocks.0.mlp.c_fc.weight"),
    ],
)
def test_other_weights_than_the_published_are_refused_when_loaded(tmp_path, damage, says):
    tensors = open_clip_tensors(image=(80, 1), text=(64, 1))
    damage(tensors)
    path = write_hpsv2(tmp_path, tensors=tensors)
    with pytest.raises(WeightsError, match=says) as caught:
        load_reward("hpsv2", LoadOptions(weights=str(tmp_path)))
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_causal_mask_among_the_weights_is_passed_over(tmp_path):
    tensors = open_clip_tensors(image=(80, 1), text=(64, 1))
    write_hpsv2(tmp_path, tensors={**tensors, "attn_mask": torch.zeros(77, 77)})
    assert load_reward("hpsv2", LoadOptions(weights=str(tmp_path)))(pictures(), PROMPTS).isfinite().all()


def test_a_cut_file_is_refused(tmp_path):
    path = write_hpsv2(tmp_path, tensors=open_clip_tensors(image=(80, 1), text=(64, 1)))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(WeightsError, match=path.name):
        load_reward("hpsv2", LoadOptions(weights=str(tmp_path)))


def test_a_file_without_state_dict_is_refused(tmp_path):
    path = write_hpsv2(tmp_path, tensors=open_clip_tensors(image=(80, 1), text=(64, 1)))
    torch.save({"weights": {}}, path)
    with pytest.raises(WeightsError, match="no 'state_dict'"):
        load_reward("hpsv2", LoadOptions(weights=str(tmp_path)))


def test_another_models_tokenizer_is_refused(tmp_path):
    write_hpsv2(tmp_path, tensors=open_clip_tensors(image=(80, 1), text=(64, 1)))
    words = write_words(tmp_path / "hpsv2" / "tokenizer", 516)
    with pytest.raises(WeightsError, match="tokenizer of another model: its texts end in token 515"):
        load_reward("hpsv2", LoadOptions(weights=str(tmp_path)))
    (words / "merges.txt").write_text("no such\nmerges here\n")
    with pytest.raises(WeightsError, match="CLIPTokenizer can't be loaded"):
        load_reward("hpsv2", LoadOptions(weights=str(tmp_path)))
    (words / "vocab.json").write_text("{")
    with pytest.raises(WeightsError, match="CLIPTokenizer can't be loaded"):
        load_reward("hpsv2", LoadOptions(weights=str(tmp_path)))


def test_a_missing_tokenizer_says_where_to_get_it(tmp_path):
    write_hpsv2(tmp_path, tensors=open_clip_tensors(image=(80, 1), text=(64, 1)))
    (tmp_path / "hpsv2" / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(WeightsError, match=r"hpsv2 lacks merges.txt in .*tokenizer"):
        load_reward("hpsv2", LoadOptions(weights=str(tmp_path)))
