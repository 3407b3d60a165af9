"""`splatgen edit`: what it reads, what it refuses before a model is loaded, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from splatgen import formats
from splatgen.commands import edit, generate
from splatgen.commands.common import arguments
from splatgen.commands.common.errors import Failure
from splatgen.loop import object_run
from splatgen.scene.splats import Splats, rgb_to_sh

Cli = Callable[..., Any]

MINI = ["--prior", "toybox-mini", "--reward", "toybox-mini", "--device", "cpu"]
TINY = [*MINI, "--steps", "2", "--views.count", "2", "--output.frames", "0", "--output.size", "16"]
WORDS = "a red cube -> a blue cube"
POINTS = "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    """A few red splats."""
    path = tmp_path / "object.ply"
    formats.save(splats(0.9), path)
    return path


def splats(opacity: float) -> Splats:
    generator = torch.Generator().manual_seed(1)
    return Splats(
        means=1.04 * torch.rand(30, 3, generator=generator) - 0.52,
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(30, 1),
        scales=torch.full((30, 3), 0.12).log(),
        opacities=torch.logit(torch.full((30,), opacity)),
        sh=rgb_to_sh(torch.tensor([0.75, 0.1, 0.1])).expand(30, 1, 3).contiguous(),
    )


def run_folder(folder: Path, prompt: str) -> Path:
    """What a finished run holds, as far as an edit looks."""
    folder.mkdir()
    formats.save(splats(0.9), folder / "splats.ply")
    (folder / "config.json").write_text(json.dumps({"prompt": prompt}))
    return folder


# Words


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("a red cube -> a blue cube", "", ("a red cube", "a blue cube")),
        ("a red cube→a blue cube", "", ("a red cube", "a blue cube")),
        ("a blue cube", "a red cube", ("a red cube", "a blue cube")),
    ],
)
def test_source_and_target_come_from_the_words(text: str, source: str, expected: tuple[str, str]) -> None:
    assert edit.words(text, source, Path("object.ply")) == expected


def test_a_run_says_itself_what_it_shows(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "a green cone")
    assert edit.words("a blue cone", "", folder) == ("a green cone", "a blue cone")
    assert edit.words("a blue cone", "a cone", folder) == ("a cone", "a blue cone")
    assert edit.words("a cyan cone -> a blue cone", "", folder) == ("a cyan cone", "a blue cone")


@pytest.mark.parametrize(
    ("text", "source", "words"),
    [
        ("", "", "the words are missing"),
        ("-> a blue cube", "", "the source is missing"),
        ("a red cube ->", "", "the target is missing"),
        ("a -> b -> c", "", "has 2 arrows"),
        ("a red cube -> a blue cube", "a red cube", "there are two sources"),
        ("a blue cube", "", "does not say what it shows"),
        ("a blue cube", "  ", "does not say what it shows"),
    ],
)
def test_words_that_name_no_change_are_refused(text: str, source: str, words: str) -> None:
    with pytest.raises(Failure, match=words):
        edit.words(text, source, Path("object.ply"))


# Settings


def flags(kind: type[Any], capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        arguments.parse(kind, "verb", ["--help"])
    text = capsys.readouterr().out.replace(",", " ")
    return {word for word in text.split() if word.startswith("--")}


def test_an_edit_takes_the_options_of_generate_and_few_more(capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours = flags(generate.Generate, capsys), flags(edit.Edit, capsys)
    assert ours - theirs == {"--source", "--edit.keep", "--edit.fit"}
    assert {flag.split(".")[0] for flag in theirs - ours} == {"--splats", "--init", "--stages", "--steering"}


def test_presets_change_an_edits_defaults_and_options_change_the_presets(ply: Path) -> None:
    options = arguments.read(edit.Edit, "edit", [str(ply), WORDS])
    assert (options.settings.steps, options.settings.densify.rounds) == (150, 0)
    options = arguments.read(edit.Edit, "edit", [str(ply), WORDS, "--preset", "toybox-draft"])
    assert (options.settings.steps, options.settings.densify.rounds) == (120, 0)
    options = arguments.read(edit.Edit, "edit", [str(ply), WORDS, "--preset", "toybox-draft", "--steps", "7"])
    assert (options.settings.steps, options.settings.densify.rounds) == (7, 0)


# What is refused


def test_an_edit_leaves_out_the_stages_of_a_preset(ply: Path, tmp_path: Path) -> None:
    words = [str(ply), "a taxi -> a van", "--preset", "shelf", "--device", "cpu", "--out", str(tmp_path)]
    options = arguments.read(edit.Edit, "edit", words)
    assert options.settings.stages
    assert edit.check(options).stages == ()
    (tmp_path / "own.toml").write_text("[[stages]]\nshare = 0.5\n[[stages]]\nshare = 0.5\n")
    own = arguments.read(edit.Edit, "edit", [*words, "--config", str(tmp_path / "own.toml")])
    with pytest.raises(Failure, match="an edit has one"):
        edit.check(own)


def mesh(path: Path) -> None:
    path.write_text(POINTS.format(1) + "end_header\n0 0 0\n")


def nothing(path: Path) -> None:
    formats.save(splats(0.9).select(torch.zeros(0, dtype=torch.long)), path)


def invisible(path: Path) -> None:
    formats.save(splats(1e-4), path, clean=False)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def outputs(path: Path) -> None:
    for name in ("run-1", "run-2"):
        (path / name).mkdir(parents=True)
        (path / name / "run.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (mesh, "plain point cloud or mesh"),
        (nothing, "no splats"),
        (invisible, "30 splats, all invisible"),
        (empty, "object.ply"),
        (lambda path: None, "does not exist"),
        (Path.mkdir, "holds no splats.ply"),
        (outputs, "there are 2 runs in it; give one of them, such as"),
    ],
)
def test_an_input_without_splats_is_refused_before_a_model_is_loaded(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], words: str
) -> None:
    monkeypatch.setattr(object_run, "load_models", lambda *_: pytest.fail("a model was loaded"))
    path = tmp_path / "object.ply"
    make(path)
    done = cli("edit", path, WORDS, *TINY, "--out", tmp_path / "out")
    assert done.code == 2
    assert words in done.err
    assert done.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "INPUT is missing"),
        ([WORDS], "does not exist"),
        (["{ply}"], "the words are missing"),
        (["{ply}", "a red cube > a blue cube"], "write the arrow as ->"),
        (["{ply}", "a red cube -> a red cube"], "source and target are both 'a red cube'"),
        (["{ply}", "a corgi -> a blue cube"], "the source: the shelf does not know 'corgi'"),
        (["{ply}", "a red cube -> a corgi"], "error: the shelf does not know 'corgi'"),
        (["{ply}", WORDS, "--score", "vsd"], "use sds or sdi"),
        (["{ply}", WORDS, "--edit.keep", "-1"], "edit.keep is -1.0: give 0 or more"),
        (["{ply}", WORDS, "--steps", "0"], "steps is 0"),
        (["{ply}", WORDS, "--splats.count", "5"], "--splats.count"),
    ],
)
def test_what_makes_no_edit_is_refused(
    cli: Cli,
    ply: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(object_run, "load_models", lambda *_: pytest.fail("a model was loaded"))
    done = cli("edit", *(word.format(ply=ply) for word in given), "--out", tmp_path / "out")
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "out").exists()


# What it leaves


def test_an_edit_leaves_a_run_that_can_be_edited_again(cli: Cli, ply: Path, tmp_path: Path) -> None:
    done = cli("edit", ply, WORDS, *TINY, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    folder = Path(result["run"])
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["source"], settings["prompt"]) == ("a red cube", "a blue cube")
    assert settings["splats"]["count"] == result["splats"] == 30
    assert {"splats", "preview", "metrics"} <= result["files"].keys()
    assert len(formats.load(folder / "source.ply")) == 30

    again = cli("edit", folder, "a blue sphere", *TINY, "--out", tmp_path / "out", "--quiet")
    assert again.code == 0, again.err
    settings = json.loads((Path(again.out.strip()) / "config.json").read_text())
    assert (settings["source"], settings["prompt"]) == ("a blue cube", "a blue sphere")


def test_forced_prompts_are_the_nearest_ones(cli: Cli, ply: Path, tmp_path: Path) -> None:
    done = cli("edit", ply, "a red cub -> a blue cub", *TINY, "--force", "--quiet", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    settings = json.loads((Path(done.out.strip()) / "config.json").read_text())
    assert (settings["source"], settings["prompt"]) == ("a red cube", "a blue cube")
