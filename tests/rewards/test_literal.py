"""PickScore, the CLIP scores and both aesthetics against their formulas, written out without transformers."""

from __future__ import annotations

import pytest
import torch
from literal_clip import aesthetic, image_vectors, text_vector
from safetensors.torch import load_file
from tiny_clip import pictures, tokenizer, write_aesthetic, write_clip

from splatgen.models.budget import LoadOptions
from splatgen.rewards import load_reward
from splatgen.rewards.pictures import CLIP_MEAN, CLIP_STD

PROMPTS = ["a red cube", "cat", "a red cube"]
HEADS = {"aesthetic": "sa_0_4_vit_l_14_linear.pth", "aesthetic-v2": "aesthetic-model.pth"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name in ("clip", "clip-iqa", "pickscore"):
        write_clip(folder / name)
    write_aesthetic(folder)
    return folder


def literally(name, folder, images):
    t = {key: value.double() for key, value in load_file(folder / "model.safetensors").items()}
    mean, std = (torch.tensor(z, dtype=torch.float64)[:, None, None] for z in (CLIP_MEAN, CLIP_STD))
    seen = image_vectors(t, (images - mean) / std)
    if name in HEADS:
        head = torch.load(folder / "head" / HEADS[name], weights_only=True)
        return aesthetic({key: value.double() for key, value in head.items()}, seen)
    words = tokenizer(folder)
    if name == "clip-iqa":
        good, bad = (text_vector(t, torch.tensor(words(z).input_ids)) for z in ("Good photo.", "Bad photo."))
        return 1.0 / (1.0 + (100.0 * seen @ (bad - good)).exp())
    told = torch.stack([text_vector(t, torch.tensor(words(prompt).input_ids)) for prompt in PROMPTS])
    scale = t["logit_scale"].exp() if name == "pickscore" else 100.0
    return scale * (seen * told).sum(-1)


@pytest.mark.parametrize("name", ["clip", "clip-iqa", "pickscore", *HEADS])
def test_score_and_gradient_are_the_formulas(weights, name):
    reward = load_reward(name, LoadOptions(weights=str(weights)))
    reward.image_tower.double()
    if name in HEADS:
        reward.head.double()
    elif name != "clip-iqa":
        reward.text_tower.get().double()
    images = pictures(3, 28, 28).double().requires_grad_()
    most = 1e-5 if name == "clip-iqa" else 1e-8  # its texts were embedded in float32
    found, wanted = reward(images, PROMPTS), literally(name, weights / name, images)
    slope, slope_wanted = (torch.autograd.grad(z.sum(), images)[0] for z in (found, wanted))
    torch.testing.assert_close(found, wanted, rtol=most, atol=most)
    assert (slope - slope_wanted).norm() < most * slope_wanted.norm()
    assert wanted.std() > 1e-3 * wanted.abs().mean()
    assert (reward.name, reward.views) == (name, 1)
