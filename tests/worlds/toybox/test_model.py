"""The networks: shapes, batches, exact conversions, differentiability, and the packaged weights."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.config import PriorOptions
from splatgen.models.budget import LoadOptions
from splatgen.priors import load_prior
from splatgen.priors.toybox import ToyboxPrior
from splatgen.rewards import load_reward
from splatgen.rewards.toybox import ToyboxReward
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable
from splatgen.worlds import towers
from splatgen.worlds.toybox import model, weights_folder
from splatgen.worlds.toybox.grammar import all_captions, parse
from splatgen.worlds.toybox.recipes import RECIPES
from splatgen.worlds.toybox.sampling import with_view
from splatgen.worlds.toybox.world import ground_truth

SMALL = model.PriorConfig(size=16, channels=(8, 16), text_width=16, text_layers=1, heads=2)
TINY = towers.RewardConfig(size=16, channels=(8, 16), embed=8, text_width=16, text_layers=1, heads=2)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return model.PriorNet(SMALL).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def reward_net():
    torch.manual_seed(0)
    return model.reward_net(TINY).eval().requires_grad_(False)


def noise(purpose, *shape):
    return torch.randn(shape, generator=rng(0, 0, purpose))


# Tokens


def test_every_caption_with_every_view_fits():
    texts = [with_view(str(caption), "overhead") for caption in all_captions()]
    tokens = model.tokenize(texts)
    assert tokens.shape == (len(texts), towers.MAX_TOKENS)
    assert tokens.min() == 0
    assert tokens.max() < len(towers.SPECIAL) + len(model.vocabulary())
    assert (tokens[:, 0] == 0).all()
    assert (tokens[:, -1] == 1).all()  # an end, where the pooled state is read
    assert len(torch.unique(tokens, dim=0)) == len(texts)


def test_tokens_are_words_in_order_between_start_and_end():
    (row,) = model.tokenize(["a red, cube"]).tolist()
    words = (*towers.SPECIAL, *model.vocabulary())
    assert [words[n] for n in row[:5]] == ["<start>", "a", "red", "cube", "<end>"]
    assert set(row[4:]) == {1}
    assert model.tokenize([""]).tolist() == [[0] + [1] * (towers.MAX_TOKENS - 1)]


@pytest.mark.parametrize("text", ["a corgi", "A red cube", "a red ball", "an orange cube"])
def test_only_canonical_words_have_tokens(text):
    with pytest.raises(ValueError, match="tokenizer does not know"):
        model.tokenize(["a red cube", text])


def test_the_longest_text_has_14_words():
    assert model.tokenize(["a " * 14]).shape == (1, 16)
    with pytest.raises(ValueError, match="takes 14 words, got 15"):
        model.tokenize(["a " * 15])


# Cameras


@settings(deadline=None, max_examples=30)
@given(st.floats(-360, 360), st.floats(-90, 90), st.integers(-2, 2))
def test_camera_features_are_periodic_and_never_those_of_no_camera(azimuth, elevation, turns):
    a, e = torch.tensor([azimuth], dtype=torch.float64), torch.tensor([elevation], dtype=torch.float64)
    found = model.camera_features(a, e)
    assert found.shape == (1, model.CAMERA_FEATURES)
    torch.testing.assert_close(found, model.camera_features(a + 360 * turns, e), atol=1e-9, rtol=0)
    assert found[0, 0] == 1
    assert found.abs().max() <= 1


def test_camera_features_tell_directions_apart():
    azimuth = torch.arange(0, 360, 5.0)
    found = model.camera_features(azimuth, torch.zeros_like(azimuth))
    distance = torch.cdist(found, found) + 9 * torch.eye(len(azimuth))
    assert distance.min() > 0.1


# The prior


@pytest.mark.parametrize("size", [16, 32])
def test_the_prior_predicts_an_image(net, size):
    states, pooled = net.encode_text(model.tokenize(["a red cube", "", "a blue cone back view"]))
    assert states.shape == (3, towers.MAX_TOKENS, 16)
    assert pooled.shape == (3, 16)
    v = net(
        noise("x", 3, 3, size, size), torch.rand(3), states, pooled, torch.zeros(3, model.CAMERA_FEATURES)
    )
    assert v.shape == (3, 3, size, size)
    assert v.isfinite().all()


def test_a_batch_equals_single_calls(net):
    prior = ToyboxPrior(net, name="test", camera=True)
    condition = prior.embed(["a red cube, front view", "", "a blue cone"])
    x, t, cameras = noise("x", 3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9]), turntable(3, size=16)
    batch = prior.predict(x, t, condition, cameras)
    for n in range(3):
        one = slice(n, n + 1)
        alone = prior.predict(x[one], t[one], {k: v[one] for k, v in condition.items()}, cameras[one])
        torch.testing.assert_close(batch[one], alone, atol=1e-5, rtol=1e-5)


def test_text_time_and_camera_reach_the_prediction(net):
    prior = ToyboxPrior(net, name="test", camera=True)
    x, cameras = noise("x", 1, 3, 16, 16), turntable(4, size=16)

    def predict(text="a red cube", t=0.5, view=0, camera=True):
        prior.camera = camera
        return prior.predict(x, torch.tensor([t]), prior.embed([text]), cameras[view : view + 1])

    plain = predict()
    assert torch.equal(plain, predict())
    for other in (predict(text="a blue cube"), predict(t=0.6), predict(view=1), predict(camera=False)):
        assert not torch.allclose(plain, other, atol=1e-6)
    assert torch.equal(predict(camera=False), predict(camera=False, view=2))


@pytest.mark.parametrize("t", [0.02, 0.5, 0.98])
def test_noise_and_image_follow_from_v_exactly(net, t):
    """v = alpha eps - sigma x0 and x_t = alpha x0 + sigma eps, both ways (Salimans and Ho 2022)."""
    prior = ToyboxPrior(net, name="test", camera=True)
    condition, cameras = prior.embed(["a red cube"]), turntable(1, size=16)
    times = torch.tensor([t])
    x_t = noise("x", 1, 3, 16, 16)
    seen = model.camera_features(cameras.azimuth, cameras.elevation)
    v = net(x_t, times, condition["states"], condition["pooled"], seen).double()
    alpha, sigma = prior.alpha_sigma(times.double())
    assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=1e-12)
    eps, x0 = prior.predict(x_t, times, condition, cameras).double(), alpha * x_t - sigma * v
    torch.testing.assert_close(alpha * x0 + sigma * eps, x_t.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(alpha * eps - sigma * x0, v, atol=1e-5, rtol=0)


def test_the_schedule_is_a_quarter_of_a_cosine(net):
    alpha, sigma = ToyboxPrior(net, name="test", camera=True).alpha_sigma(torch.tensor([0.0, 1 / 3, 1.0]))
    assert alpha.flatten().tolist() == pytest.approx([1, math.cos(math.pi / 6), 0], abs=1e-6)
    assert sigma.flatten().tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)


def test_encoding_averages_and_decoding_undoes_it(net):
    prior = ToyboxPrior(net, name="test", camera=True)
    images = torch.rand(2, 3, 32, 32, generator=rng(0, 0, "images"))
    x = prior.encode(images)
    assert x.shape == (2, 3, 16, 16)
    blocks = images.view(2, 3, 16, 2, 16, 2).mean((3, 5))
    torch.testing.assert_close(prior.decode(x), blocks)
    assert torch.equal(prior.encode(blocks), 2 * blocks - 1)
    assert prior.encode(torch.rand(1, 3, 24, 40)).shape == (1, 3, 16, 16)
    assert prior.decode(torch.full((1, 3, 4, 4), 9.0)).max() == 1


@pytest.mark.parametrize("side", [16, 32, 24])
def test_encoding_is_differentiable(net, side):
    prior = ToyboxPrior(net, name="test", camera=True)
    images = torch.rand(1, 3, side, side, generator=rng(0, 0, "images")).requires_grad_()
    prior.encode(images).sum().backward()
    assert images.grad.sum() == pytest.approx(2 * 3 * 16 * 16, rel=1e-3)
    assert (images.grad > 0).all()


def test_prompts_are_read_by_the_grammar(net):
    prior = ToyboxPrior(net, name="test", camera=True)
    a = prior.embed(["An orange BALL, back view", "  "])
    tokens = model.tokenize(["a orange sphere back view", ""])
    states, pooled = net.encode_text(tokens)
    torch.testing.assert_close(a["states"], states)
    torch.testing.assert_close(a["pooled"], pooled)
    with pytest.raises(ValueError, match="does not know 'corgi'"):
        prior.embed(["a corgi"])


# The reward


def test_scores_are_cosines_of_unit_vectors(reward_net):
    reward = ToyboxReward(reward_net, "test")
    images = torch.rand(4, 3, 16, 16, generator=rng(0, 0, "images"))
    prompts = ["a red cube", "a blue ball, back view", "a red cube", "a red cube next to a blue cone"]
    scores = reward(images, prompts)
    assert scores.shape == (4,)
    assert scores.abs().max() <= 1 + 1e-6
    picture = reward_net.embed_images(images)
    torch.testing.assert_close(picture.norm(dim=-1), torch.ones(4))
    tokens = model.tokenize(
        ["a red cube", "a blue sphere back view", "a red cube", "a red cube next to a blue cone"]
    )
    torch.testing.assert_close(scores, (picture * reward_net.embed_texts(tokens)).sum(-1))
    for n in range(4):
        torch.testing.assert_close(
            reward(images[n : n + 1], prompts[n : n + 1]), scores[n : n + 1], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("side", [16, 24])
def test_the_reward_is_differentiable_with_respect_to_images(side):
    """Against central differences along random directions, in float64."""
    torch.manual_seed(0)
    reward = ToyboxReward(model.reward_net(TINY).double().eval().requires_grad_(False), "test")
    images = torch.rand(2, 3, side, side, generator=rng(0, 0, "images")).double().requires_grad_()
    prompts = ["a red cube", "a blue cone, back view"]
    (gradient,) = torch.autograd.grad(reward(images, prompts).sum(), images)
    assert gradient.abs().sum() > 0
    for n in range(4):
        direction, h = noise(f"direction {n}", *images.shape).double(), 1e-5
        with torch.no_grad():
            up, down = (reward(images + s * h * direction, prompts).sum() for s in (1, -1))
        torch.testing.assert_close((up - down) / (2 * h), (gradient * direction).sum(), rtol=1e-6, atol=1e-9)


def test_larger_images_are_averaged_down(reward_net):
    images = torch.rand(1, 3, 16, 16, generator=rng(0, 0, "images"))
    large = images.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert reward_net.embed_images(large).shape == (1, 8)
    flat = torch.full((1, 3, 64, 64), 0.3)
    torch.testing.assert_close(reward_net.embed_images(flat), reward_net.embed_images(flat[..., :16, :16]))


# Weights


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_packaged_weights_are_what_their_recipe_says(name):
    found = model.load_net(weights_folder(), name)
    assert found.config == RECIPES[name].net
    assert not any(p.requires_grad for p in found.parameters())
    assert all(p.isfinite().all() for p in found.parameters())


def test_the_packaged_weights_are_small():
    sizes = {path.stem: path.stat().st_size for path in weights_folder().glob("*.safetensors")}
    assert sizes["mini-prior"] + sizes["mini-reward"] < 1.5e6
    assert sum(sizes.values()) < 30e6


def test_the_tables_load_the_miniatures():
    prior = load_prior("toybox-mini", PriorOptions(camera=False), LoadOptions())
    assert (prior.name, prior.resolution, prior.views, prior.camera) == ("toybox-mini", 16, 1, False)
    reward = load_reward("toybox-mini", LoadOptions())
    picture = ground_truth(parse("a red cube"), turntable(2, size=64), torch.ones(3)).rgb
    assert reward(picture, ["a red cube"] * 2).shape == (2,)


@pytest.mark.parametrize(
    "load", [lambda n: load_prior(n, PriorOptions(), LoadOptions()), lambda n: load_reward(n, LoadOptions())]
)
def test_names_outside_the_tables_are_refused_with_the_nearest(load):
    with pytest.raises(ValueError, match="did you mean 'toybox-mini'"):
        load("toybox-mimi")
    with pytest.raises(ValueError, match="there are: toybox, toybox-mini"):
        load("qqq")


def test_missing_weights_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m splatgen\.worlds\.toybox\.train mini-prior"):
        load_prior("toybox-mini", PriorOptions(model=str(tmp_path)), LoadOptions())


def package(net, folder, name, kind, config):
    from safetensors.torch import save_file

    save_file(
        {key: value.contiguous() for key, value in net.state_dict().items()}, folder / f"{name}.safetensors"
    )
    card = {"kind": kind, "config": model.config_json(config)}
    (folder / f"{name}.json").write_text(json.dumps(card))


def test_weights_in_a_folder_of_the_users(net, reward_net, tmp_path):
    package(net, tmp_path, "mini-prior", "prior", SMALL)
    prior = load_prior("toybox-mini", PriorOptions(model=str(tmp_path)), LoadOptions())
    assert all(torch.equal(a, b) for a, b in zip(prior.net.parameters(), net.parameters(), strict=True))
    package(reward_net, tmp_path, "mini-prior", "reward", TINY)
    with pytest.raises(ValueError, match="describes a reward model"):
        load_prior("toybox-mini", PriorOptions(model=str(tmp_path)), LoadOptions())
    package(net, tmp_path, "mini-prior", "reward", TINY)
    with pytest.raises(ValueError, match=r"mini-prior\.safetensors does not fit its card"):
        load_prior("toybox-mini", PriorOptions(model=str(tmp_path)), LoadOptions())
