"""Stages on the command line: where they come from, what is refused, and a run that is made of two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splatgen.config import read_file

Cli = Callable[..., Any]

TWO = """
[[stages]]
name = "shape"
share = 0.5
score = "vsd"
vsd.rank = 1
[[stages]]
name = "detail"
share = 0.5
guidance.scale = 2.0
views.size = [24]
"""
MINI = ["--prior", "toybox-mini", "--reward", "toybox-mini", "--steps", "4", "--views.count", "1"]
SMALL = ["--views.size", "16", "--splats.count", "40", "--output.frames", "0", "--output.size", "16"]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(TWO)
    return path


def test_a_run_of_two_stages_goes_on_after_it_was_made_longer(cli: Cli, tmp_path: Path, two: Path) -> None:
    done = cli("generate", "a red cube", *MINI, *SMALL, "--stages", two, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "shape: toybox-mini prior, 2 steps, detail: toybox-mini prior, 2 steps, seed 0" in done.err
    run = Path(done.out.strip())
    told = json.loads((run / "run.json").read_text())
    assert (told["status"], told["stage"]) == ("done", 2)
    assert [(s["name"], s["first_step"], s["steps"]) for s in told["stages"]] == [
        ("shape", 0, 2),
        ("detail", 2, 2),
    ]
    again = cli("resume", run, "--steps", "6")
    assert again.code == 0, again.err
    shares = [stage["share"] for stage in read_file(run / "config.json")["stages"]]
    assert shares == pytest.approx([1 / 3, 2 / 3])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [1, 1, 2, 2, 2, 2]


REFUSED = {
    "guidance.scale = 3\n" + TWO: "sets guidance, and a file of stages holds [[stages]] only",
    "": "holds no stage: begin one with [[stages]] and its share",
    "[[stages]]\nshare = 0.5\n": "the shares of the stages come to 0.5",
    TWO + 'prior = "mvdrem"\n': "stage 2 (detail): no prior 'mvdrem'; did you mean 'mvdream'?",
    TWO + 'prior = "mvdream"\n': "stage 2 (detail): --views.count 1: the prior 'mvdream' denoises 4 views",
    TWO + 'reward = ["reward3d"]\n': "stage 2 (detail): the reward 'reward3d' judges 4 views together",
    TWO
    + 'prior = "shelf"\nnegative = "ugly"\n': "stage 2 (detail): negative prompt: the toybox prior does not",
    TWO
    + "prior_options.t5 = false\n": "stage 2 (detail): --prior.t5 False: the prior 'toybox-mini' does not",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_run_is_two_before_anything_is_made(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from splatgen.loop import resident_models

    monkeypatch.setattr(resident_models, "load_models", lambda *_: pytest.fail("a model was loaded"))
    file = tmp_path / "stages.toml"
    file.write_text(text)
    done = cli("generate", "a red cube", *MINI, *SMALL, "--stages", file, "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert REFUSED[text] in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_every_stage_reads_alike_is_no_stages_fault(
    cli: Cli, tmp_path: Path, two: Path
) -> None:
    done = cli("generate", "a taxi", *MINI, *SMALL, "--stages", two, "--out", tmp_path / "out")
    assert done.code == 2
    assert done.err.startswith("splatgen: error: the toybox prior does not know 'taxi'")


def test_missing_weights_of_a_later_stage_are_three(cli: Cli, tmp_path: Path, two: Path) -> None:
    two.write_text(TWO + 'prior = "sd15"\n')
    words = ["--stages", two, "--weights", tmp_path, "--out", tmp_path / "out"]
    done = cli("generate", "a red cube", *MINI, *SMALL, *words)
    assert done.code == 3
    assert "stage 2 (detail): sd15 is neither in" in done.err
    assert not (tmp_path / "out").exists()


def test_words_that_no_stage_hears_are_refused(cli: Cli, tmp_path: Path, two: Path) -> None:
    two.write_text(TWO.replace("vsd.rank = 1", "guidance.scale = 3.0\nvsd.rank = 1"))
    words = ["--stages", two, "--guidance.scale", "2.5", "--out", tmp_path / "out"]
    done = cli("generate", "a red cube", *MINI, *SMALL, *words)
    assert done.code == 2
    assert "--guidance.scale does nothing: every stage sets its own" in done.err


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("edit", ["a red cube -> a blue cube"], "there are 2 stages, and an edit has one"),
        ("compare", [], "has stages, and what is compared has one"),
    ],
)
def test_edits_and_comparisons_have_one_stage(
    cli: Cli, tmp_path: Path, two: Path, verb: str, words: list[str], message: str
) -> None:
    given = [tmp_path / "none.ply", *words] if verb == "edit" else ["a red cube"]
    (tmp_path / "none.ply").write_text("")
    done = cli(verb, *given, "--prior", "toybox-mini", "--config", two, "--out", tmp_path / "out")
    assert done.code == 2
    assert message in done.err
