"""Training resumes bit for bit and leaves weights with a card."""

import json
from dataclasses import replace

import pytest
import torch

from splatgen.worlds.toybox import losses, model, train
from splatgen.worlds.toybox.recipes import RECIPES
from splatgen.worlds.training import learning_rate

CPU = torch.device("cpu")
STEPS = 6


def recipe(name):
    small = {"batch": 4, "steps": STEPS, "warmup": 3}
    return replace(RECIPES[name], **small, negatives=3)


def weights(trainer):
    own = {name: p.detach().clone() for name, p in trainer.names.items()}
    return own, {name: p.clone() for name, p in trainer.average.items()}


@pytest.mark.parametrize("name", ["mini-prior", "mini-reward"])
def test_stopping_and_resuming_equals_a_straight_run_bit_for_bit(tmp_path, name):
    straight = train.trainer(recipe(name), CPU)
    losses = [straight.update() for _ in range(STEPS)]

    first = train.trainer(recipe(name), CPU)
    halves = [first.update() for _ in range(STEPS // 2)]
    first.save(tmp_path)
    torch.manual_seed(123)  # what happens in between doesn't matter
    second = train.trainer(recipe(name), CPU)
    second.resume(tmp_path)
    assert second.step == STEPS // 2
    halves += [second.update() for _ in range(STEPS - STEPS // 2)]

    assert halves == losses
    for a, b in zip(weights(second), weights(straight), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_the_loss_falls_on_a_batch_that_repeats():
    trainer = train.trainer(replace(recipe("mini-prior"), steps=40, lr=3e-3), CPU)
    losses = []
    for _ in range(12):
        losses.append(trainer.update())
        trainer.step = 0  # the same data and the same rate again
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_training_leaves_weights_and_a_card(tmp_path):
    given = replace(recipe("mini-prior"), steps=2)
    train.train("mini-prior", given, work=tmp_path / "work", out=tmp_path / "out", device=CPU)
    card = json.loads((tmp_path / "out" / "mini-prior.json").read_text())
    assert card["kind"] == "prior"
    assert (card["steps"], card["images"], card["device"]) == (2, 8, "cpu")
    assert card["recipe"]["batch"] == 4
    assert "net" not in card["recipe"]
    assert card["command"] == "python -m splatgen.worlds.toybox.train mini-prior --steps 2"
    net = model.load_net(tmp_path / "out", "mini-prior")
    assert net.config == given.net
    assert card["parameters"] == sum(p.numel() for p in net.parameters())

    resumed = train.trainer(given, CPU)
    resumed.resume(tmp_path / "work" / "mini-prior")
    assert resumed.step == 2
    for name, p in net.named_parameters():
        assert torch.equal(p, resumed.average[name].half().float()), name


def test_a_finished_training_goes_on_when_given_more_steps(tmp_path):
    for steps in (1, 2):
        given = replace(recipe("mini-reward"), steps=steps)
        train.train("mini-reward", given, work=tmp_path, out=tmp_path, device=CPU)
        card = json.loads((tmp_path / "mini-reward.json").read_text())
        assert card["steps"] == steps
    assert card["stages"] == [[0, 1], [1, 2]]
    assert set(card["held_out"]) == {"ranked_first_unseen", "ranked_first_seen"}


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1 / 10), (4, 1 / 2), (9, 1), (50, 1), (75, 1), (80, 0.8), (99, 0.04), (100, 0)]
)
def test_the_learning_rate_warms_up_stays_and_falls(step, factor):
    given = replace(RECIPES["prior"], steps=100, warmup=10, lr=2.0)
    assert learning_rate(step, given) == pytest.approx(2 * factor)


def test_a_step_sees_the_same_data_whoever_asks():
    losses = []
    for noise in (0, 1):
        trainer = train.trainer(recipe("mini-prior"), CPU)
        torch.manual_seed(noise)
        losses.append(trainer.loss(trainer.net, trainer.recipe, 5, CPU).item())
    assert losses[0] == losses[1]
    other = trainer.loss(trainer.net, trainer.recipe, 6, CPU).item()
    assert other != losses[0]


def test_degraded_pictures_stay_pictures():
    import random

    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        found = losses.degrade(images, random.Random(seed), generator)
        assert found.shape == images.shape
        assert found.min() >= 0
        assert found.max() <= 1
