"""Which prior a prompt gets where nobody chose one."""

import pytest

from splatgen.commands import generate
from splatgen.commands.common import embedded
from splatgen.config import Config, from_dict

needs_shelf = pytest.mark.skipif(embedded.lacks("shelf"), reason="the shelf's weights are not there")


@needs_shelf
@pytest.mark.parametrize("prompt", ["a taxi", "a corgi", "a frog next to a barrel", "a red couch", "zzz"])
def test_things_are_the_shelfs(prompt):
    assert generate.usual_preset(Config(prompt=prompt)) == "shelf"


@pytest.mark.parametrize("prompt", ["a red cube", "a blue sphere next to a cyan cone", "a yellow cone"])
def test_the_toyboxs_own_captions_stay_its_own(prompt):
    assert generate.usual_preset(Config(prompt=prompt)) is None


def test_without_the_shelfs_weights_nothing_changes(monkeypatch):
    monkeypatch.setattr(embedded, "lacks", lambda prior: True)
    assert generate.usual_preset(Config(prompt="a taxi")) is None


def test_a_gpu_with_weights_comes_first_and_not_where_the_cpu_was_asked_for(monkeypatch):
    monkeypatch.setattr(generate, "can_run", lambda preset, settings: True)
    assert generate.usual_preset(Config(prompt="a taxi")) == "sd15-fast"
    assert generate.usual_preset(from_dict({"prompt": "a red cube", "device": "cpu"})) is None


@needs_shelf
def test_what_is_chosen_on_the_command_line_stays():
    _, config = generate.read(["a taxi", "--steps", "7"])
    assert (config.prior, config.steps) == ("shelf", 7)
    _, config = generate.read(["a red cube", "--prior", "toybox-mini"])
    assert config.prior == "toybox-mini"
