"""Every training resumes bit for bit, learns on what repeats, and leaves weights with a card."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import shelf_nets
import torch

from splatgen.worlds.prefetching import Prefetched
from splatgen.worlds.shelf import model, train
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.losses import drawn
from splatgen.worlds.shelf.recipes import RECIPES
from splatgen.worlds.training import learning_rate

CPU = torch.device("cpu")
STEPS = 4


def recipe(name, **change):
    small = {"net": shelf_nets.SIZES[name][1], "batch": 4, "steps": STEPS, "warmup": 2, "negatives": 2}
    return replace(RECIPES[name], **{**small, **change})


def trainer(name, folder, **change):
    if not (folder / "autoencoder.json").is_file():
        shelf_nets.write(folder, "autoencoder")
    return train.trainer(recipe(name, **change), CPU, folder)


@pytest.mark.parametrize("name", ["autoencoder", "prior", "reward"])
def test_stopping_and_resuming_equals_a_straight_run_bit_for_bit(tmp_path, name, shelf_of_boxes):
    straight = trainer(name, tmp_path)
    losses = [straight.update() for _ in range(STEPS)]
    first = trainer(name, tmp_path)
    halves = [first.update() for _ in range(STEPS // 2)]
    first.save(tmp_path / "work")
    torch.manual_seed(123)  # what happens in between doesn't matter
    second = trainer(name, tmp_path)
    second.resume(tmp_path / "work")
    halves += [second.update() for _ in range(STEPS // 2)]
    assert halves == losses
    for key, value in straight.averaged().items():
        assert torch.equal(value, second.averaged()[key]), key


@pytest.mark.parametrize("name", ["autoencoder", "prior", "reward"])
def test_the_loss_falls_on_a_batch_that_repeats(tmp_path, name, shelf_of_boxes):
    found = trainer(name, tmp_path, steps=100, lr=4e-3)
    losses = []
    for _ in range(25):
        losses.append(found.update())
        found.step = 1  # the same data and the same rate again
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@pytest.mark.parametrize("name", ["autoencoder", "reward"])
def test_training_leaves_weights_and_a_card(tmp_path, name, shelf_of_boxes, monkeypatch):
    monkeypatch.setattr("splatgen.worlds.shelf.figures.RELATIONS", 4)
    monkeypatch.setattr("splatgen.worlds.shelf.figures.BATCHES", 1)
    monkeypatch.setattr("splatgen.worlds.shelf.figures.USUAL", 2)
    given = recipe(name, steps=1)
    train.train(name, given, work=tmp_path / "work", out=tmp_path / "out", device=CPU)
    card = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert (card["kind"], card["steps"], card["images"]) == (shelf_nets.SIZES[name][0], 1, 4)
    assert card["command"] == f"python -m splatgen.worlds.shelf.train {name} --steps 1"
    files = [file for entry in card["models"].values() for file in entry["files"]]
    assert len(files) == len(catalogue().nouns)
    assert all(entry["licence"].startswith("CC0") for entry in card["models"].values())
    assert all(0 <= value <= 100 for value in card["held_out"].values() if value > 0)
    net = model.load_net(tmp_path / "out", name, card["kind"])
    assert card["parameters"] == sum(p.numel() for p in net.parameters())


def test_an_exported_autoencoder_has_standard_latents(tmp_path, shelf_of_boxes):
    given = recipe("autoencoder", steps=2, batch=16)
    train.train("autoencoder", given, work=tmp_path / "work", out=tmp_path, device=CPU)
    held = json.loads((tmp_path / "autoencoder.json").read_text())["held_out"]
    assert held["latent_mean"] == pytest.approx(0, abs=0.1)
    assert held["latent_deviation"] == pytest.approx(1, abs=0.1)


def test_a_prior_without_its_autoencoder_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"autoencoder.safetensors is missing: .*shelf.train autoencoder"):
        train.trainer(recipe("prior"), CPU, tmp_path)


def test_only_matrices_of_the_prior_decay():
    net = shelf_nets.net("prior")
    decaying = [name for name, p in net.named_parameters() if train.is_matrix(name, p)]
    assert any("to_q.weight" in name for name in decaying)
    assert not any("bias" in name or "norm" in name or "token_embedding" in name for name in decaying)


def test_a_training_starts_from_finished_weights(tmp_path, shelf_of_boxes):
    shelf_nets.write(tmp_path, "autoencoder", "prior")
    wanted = model.load_net(tmp_path, "prior", "prior").state_dict()
    warm = trainer("prior", tmp_path)
    warm.start_from(wanted)
    for name, value in warm.average.items():
        assert torch.equal(value, wanted[name])
        assert torch.equal(warm.names[name], wanted[name])


def test_pictures_that_processes_render_are_those_of_the_step(tmp_path, shelf_of_boxes):
    given = replace(recipe("prior"), batch=2)
    draw = partial(drawn, given, 64)
    ahead = Prefetched(draw, 2)
    for step in (0, 1, 2, 7, 8):  # in order, and from another step on
        assert all(map(torch.equal, ahead(step), draw(step)))


def test_processes_that_render_end_with_the_program(tmp_path, shelf_of_boxes):
    """Though nobody has told them to: the last batch is not the end of the steps."""
    code = (
        "from functools import partial\n"
        "from splatgen.worlds.prefetching import Prefetched\n"
        "from splatgen.worlds.shelf import losses, recipes\n"
        "if __name__ == '__main__':\n"
        "    ahead = Prefetched(partial(losses.drawn, recipes.RECIPES['autoencoder'], 16), 2)\n"
        "    print(len(ahead(3)))\n"
    )
    (tmp_path / "short.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "short.py"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_a_prior_learns_the_same_from_pictures_of_processes(tmp_path, shelf_of_boxes):
    shelf_nets.write(tmp_path, "autoencoder")
    losses = []
    for workers in (0, 2):
        found = train.trainer(recipe("prior", noises=3), CPU, tmp_path, workers)
        losses.append([float(found.update()) for _ in range(STEPS)])
    assert losses[0] == losses[1]


def test_a_training_of_seconds_ends_in_time_at_a_rate_of_nothing(tmp_path, shelf_of_boxes):
    given = recipe("prior", steps=10**6, seconds=3.0)
    shelf_nets.write(tmp_path, "autoencoder")
    train.train("prior", given, work=tmp_path / "work", out=tmp_path, device=CPU)
    card = json.loads((tmp_path / "prior.json").read_text())
    assert 0 < card["steps"] < 10**6
    assert card["training_seconds"] >= 3
    assert learning_rate(5, given, 1.5) == pytest.approx(given.lr)
    assert learning_rate(5, given, 3.0 - 3.0 * given.fall / 4) == pytest.approx(given.lr / 4)
    assert learning_rate(5, given, 3.0) == 0


def test_the_card_of_a_warm_training_says_what_it_began_with(tmp_path, shelf_of_boxes, monkeypatch):
    monkeypatch.setattr("splatgen.worlds.shelf.figures.BATCHES", 1)
    for n, warm in enumerate((False, True, True)):
        work = tmp_path / f"work{n}"
        train.train(
            "autoencoder", recipe("autoencoder", steps=1 + n), work=work, out=tmp_path, device=CPU, warm=warm
        )
    card = json.loads((tmp_path / "autoencoder.json").read_text())
    first = {"steps": 1, "images": 4, "device": "cpu"}
    assert (card["steps"], card["began_with"]) == (
        3,
        {"steps": 2, "images": 8, "device": "cpu", "began_with": first},
    )


def test_workers_that_would_do_nothing_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "autoencoder", "--workers", "2"])
    with pytest.raises(SystemExit):
        train.main()
    assert "renders in its own process" in capsys.readouterr().err
