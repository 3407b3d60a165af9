"""What makes the terminal easier: words instead of riddles, numbers explained, a script for the shell."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli
from faults import only
from test_faults import RUN, needs_weights

from splatgen import cli as door
from splatgen.cli import VERBS, main
from splatgen.commands import completion, generate
from splatgen.commands.common import cost, execution
from splatgen.config import Config, ImageConfig, ViewOptions, WeightedOptions
from splatgen.rewards import JUDGES

# Prompts without quotes, and seeds


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["generate", "a", "red", "cube"], 'splatgen generate "a red cube"'),
        (["image", "a", "red", "cube", "--steps", "3"], 'splatgen image "a red cube"'),
        (["edit", "my run", "a", "red", "cube"], "splatgen edit 'my run' \"a red cube\""),
        (["compare", "a", "cube"], 'splatgen compare "a cube"'),
    ],
)
def test_a_prompt_without_quotes_is_shown_with_them(cli: Cli, words: list[str], command: str) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"splatgen: error: a prompt of several words stands in quotes: {command}\n"


def test_words_without_quotes_after_an_option_get_a_hint(cli: Cli) -> None:
    hint = "splatgen: if those words are the prompt, put it in quotes\n"
    assert cli("generate", "--steps", "5", "a", "red", "cube").err.endswith(hint)
    for words in (["a red cube", "--stpes", "3"], ["a red cube", "--device", "tpu"]):
        done = cli("generate", *words)
        assert done.code == 2
        assert "in quotes" not in done.err


def test_words_in_quotes_or_after_options_are_left_alone() -> None:
    for words in (
        ["a red cube"],
        ["a red cube", "--reward", "clip", "toybox"],
        ["--steps", "3", "a cube"],
        [],
    ):
        assert door.prepared("generate", words) == words
    assert door.prepared("fetch", ["sd15", "clip"]) == ["sd15", "clip"]


@pytest.mark.parametrize("words", [["--seed", "random"], ["--seed=random"]])
def test_a_random_seed_is_a_number_that_is_told(words: list[str]) -> None:
    drawn = {generate.read(door.seeded(["a red cube", *words]))[1].seed for _ in range(4)}
    assert len(drawn) > 1
    assert all(0 <= seed < 2**31 for seed in drawn)
    assert f"seed {min(drawn)}" in execution.headline(
        Config(seed=min(drawn)), execution.resolve(Config(device="cpu"))
    )


def test_only_a_seed_is_drawn() -> None:
    words = ["random", "--negative", "random", "--seed", "7"]
    assert door.seeded(words) == words
    assert door.seeded(["--seed"]) == ["--seed"]


# How long it would take


def test_the_work_of_a_run_grows_with_what_it_does() -> None:
    sd15 = Config(prior="sd15", steps=100)
    denoise, encode = cost.TERAFLOPS["sd15"]
    assert cost.teraflops(sd15) == pytest.approx(100 * 4 * (2 * denoise + 3 * encode))
    eight = Config(prior="sd15", steps=100, preference="weighted", weighted=WeightedOptions(candidates=8))
    assert cost.teraflops(eight) == pytest.approx(100 * 4 * (16 * denoise + 3 * encode))
    views = Config(prior="mvdream", steps=100, views=ViewOptions(count=4))
    assert cost.teraflops(views) == pytest.approx(
        100 * (2 * cost.TERAFLOPS["mvdream"][0] + 3 * cost.TERAFLOPS["mvdream"][1])
    )
    assert cost.teraflops(ImageConfig(prior="sd15", steps=100)) == pytest.approx(200 * denoise)
    assert cost.teraflops(Config()) == 0.0
    assert cost.without_gpu(Config()) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5, "some minutes"),
        (150, "2 minutes"),
        (7200, "2 hours"),
        (86400 * 1.9, "46 hours"),
        (86400 * 30, "30 days"),
    ],
)
def test_durations_have_a_unit_that_fits(seconds: float, words: str) -> None:
    assert cost.at_least(seconds) == f"{words} at least"


def test_without_a_gpu_it_says_how_long_before_anything_is_fetched(cli: Cli, tmp_path: Path) -> None:
    import torch

    done = cli("generate", "a corgi", "--prior", "sd15", "--weights", tmp_path, "--out", tmp_path / "o")
    assert done.code == 3
    said = "without a GPU, as here, 400 steps of sd15 take "
    assert (said in done.err) == (not torch.cuda.is_available())
    assert done.err.count("\n") == 1


def test_fetch_groups_what_it_lists(cli: Cli, tmp_path: Path) -> None:
    done = cli("fetch", "--weights", tmp_path)
    groups = re.split(r"\n\n", done.out)
    assert "--prior" in groups[0].splitlines()[0]
    assert "  sd15 " in groups[0]
    assert "  hpsv2 " in groups[1]
    assert "  hpsv2 " not in groups[0]
    assert max(map(len, done.out.splitlines())) <= 80
    kinds = {
        row["name"]: row["kind"]
        for row in json.loads(cli("fetch", "--weights", tmp_path, "--json").out)["models"]
    }
    assert (kinds["sd15"], kinds["clip"], kinds["taesd"], kinds["shap-e"]) == (
        "prior",
        "reward",
        "decoder",
        "shapes",
    )


# What a run says


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    assert main([*RUN, "--out", str(out)]) == 0
    return only(out)


@needs_weights
def test_a_run_explains_its_scores_and_counts_the_whole_time(cli: Cli, tmp_path: Path) -> None:
    words = [word for word in RUN if word != "--quiet"]
    done = cli(*words, "--out", tmp_path)
    assert f"splatgen: score toybox-mini: {JUDGES['toybox-mini'].about}; it only watches\n" in done.err
    assert re.search(r"splatgen: done in \d+:\d\d: splats.ply, preview.png\n", done.err)
    assert re.search(r"splatgen: scores at the end: toybox-mini -?\d\.\d{3}\n", done.err)


def test_a_score_that_guides_is_no_measure() -> None:
    config = Config(preference="psd", reward=("toybox", "clip=0.3"), holdout_reward=("toybox-judge",))
    lines = execution.scores_explained(config)
    assert [line.partition(":")[0] for line in lines] == ["score toybox", "score clip", "score toybox-judge"]
    assert [line.rpartition("; ")[2] for line in lines] == [
        "it guides, so it is no measure of quality",
        "it guides, so it is no measure of quality",
        "it only watches",
    ]


def test_time_counts_what_came_before() -> None:
    assert execution.whole_time(65.0, 0.0) == "1:05"
    assert execution.whole_time(65.0, 60.0) == "1:05, 2:05 with what was done before"


@needs_weights
def test_resume_of_a_finished_run_says_so_and_does_nothing(cli: Cli, made: Path) -> None:
    before = (made / "run.json").read_bytes()
    done = cli("resume", made)
    assert (done.code, done.out) == (0, f"{made}\n")
    assert done.err == (
        "splatgen: this run is done, after 4 steps: nothing is left to do; --steps 8 makes it longer\n"
    )
    assert json.loads(cli("resume", made, "--steps", "4", "--json").out)["status"] == "done"
    assert (made / "run.json").read_bytes() == before


@needs_weights
def test_a_finished_run_that_lost_its_file_makes_it_again(cli: Cli, made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    (run / "splats.ply").unlink()
    assert cli("resume", run, "--quiet").code == 0
    assert (run / "splats.ply").is_file()


@needs_weights
def test_log_is_kept_with_the_settings_and_needs_its_package(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.util, "find_spec", lambda name, *rest: (name != "wandb" and real(name, *rest)) or None
        )
        done = cli(*RUN, "--log", "wandb", "--out", tmp_path / "none")
    assert (done.code, done.out) == (3, "")
    assert done.err == "splatgen: error: --log wandb needs the package wandb: pip install 'splatgen[wandb]'\n"
    pytest.importorskip(
        "tensorboard", reason="tensorboard is not installed: pip install 'splatgen[tensorboard]'"
    )
    assert cli(*RUN, "--log", "tensorboard", "--out", tmp_path / "runs").code == 0
    run = only(tmp_path / "runs")
    assert json.loads((run / "config.json").read_text())["output"]["log"] == "tensorboard"
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))


# The shell completes


def test_every_verb_is_completed() -> None:
    assert set(completion.verbs()) == set(VERBS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("splatgen gen", ["generate"]),
        ("splatgen runs --del", ["--delete", "--delete-checkpoints"]),
        ("splatgen generate --score s", ["sds", "sdi"]),
    ],
)
def test_bash_completes_verbs_options_and_choices(script: Path, line: str, found: list[str]) -> None:
    words = line.split(" ")
    code = (
        f"source {shlex.quote(str(script))}\nCOMP_WORDS=({' '.join(words)})\nCOMP_CWORD={len(words) - 1}\n"
        f"COMP_LINE={shlex.quote(line)}\nCOMP_POINT={len(line)}\n_tyro_splatgen\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert [word.strip() for word in done.stdout.split()] == found, done.stderr


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "splatgen.sh"
    command = [sys.executable, "-m", "splatgen.cli", "completion", "bash"]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return path
