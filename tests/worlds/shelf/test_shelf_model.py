"""The shelf's networks read their cards and words, see the camera, and their latents can be standardised."""

import json
import math

import pytest
import shelf_nets
import torch

from splatgen.models.weights import WeightsError
from splatgen.worlds.shelf import latents, model
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.grammar import parse
from splatgen.worlds.shelf.recipes import RECIPES


def test_folding_is_undone():
    x = torch.rand(2, 4, 16, 16)
    assert model.fold(x).shape == (2, 16, 8, 8)
    assert torch.equal(model.unfold(model.fold(x)), x)


def test_the_camera_is_told_in_waves():
    found = model.seen_from(torch.tensor([30.0]), torch.tensor([10.0])).double()
    a, e = math.radians(30), math.radians(10)
    waves = [f(k * a) for k in (1, 2, 3, 4) for f in (math.sin, math.cos)]
    expected = [1.0, *waves, math.sin(e), math.cos(e), math.sin(2 * e), math.cos(2 * e)]
    torch.testing.assert_close(found, torch.tensor([expected]).double(), atol=1e-6, rtol=0)
    assert found.shape[1] == model.CAMERA


def test_texts_are_tokens_in_the_catalogues_order():
    first, second = model.prior_tokens([parse("a red couch"), None]).tolist()
    words = catalogue().words
    assert first[:3] == [0, 2 + words.index("red"), 2 + words.index("couch")]
    assert set(first[3:]) == {1}
    assert second == [0] + [1] * 15
    (told,) = model.reward_tokens([parse("a taxi")], ["side"]).tolist()
    assert told[1:4] == [2 + model.reward_words().index(word) for word in ("taxi", "side", "view")]
    assert model.reward_words()[: len(words)] == words


def test_rewards_read_two_things_side_by_side_in_the_order_of_the_picture():
    left, right = parse("a cow next to a taxi"), parse("a taxi next to a cow")
    assert model.as_seen(left, "back") == right
    assert all(model.as_seen(left, view) == left for view in ("front", "side", "overhead", None))
    stacked, toys = parse("a cow on top of a taxi"), parse("a red cube next to a blue cone")
    assert model.as_seen(stacked, "back") == stacked
    assert str(model.as_seen(toys, "back")) == "a blue cone next to a red cube"


def test_the_prior_reads_text_camera_and_time():
    net = shelf_nets.net("prior")
    x, t = torch.randn(2, 8, 4, 4), torch.tensor([0.4, 0.4])
    states, pooled = net.encode_text(model.prior_tokens([parse("a taxi"), parse("a cow")]))
    front = model.seen_from(torch.zeros(2), torch.zeros(2))
    v = net(x, t, states, pooled, front)
    assert v.shape == x.shape
    for change in (
        net(x, t, states.flip(0), pooled.flip(0), front),
        net(x, t, states, pooled, model.seen_from(torch.full((2,), 90.0), torch.zeros(2))),
        net(x, t + 0.3, states, pooled, front),
    ):
        assert (change - v).abs().mean() > 1e-4


def test_the_packaged_sizes_fit_together_and_are_small():
    vae, prior = RECIPES["autoencoder"].net, RECIPES["prior"].net
    assert (vae.side, vae.latents) == (prior.side, prior.latents)
    sizes = {name: sum(p.numel() for p in make(RECIPES[name].net).parameters()) for name, make in (
        ("autoencoder", model.autoencoder), ("prior", model.PriorNet),
        ("reward", model.reward_net), ("judge", model.reward_net),
    )}  # fmt: skip
    assert 2 * sum(sizes.values()) < 40e6  # bytes on disk
    assert max(sizes["reward"], sizes["judge"]) < 1.2e6


def test_standardised_latents_have_mean_0_and_deviation_1_and_decode_to_the_same():
    net = shelf_nets.net("autoencoder").double()
    x = torch.rand(8, 16, 8, 8, dtype=torch.float64)
    z = net.encode(x).latent_dist.mean
    before = net.decode(z).sample
    latents.standardise(net, z.mean((0, 2, 3)), z.std((0, 2, 3)))
    found = net.encode(x).latent_dist.mean
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(8, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(net.decode(found).sample, before)


@pytest.mark.parametrize("name", shelf_nets.SIZES)
def test_weights_are_read_as_their_card_says(tmp_path, name):
    found = model.load_net(shelf_nets.write(tmp_path, name), name, shelf_nets.SIZES[name][0])
    for key, value in shelf_nets.net(name).state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, atol=1e-3, rtol=1e-3)
    assert not any(p.requires_grad for p in found.parameters())


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def card(**change):
    return lambda path: path.with_suffix(".json").write_text(
        json.dumps({**json.loads(path.with_suffix(".json").read_text()), **change})
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "prior.safetensors is missing: .*shelf.train prior"),
        (lambda path: path.with_suffix(".json").unlink(), "prior.json is missing"),
        (cut, "does not fit its card"),
        (lambda path: path.with_suffix(".json").write_text("{"), "does not fit its card"),
        (lambda path: path.with_suffix(".json").write_text("[1]"), "does not fit its card"),
        (card(config={"channels": [16, 48]}), "does not fit its card"),
        (card(config={"width": 3}), "does not fit its card"),
        (card(kind="reward"), "describes a reward, not a prior"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_in_a_line(tmp_path, spoil, said):
    spoil(shelf_nets.write(tmp_path, "prior") / "prior.safetensors")
    with pytest.raises(WeightsError, match=said) as raised:
        model.load_net(tmp_path, "prior", "prior")
    assert "\n" not in str(raised.value)
