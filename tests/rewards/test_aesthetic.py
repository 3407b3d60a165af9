"""The aesthetic predictors, their heads as published."""

from __future__ import annotations

import pytest
import torch
from tiny_clip import pictures, write_aesthetic
from transformers import CLIPModel

from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.rewards import load_reward
from splatgen.rewards.pictures import cropped, normalised

FILES = {"aesthetic": "sa_0_4_vit_l_14_linear.pth", "aesthetic-v2": "aesthetic-model.pth"}


@pytest.fixture
def weights(tmp_path):
    write_aesthetic(tmp_path)
    return tmp_path


def load(name, weights):
    return load_reward(name, LoadOptions(weights=str(weights)))


def embedding(folder, images):
    """Unit vectors by transformers."""
    with torch.no_grad():
        pixels = normalised(cropped(images, 28))
        found = CLIPModel.from_pretrained(folder).eval().get_image_features(pixel_values=pixels).pooler_output
    return found / found.norm(dim=-1, keepdim=True)


def test_v1_is_linear_in_the_unit_vector(weights):
    head = torch.load(weights / "aesthetic" / "head" / FILES["aesthetic"], weights_only=True)
    wanted = embedding(weights / "aesthetic", pictures()) @ head["weight"][0] + head["bias"]
    torch.testing.assert_close(load("aesthetic", weights)(pictures(), [""] * 3), wanted, atol=1e-5, rtol=1e-5)


def test_v2_is_its_five_layers_one_after_the_other(weights):
    head = torch.load(weights / "aesthetic-v2" / "head" / FILES["aesthetic-v2"], weights_only=True)
    wanted = embedding(weights / "aesthetic-v2", pictures())
    for n in (0, 2, 4, 6, 7):
        wanted = wanted @ head[f"layers.{n}.weight"].T + head[f"layers.{n}.bias"]
    found = load("aesthetic-v2", weights)(pictures(), [""] * 3)
    torch.testing.assert_close(found, wanted[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_prompts_are_ignored_however_long(weights, name):
    reward = load(name, weights)
    long = ["word " * 500] * 3
    reward.prepare(long)
    reward.release()
    assert torch.equal(reward(pictures(), long), reward(pictures(), ["a", "b", "c"]))


@pytest.mark.parametrize("name", FILES)
def test_pictures_of_another_scale_in_brightness_differ(weights, name):
    reward = load(name, weights)
    assert (reward(pictures(), [""] * 3) - reward(0.5 * pictures(), [""] * 3)).abs().min() > 1e-4


@pytest.mark.parametrize("name", FILES)
def test_the_head_of_another_predictor_is_refused(weights, name):
    (other,) = set(FILES) - {name}
    head = torch.load(weights / other / "head" / FILES[other], weights_only=True)
    torch.save(head, weights / name / "head" / FILES[name])
    with pytest.raises(WeightsError, match=FILES[name]):
        load(name, weights)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_head_is_named(weights, name):
    (weights / name / "head" / FILES[name]).unlink()
    with pytest.raises(WeightsError, match=f"{name} lacks {FILES[name]} in .*head"):
        load(name, weights)
