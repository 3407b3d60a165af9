"""Both Reward3Ds on files as they are published, with few weights."""

from __future__ import annotations

import pytest
import tiny_blip
import torch
from torch.nn.functional import linear

from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.rewards import REWARDS, load_reward
from splatgen.runs.rng import rng

FILES = {
    "reward3d": ("Reward3D_Scorer.pt", tiny_blip.scorer()),
    "reward3d-fusion": ("Reward3D_CrossViewFusion.pt", tiny_blip.fusion()),
}
PROMPTS = [f"a red cube, {word} view" for word in ("front", "side", "back", "side")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, (file, more) in FILES.items():
        tiny_blip.save_reward3d(folder, name, file, more)
    return folder


@pytest.fixture(scope="module")
def rewards(weights):
    return {name: load_reward(name, LoadOptions(weights=str(weights))) for name in FILES}


def pictures(count=4, dtype=torch.float32):
    noise = torch.rand(count, 3, 16, 16, generator=rng(0, 0, "pictures"), dtype=torch.float64)
    return (0.3 + 0.4 * noise).to(dtype)


def tensors_of(weights, name):
    return torch.load(weights / name / FILES[name][0], weights_only=True)


def affine(tensors, name, x):
    return linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def first_tokens(reward, images, prompts):
    """[G, 4, D], as the tests of ImageReward show them to be right."""
    seen = []
    reward.network.blip.register_forward_hook(lambda module, given, found: seen.append(found))
    with torch.no_grad():
        scores = reward(images, prompts)
    reward.network.blip._forward_hooks.clear()
    return seen[0].unflatten(0, (-1, 4)), scores


def test_the_scorer_reads_128_numbers_of_each_view_in_order(weights, rewards):
    tensors = tensors_of(weights, "reward3d")
    first, scores = first_tokens(rewards["reward3d"], pictures(8), PROMPTS * 2)
    x = affine(tensors, "mlp.layers.2", affine(tensors, "mlp.layers.0", first)).flatten(1)
    for layer in ("fc1", "fc2", "fc3"):
        x = affine(tensors, f"Scorer.{layer}", x)
    expected = (x[:, 0] - 0.16717362830052426) / 1.0333394966054072
    assert torch.allclose(scores, expected.repeat_interleave(4), atol=1e-5)
    assert expected.std() > 1e-4


def test_the_fusion_attends_across_views_and_takes_the_mean(weights, rewards):
    """Attention with two heads of 64, a gate between what a view was and what it saw, ImageReward's head."""
    tensors = tensors_of(weights, "reward3d-fusion")
    first, scores = first_tokens(rewards["reward3d-fusion"], pictures(8), PROMPTS * 2)
    adapter = "cross_view_adapter"
    qkv = linear(
        first, tensors[f"{adapter}.self_attn.in_proj_weight"], tensors[f"{adapter}.self_attn.in_proj_bias"]
    )
    q, k, v = (part.unflatten(-1, (2, 64)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    mixed = ((q @ k.transpose(-1, -2)) / 8.0).softmax(-1) @ v
    seen = affine(tensors, f"{adapter}.self_attn.out_proj", mixed.transpose(1, 2).flatten(2))
    gate = affine(tensors, f"{adapter}.fusion_gate.0", torch.cat([first, seen], dim=-1)).sigmoid()
    x = (gate * seen + (1 - gate) * first).mean(1)
    for n in (0, 2, 4, 6, 7):
        x = affine(tensors, f"mlp.layers.{n}", x)
    expected = (x[:, 0] - 0.16717362830052426) / 5.0
    assert torch.allclose(scores, expected.repeat_interleave(4), atol=1e-5)
    assert expected.std() > 1e-4


@pytest.mark.parametrize("name", FILES)
def test_four_views_share_a_score_that_all_of_them_move(rewards, name):
    images = pictures(8).requires_grad_()
    scores = rewards[name](images, PROMPTS * 2)
    assert scores.shape == (8,)
    assert torch.equal(scores[:4], scores[:1].expand(4))
    scores[0].backward()
    size = images.grad.abs().amax((1, 2, 3))
    assert size[:4].min() > 1e-6
    assert not size[4:].any()


@pytest.mark.parametrize(("name", "matters"), [("reward3d", True), ("reward3d-fusion", False)])
def test_the_order_of_views_matters_to_the_scorer_alone(rewards, name, matters):
    images, turned = pictures(), [1, 2, 3, 0]
    with torch.no_grad():
        usual = rewards[name](images, PROMPTS)
        other = rewards[name](images[turned], [PROMPTS[n] for n in turned])
    assert torch.allclose(usual, other, atol=1e-5) != matters


@pytest.mark.parametrize("name", FILES)
def test_gradients_are_those_of_finite_differences(weights, name):
    reward = load_reward(name, LoadOptions(weights=str(weights)))
    reward.network.double()
    images = pictures(dtype=torch.float64).requires_grad_()
    direction = torch.randn(images.shape, generator=rng(0, 0, "direction"), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS)[0], images)
    with torch.no_grad():
        up, down = (reward(images + h * direction, PROMPTS)[0] for h in (1e-5, -1e-5))
    assert float((gradient * direction).sum()) == pytest.approx(float((up - down) / 2e-5), rel=1e-6)


@pytest.mark.parametrize("name", FILES)
def test_prompts_become_100_tokens(rewards, name):
    ids, mask = rewards[name]._words([" ".join(["a"] * 98)])
    assert ids.shape == (1, 100)
    assert mask.all()
    with pytest.warns(UserWarning, match=f"{name} reads 98 tokens.*'red'"):
        rewards[name].prepare([" ".join(["a"] * 98 + ["red"])])


def test_views_that_make_no_whole_object_are_refused(rewards):
    with pytest.raises(ValueError, match="judges 4 views at once and got 3"):
        rewards["reward3d"](pictures(3), PROMPTS[:3])


def test_the_table_knows_how_many_views_they_judge(rewards):
    for name, reward in rewards.items():
        assert reward.name == name
        assert reward.views == REWARDS[name].views == 4


def test_one_variant_is_not_taken_for_the_other(tmp_path):
    tiny_blip.save_reward3d(tmp_path, "reward3d", "Reward3D_Scorer.pt", tiny_blip.fusion())
    with pytest.raises(WeightsError, match=r"lacks scorer\.fc1"):
        load_reward("reward3d", LoadOptions(weights=str(tmp_path)))
