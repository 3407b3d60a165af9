"""The trainable copy of the embedded miniature: the prior itself until it is trained, and never the prior."""

import pytest
import torch
from analytic import moment

from splatgen.config import GuidanceOptions, PriorOptions, VSDOptions
from splatgen.guidance.distillation import gradient
from splatgen.guidance.preferences import NoPreference
from splatgen.guidance.scores import VSD
from splatgen.models.budget import LoadOptions
from splatgen.priors import load_prior
from splatgen.runs.packing import pack, unpack
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable

CAMERAS = turntable(2, size=16)
T = torch.tensor([0.3, 0.8])
ONES = torch.ones(2)


@pytest.fixture
def prior():
    return load_prior("toybox-mini", PriorOptions(), LoadOptions())


def picture(purpose="x"):
    return torch.randn(2, 3, 16, 16, generator=rng(0, 0, purpose))


def make(prior, rank=4, seed=0):
    return prior.adapter(rank, rng(seed, 0, "lora"))


def told_of(prior):
    return prior.embed(["a red cube, front view", "a red cube, back view"])


def itself(prior):
    with torch.no_grad():
        return prior.predict(picture(), T, told_of(prior), CAMERAS)


def copy(prior, adapter, cameras=CAMERAS, told=ONES):
    with torch.no_grad(), adapter.enabled():
        return adapter.predict(picture(), T, told_of(prior), cameras, told)


def train(prior, score, steps=4, first=0, renders=None):
    """Steps of VSD on renders that stay; returns the losses."""
    x = picture("render").tanh() if renders is None else renders
    options = GuidanceOptions(scale=3.0, clamp=False)
    losses = []
    for step in range(first, first + steps):
        at = moment(prior, x, T, cameras=CAMERAS, options=options, prompt="a red cube", step=step)
        losses.append(gradient(at, score, NoPreference(), None).metrics["score/lora_loss"])
    return losses


def values(adapter):
    return {name: p.detach().clone() for name, p in adapter.parameters().items()}


def test_an_untrained_copy_is_the_prior(prior):
    before = itself(prior)
    adapter = make(prior)
    assert torch.equal(copy(prior, adapter), before)
    assert torch.equal(copy(prior, adapter, told=torch.zeros(2)), before)


def test_the_prior_stays_itself_whatever_the_copy_learns(prior):
    before = itself(prior)
    frozen = {name: value.clone() for name, value in prior.net.state_dict().items()}
    score = VSD(VSDOptions(lr=0.02), prior, seed=0)
    assert torch.equal(itself(prior), before)
    train(prior, score)
    assert torch.equal(itself(prior), before)
    assert not torch.allclose(copy(prior, score.adapter), before, atol=1e-3)
    now = {  # a layer that is wrapped has another name
        name.replace(".base_layer.", "."): value
        for name, value in prior.net.state_dict().items()
        if ".vsd." not in name
    }
    assert now.keys() == frozen.keys()
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


def test_only_the_copys_own_parameters_are_trained(prior):
    score = VSD(VSDOptions(lr=0.02), prior, seed=0)
    before = values(score.adapter)
    train(prior, score, steps=2)  # in the first, what multiplies a zero has no gradient yet
    assert all(p.grad is None for p in prior.net.parameters())
    after = values(score.adapter)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"camera.linear_1.weight", "camera.linear_2.weight"} < moved
    assert any("lora_A" in name for name in moved)
    assert {name for name in before if "lora_B" in name} <= moved


def test_the_prior_cannot_be_asked_while_the_copy_is_on(prior):
    adapter = make(prior)
    with adapter.enabled(), pytest.raises(RuntimeError, match="call the adapter's predict"):
        prior.predict(picture(), T, told_of(prior), CAMERAS)
    itself(prior)


def test_an_error_inside_switches_the_copy_off_again(prior):
    before, adapter = itself(prior), make(prior)
    with pytest.raises(KeyError, match="stop"), adapter.enabled():
        raise KeyError("stop")
    assert torch.equal(itself(prior), before)


def test_the_beginning_depends_on_the_generator_alone_and_moves_no_other(prior):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = values(make(prior))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = values(make(prior)), values(make(prior, seed=1))
    assert first.keys() == second.keys() == other.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    free = [name for name in first if "lora_A" in name or "camera.linear_1" in name]
    assert free
    assert not any(torch.equal(first[name], other[name]) for name in free)
    zero = [name for name in first if "lora_B" in name or "camera.linear_2" in name]
    assert set(free) | set(zero) == set(first)
    assert not any(first[name].any() for name in zero)


@pytest.mark.parametrize("ranks", [(4, 4), (4, 2)])
def test_a_new_copy_replaces_the_one_before(prior, ranks):
    before = itself(prior)
    old = VSD(VSDOptions(rank=ranks[0], lr=0.05), prior, seed=0)
    train(prior, old, steps=2)
    new = make(prior, rank=ranks[1])
    assert torch.equal(copy(prior, new), before)
    assert torch.equal(itself(prior), before)
    lora = [p for name, p in new.parameters().items() if "lora" in name]
    assert len(lora) == sum("lora" in name for name, _ in prior.net.named_parameters())
    assert all(min(p.shape) <= ranks[1] for p in lora)


def test_the_camera_tells_only_where_it_may(prior):
    score = VSD(VSDOptions(lr=0.05, camera_dropout=0.0), prior, seed=0)
    train(prior, score, steps=6)
    elsewhere = CAMERAS[torch.tensor([1, 0])]
    here = copy(prior, score.adapter)
    # the miniature itself sees the cameras, too: compare with and without the copy's own embedding
    untold, untold_there = (
        copy(prior, score.adapter, cameras=c, told=torch.zeros(2)) for c in (CAMERAS, elsewhere)
    )
    there = copy(prior, score.adapter, cameras=elsewhere)
    assert not torch.allclose(here, untold, atol=1e-4)
    assert not torch.allclose(here - untold, there - untold_there, atol=1e-4)
    half = copy(prior, score.adapter, told=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(half[0], here[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half[1], untold[1], rtol=1e-4, atol=1e-5)


def test_the_loss_falls_on_renders_that_stay(prior):
    score = VSD(VSDOptions(lr=0.02), prior, seed=0)
    train(prior, score, steps=12)
    fresh = load_prior("toybox-mini", PriorOptions(), LoadOptions())
    untrained = train(fresh, VSD(VSDOptions(lr=0.0), fresh, seed=0), steps=6, first=12)
    trained = train(prior, score, steps=6, first=12)  # the same times and noises
    print(f"loss {sum(untrained):.3f} -> {sum(trained):.3f}")
    assert sum(trained) < 0.8 * sum(untrained)


def test_the_copy_survives_a_resume_bit_for_bit(prior):
    score = VSD(VSDOptions(lr=0.02), prior, seed=0)
    train(prior, score, steps=3)
    tensors, rest = pack(score.state_dict())
    tensors = {name: value.clone() for name, value in tensors.items()}
    whole = train(prior, score, steps=2, first=3), values(score.adapter)
    fresh = load_prior("toybox-mini", PriorOptions(), LoadOptions())
    again = VSD(VSDOptions(lr=0.02), fresh, seed=0)
    again.load_state_dict(unpack(tensors, rest))
    assert train(fresh, again, steps=2, first=3) == whole[0]
    now = values(again.adapter)
    assert all(torch.equal(now[name], value) for name, value in whole[1].items())
