"""`splatgen words`, and prompts of the shelf before anything is loaded."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from splatgen.commands.common import embedded
from splatgen.config import Config
from splatgen.worlds.shelf.catalogue import catalogue


def test_everything_known_is_listed(cli):
    found = cli("words")
    assert found.code == 0
    text = " ".join(found.out.split())
    for noun in catalogue().nouns:
        assert noun in text
    assert "animals (" in text
    assert "couch*" in text
    assert "taxi*" not in text
    assert "torus" in text


def test_a_group_as_json(cli):
    data = json.loads(cli("words", "--group", "food", "--json").out)
    assert {thing["group"] for thing in data["things"]} == {"food"}
    assert "pumpkin" in [thing["name"] for thing in data["things"]]
    assert data["relations"] == ["on top of", "next to"]


def test_a_sheet_of_pictures(cli, tmp_path):
    path = tmp_path / "sheet.png"
    found = cli("words", "--group", "animals", "--pictures", path)
    assert (found.code, found.out.strip()) == (0, str(path))
    with Image.open(path) as sheet:
        assert sheet.width > sheet.height > 100
        assert len(sheet.getcolors(1 << 20)) > 500


def test_words_are_looked_up(cli):
    found = cli("words", "sofa", "a corgi below a couch", "xyzzy")
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0] == "sofa: a couch"
    assert lines[1].startswith("a corgi below a couch: the shelf does not know 'corgi'; the nearest")
    assert lines[1].endswith("'a couch on top of a dog'")
    assert lines[2].endswith("`splatgen words` lists what it knows")
    data = json.loads(cli("words", "sofa", "corgi", "--json").out)["prompts"]
    assert [entry["means"] for entry in data] == ["a couch", None]
    assert [entry["nearest"] for entry in data] == [None, "a dog"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("corgi", "--group", "animals"), "leave out --group"),
        (("--group", "animal"), "did you mean 'animals'?"),
        (("--pictures", "sheet.jpg"), "give a file that ends in .png"),
        (("--pictures", "/nowhere/sheet.png"), "no such folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(cli, words, said):
    found = cli("words", *words)
    assert found.code != 0
    assert said in found.err
    assert found.err.count("\n") == 1


def test_a_prompt_of_the_shelf_is_checked_before_anything_is_loaded(cli):
    found = cli("generate", "a shiny old taxi", "--prior", "shelf", "--device", "cpu")
    assert found.code == 2
    assert "does not know 'shiny', 'old'; the nearest prompt it can do is 'a taxi'" in found.err
    nothing = cli("generate", "a xyzzy", "--prior", "shelf", "--device", "cpu", "--force")
    assert nothing.code == 2
    assert "splatgen words" in nothing.err


@pytest.mark.parametrize(
    ("prompt", "prior", "advice"),
    [
        ("a taxi", "toybox", "The shelf knows it: --prior shelf"),
        ("a xyzzy", "toybox", "Free prompts need a larger prior"),
    ],
)
def test_a_world_that_knows_the_prompt_is_named(cli, tmp_path, prompt, prior, advice):
    found = cli("image", prompt, "--prior", prior, "--device", "cpu", "--steps", "1", "--out", str(tmp_path))
    assert found.code == 2
    assert advice in found.err


def test_who_has_read_enough_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m splatgen words --json | head -c 1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable=shutil.which("bash"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) in {("{141\n", ""), ("{0\n", "")}  # a pipe may hold all of it


def test_pixels_have_no_coverage(cli):
    found = cli("image", "a taxi", "--prior", "shelf", "--image.space", "pixels", "--device", "cpu")
    assert found.code == 2
    assert "--image.space latents" in found.err


def test_worlds_concern_those_who_use_them():
    names = [world.name for world in embedded.concerned(Config(prompt="a taxi", prior="shelf"))]
    assert names == ["shelf"]
    both = Config(prompt="a red cube", prior="shelf", holdout_reward=("toybox-judge",))
    assert [world.name for world in embedded.concerned(both)] == ["toybox", "shelf"]
    assert embedded.concerned(Config(prompt="a corgi", prior="sd15", reward=())) == []
    assert Config(prompt="a taxi", prior="shelf").rewards() == {"shelf": 1.0}
    for world in embedded.WORLDS:
        assert all(world.parse(text) for text in world.examples)
