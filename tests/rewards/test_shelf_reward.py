"""The shelf's rewards: cosines of pictures and captions, views included."""

import pytest
import shelf_nets
import torch

from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.rewards import JUDGES, REWARDS, load_reward
from splatgen.rewards import shelf as module
from splatgen.rewards.shelf import ShelfReward
from splatgen.worlds.shelf.grammar import parse
from splatgen.worlds.shelf.model import reward_tokens


def reward() -> ShelfReward:
    return ShelfReward(shelf_nets.net("reward"), "shelf")


def test_scores_are_cosines_of_each_picture_with_its_prompt():
    found, images = reward(), torch.rand(3, 3, 16, 16)
    prompts = ["a taxi", "a red couch, side view", "a taxi"]
    texts = found.net.embed_texts(reward_tokens([parse("a taxi"), parse("a red couch")], [None, "side"]))
    expected = (found.net.embed_images(images) * texts[[0, 1, 0]]).sum(-1)
    torch.testing.assert_close(found(images, prompts), expected)
    assert found(images, prompts).abs().max() <= 1 + 1e-6


def test_a_table_has_every_picture_with_every_prompt():
    found, images = reward(), torch.rand(3, 3, 24, 24)
    prompts = ["a taxi", "a cow, front view", "a frog on top of a crab"]
    table = found.table(images, prompts)
    for k, prompt in enumerate(prompts):
        torch.testing.assert_close(table[:, k], found(images, [prompt] * 3))


def test_gradients_reach_the_picture_and_synonyms_are_the_same_prompt():
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    found = reward()
    found(images, ["a sofa", "a couch"]).sum().backward()
    assert images.grad.abs().max() > 0
    same = torch.rand(1, 3, 16, 16).repeat(2, 1, 1, 1)
    a, b = found(same, ["a sofa", "a couch"])
    assert a == b


def test_what_it_cannot_read_is_refused_ahead():
    reward().prepare(["a taxi, front view", "a red cube on top of a blue sphere"])
    with pytest.raises(ValueError, match="'xyzzy'"):
        reward().prepare(["a xyzzy"])


def test_packaged_weights_or_a_line_that_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "weights_folder", lambda: tmp_path)
    for name in ("shelf", "shelf-judge"):
        with pytest.raises(WeightsError, match=r"safetensors is missing: .*shelf\.train"):
            load_reward(name, LoadOptions())
    shelf_nets.write(tmp_path, "reward", "judge")
    assert load_reward("shelf", LoadOptions()).name == "shelf"
    judge = load_reward("shelf-judge", LoadOptions())
    assert judge.name == "shelf-judge"
    assert (judge.mean, judge.spread) == (0.5, 0.25)
    (tmp_path / "judge.json").write_text((tmp_path / "judge.json").read_text().replace("score_mean", "mean"))
    with pytest.raises(WeightsError, match="does not say what scores are usual"):
        load_reward("shelf-judge", LoadOptions())


def test_the_judge_never_guides():
    assert "shelf" in REWARDS
    assert "shelf-judge" in JUDGES
    assert "shelf-judge" not in REWARDS
