"""Which prior a prompt gets where nobody chose one."""

import pytest

from splatgen.commands import compare, edit, generate, image, sweep
from splatgen.commands.common import embedded, usual
from splatgen.config import Config, from_dict

needs_shelf = pytest.mark.skipif(embedded.lacks("shelf"), reason="the shelf's weights are not there")


@needs_shelf
@pytest.mark.parametrize("prompt", ["a taxi", "a corgi", "a frog next to a barrel", "a red couch", "zzz"])
def test_things_are_the_shelfs(prompt):
    assert usual.preset([prompt], Config()) == "shelf"


@pytest.mark.parametrize("prompt", ["a red cube", "a blue sphere next to a cyan cone", "a yellow cone"])
def test_the_toyboxs_own_captions_stay_its_own(prompt):
    assert usual.preset([prompt], Config()) is None


def test_without_the_shelfs_weights_nothing_changes(monkeypatch):
    monkeypatch.setattr(embedded, "lacks", lambda prior: True)
    assert usual.preset(["a taxi"], Config()) is None


def test_a_gpu_with_weights_comes_first_and_not_where_the_cpu_was_asked_for(monkeypatch):
    monkeypatch.setattr(usual, "can_run", lambda preset, settings: True)
    assert usual.preset(["a taxi"], Config()) == "sd15-fast"
    assert usual.preset(["a red cube"], from_dict({"device": "cpu"})) is None


@needs_shelf
def test_what_is_chosen_on_the_command_line_stays():
    _, config = generate.read(["a taxi", "--steps", "7"])
    assert (config.prior, config.steps) == ("shelf", 7)
    _, config = generate.read(["a red cube", "--prior", "toybox-mini"])
    assert config.prior == "toybox-mini"


@needs_shelf
def test_one_thing_of_the_shelf_among_prompts_is_enough():
    assert usual.preset(["a red cube", "a taxi"], Config()) == "shelf"
    assert usual.preset(["a red cube", "a blue cone"], Config()) is None


@needs_shelf
def test_every_verb_starts_where_generate_does(tmp_path):
    made = image.read(["a taxi"]).settings
    assert (made.prior, made.image.space) == ("shelf", "latents")
    assert image.read(["a red cube"]).settings.prior == "toybox"
    assert image.read(["a red cube", "--source", "a taxi"]).settings.prior == "shelf"
    changed = edit.read(["splats.ply", "a couch -> a red couch"])
    assert (changed.settings.prior, changed.settings.steps) == ("shelf", edit.EditConfig.steps)
    assert edit.read(["splats.ply", "a couch -> a red couch", "--steps", "9"]).settings.steps == 9
    assert edit.read(["splats.ply", "a red cube -> a blue cube"]).settings.prior == "toybox"
    _, plan = compare.read(["a taxi", "--methods", "sds"])
    assert [(c.prior, c.stages) for c in plan.methods.values()] == [("shelf", ())]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cube\na taxi\n")
    _, plan = sweep.read([str(prompts), "--methods", "sds"])
    assert [c.prior for c in plan.methods.values()] == ["shelf"]
    prompts.write_text("a red cube\n")
    _, plan = sweep.read([str(prompts), "--methods", "sds"])
    assert [c.prior for c in plan.methods.values()] == ["toybox"]


@needs_shelf
def test_an_edit_of_a_run_knows_what_it_shows(tmp_path):
    (tmp_path / "config.json").write_text('{"prompt": "a couch"}')
    assert edit.read([str(tmp_path), "a red couch"]).settings.prior == "shelf"
    (tmp_path / "config.json").write_text('{"prompt": "a red cube"}')
    assert edit.read([str(tmp_path), "a blue cube"]).settings.prior == "toybox"


@needs_shelf
def test_an_edit_has_no_stages_however_few_its_steps(tmp_path):
    words = [
        "splats.ply",
        "a couch -> a red couch",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    config = edit.check(edit.read(words))
    assert (config.prior, config.steps, config.stages) == ("shelf", 2, ())
