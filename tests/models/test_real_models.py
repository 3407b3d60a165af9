"""Every family of priors and rewards from published layouts, at tiny size, as a user runs them.

Real classes with random weights, laid out as `splatgen fetch` would; the command line does the rest.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_blip
import tiny_clip
import tiny_diffusion
import tiny_mvdream
import tiny_qwen
import tiny_t5
import torch

from splatgen.models.budget import BUDGETS
from splatgen.priors import PRIORS
from splatgen.rewards import REWARDS
from splatgen.runs.metrics import read_metrics

PROMPT = "a corgi wearing a top hat"
SINGLE = ("sd15", "sd21", "sdxl", "deepfloyd", "sd3", "sd35")
JUDGES = (
    "hpsv2", "hpsv2.0", "image-reward", "pickscore", "clip", "clip-b32", "aesthetic", "aesthetic-v2",
    "clip-iqa", "vqa", "vqa-7b", "hpsv3",
)  # fmt: skip
SMALL = """
--steps 2 --views.size 16 --splats.count 40 --output.frames 0 --output.size 16 --device cpu
--densify.rounds 0 --quiet
""".split()  # noqa: SIM905 - as one would type it


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with every published model, tiny."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for family in ("sd15", "sd21", "sdxl"):
            tiny_diffusion.write_folder(folder / family, family)
        tiny_t5.deepfloyd(folder / "deepfloyd")
        tiny_t5.sd3(folder / "sd3")
        tiny_t5.sd3(folder / "sd35", version="3.5")
        tiny_mvdream.save(tiny_mvdream.published(), folder / "mvdream")
        for name in ("hpsv2", "hpsv2.0"):
            tiny_clip.write_hpsv2(folder, name)
        for name in ("pickscore", "clip", "clip-b32", "clip-iqa"):
            tiny_clip.write_clip(folder / name)
        tiny_clip.write_aesthetic(folder)
        tiny_blip.save_image_reward(folder)
        for name in ("vqa", "vqa-7b"):
            tiny_qwen.write_vqa(folder / name)
        (folder / "hpsv3").mkdir()
        tiny_qwen.write_hpsv3(folder / "hpsv3")
    return folder


def generate(cli, weights, out, *words):
    """The run of a command that works."""
    done = cli("generate", PROMPT, "--weights", weights, *SMALL, "--out", out, *words)
    assert done.code == 0, done.err
    return Path(done.out.strip())


def test_the_tables_are_whole():
    assert {*SINGLE, "mvdream"} == {name for name, entry in PRIORS.items() if not entry.embedded}
    others = {"reward3d", "reward3d-fusion"}  # of four views: below
    assert {*JUDGES} | others == {name for name, entry in REWARDS.items() if not entry.embedded}


def test_the_command_of_the_front_page(cli, weights, tmp_path):
    words = ["--prior", "sd15", "--reward", "hpsv2", "--preference", "psd", "--guidance.scale", "7.5"]
    run = generate(cli, weights, tmp_path, *words, "--psd.interval", "1", "--psd.t-limit", "1.0")
    rows = read_metrics(run / "metrics.jsonl")
    assert all(row["skipped"] == 0 for row in rows)
    assert "reward/hpsv2" in rows[0]
    assert "preference/negative_reward" in rows[0]
    models = json.loads((run / "run.json").read_text())["models"]
    assert set(models) == {"prior/sd15", "reward/hpsv2"}
    assert all(str(weights) in source for source in models.values())
    assert (run / "splats.ply").stat().st_size > 1000


@pytest.mark.parametrize("prior", [*SINGLE, "mvdream"])
@pytest.mark.parametrize(
    "method",
    [
        "--score sds --preference weighted --weighted.stop 1.0",
        "--score vsd --preference none",
        "--score sdi --preference psd --psd.interval 1 --psd.t-limit 1.0",
    ],
    ids=["rewardsds", "vsd", "psd on sdi"],
)
def test_every_prior_runs_with_a_reward(cli, weights, tmp_path, prior, method):
    words = ["--prior", prior, "--reward", "hpsv2", "--guidance.scale", "5", *method.split()]
    run = generate(cli, weights, tmp_path, *words)
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [0, 0]
    assert all(row["guidance/model_calls"] >= 4 for row in rows)


@pytest.mark.parametrize("reward", JUDGES)
def test_every_reward_guides(cli, weights, tmp_path, reward):
    words = ["--prior", "sd15", "--reward", reward, "--preference", "ascent", "--ascent.start", "0"]
    words += ["--ascent.target", "1000", "--guidance.scale", "5"]
    run = generate(cli, weights, tmp_path, *words)
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [0, 0]
    assert rows[0][f"reward/{reward}"] == rows[0][f"reward/{reward}"]


def test_rewards_together_one_of_them_held_out(cli, weights, tmp_path):
    words = ["--prior", "sd21", "--preference", "dpo", "--reward", "hpsv2=0.7", "image-reward=0.3"]
    run = generate(cli, weights, tmp_path, *words, "--holdout-reward", "pickscore", "--guidance.scale", "5")
    assert {"reward/hpsv2", "reward/image-reward", "holdout/pickscore"} <= set(
        read_metrics(run / "metrics.jsonl")[0]
    )


@pytest.mark.parametrize("budget", [name for name in BUDGETS if name != "none"])
def test_a_budget_changes_no_choice_and_next_to_nothing_else(cli, weights, tmp_path, budget):
    """Freed text encoders and smaller batches are the same step."""
    words = ["--prior", "sd15", "--reward", "hpsv2", "--preference", "psd", "--guidance.scale", "5"]
    words += ["--psd.interval", "1", "--psd.t-limit", "1.0"]
    plain = generate(cli, weights, tmp_path / "plain", *words)
    bound = generate(cli, weights, tmp_path / "bound", *words, "--budget", budget)
    for a, b in zip(*(read_metrics(run / "metrics.jsonl") for run in (plain, bound)), strict=True):
        assert a["guidance/model_calls"] == b["guidance/model_calls"]
        for key in ("loss", "reward/hpsv2", "preference/gap", "preference/negative_reward"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs_and_stays_near(cli, weights, tmp_path, dtype):
    words = ["--prior", "sd15", "--reward", "hpsv2", "--preference", "weighted", "--guidance.scale", "5"]
    full = read_metrics(generate(cli, weights, tmp_path / "a", *words) / "metrics.jsonl")
    half = read_metrics(
        generate(cli, weights, tmp_path / "b", *words, "--prior.dtype", dtype) / "metrics.jsonl"
    )
    assert half[0]["skipped"] == 0
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.2)
    assert half[0]["loss"] != full[0]["loss"]


def test_a_run_with_real_models_resumes_to_the_bit(cli, weights, tmp_path):
    words = ["--prior", "mvdream", "--reward", "hpsv2", "--preference", "psd", "--guidance.scale", "5"]
    words += ["--psd.interval", "1", "--psd.t-limit", "1.0"]
    whole = generate(cli, weights, tmp_path / "whole", *words, "--steps", "4")
    part = generate(cli, weights, tmp_path / "part", *words)
    done = cli("resume", part, "--steps", "4", "--quiet")
    assert done.code == 0, done.err
    # two of four steps were made with the schedules of two, so only the model calls can be compared
    a, b = (read_metrics(run / "metrics.jsonl") for run in (whole, part))
    assert [row["guidance/model_calls"] for row in a] == [row["guidance/model_calls"] for row in b]


def test_an_image_in_2d(cli, weights, tmp_path):
    words = ["--weights", weights, "--prior", "sd15", "--reward", "image-reward", "--preference", "weighted"]
    words += ["--steps", "2", "--guidance.scale", "5", "--device", "cpu", "--quiet", "--out", tmp_path]
    done = cli("image", PROMPT, *words)
    assert done.code == 0, done.err
    assert (Path(done.out.strip()) / "image.png").is_file()


# Refusals: before a run folder is made, in one line


def refused(cli, tmp_path, *words):
    out = tmp_path / "out"
    done = cli("generate", PROMPT, *SMALL, "--out", out, *words)
    assert done.err.count("\n") == 1, done.err
    assert not out.exists()
    return done


def test_what_is_not_here_is_three_and_says_how_to_get_it(cli, weights, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = refused(cli, tmp_path, "--prior", "sd15", "--weights", empty)
    assert done.code == 3
    assert "splatgen fetch sd15" in done.err
    shutil.copytree(weights / "sd15", empty / "sd15")
    done = refused(cli, tmp_path, "--prior", "sd15", "--reward", "hpsv2", "--weights", empty)
    assert done.code == 3
    assert "splatgen fetch hpsv2" in done.err


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sd15", "unet/diffusion_pytorch_model.safetensors"),
        ("sd15", "text_encoder/model.safetensors"),
        ("mvdream", "sd-v2.1-base-4view.pt"),
        ("hpsv2", "HPS_v2.1_compressed.pt"),
        ("image-reward", "ImageReward.pt"),
    ],
)
def test_a_file_that_is_cut_short_is_three(cli, weights, tmp_path, name, file):
    mine = tmp_path / "mine"
    shutil.copytree(weights, mine)
    whole = (mine / name / file).read_bytes()
    (mine / name / file).write_bytes(whole[: len(whole) // 2])
    prior = name if name in PRIORS else "sd15"
    reward = ["--reward", name] if name in REWARDS else []
    done = refused(cli, tmp_path, "--prior", prior, *reward, "--weights", mine)
    assert done.code == 3
    assert name in done.err


def test_weights_of_another_architecture_are_three(cli, weights, tmp_path):
    for prior, other in (("sd15", "sdxl"), ("sdxl", "sd15"), ("sd3", "sd15"), ("mvdream", "hpsv2")):
        model = weights / other
        done = refused(cli, tmp_path, "--prior", prior, "--prior.model", model)
        assert done.code == 3, (prior, other, done.err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prior toybox --prior.lora x.safetensors", "the prior 'toybox' does not have this option"),
        ("--prior sd15 --prior.no-t5", "the prior 'sd15' does not have this option"),
        ("--prior sd15 --preference psd", "needs at least one, as in --reward hpsv2"),
        ("--prior sd15 --reward reward3d", "judges 4 views together"),
        ("--prior mvdream --views.count 3", "give a multiple of 4"),
        ("--prior sd15 --prior.revision main", "it needs --prior.model"),
        ("--prior sd15 --prior.lora-scale 0.5", "it needs --prior.lora FILE"),
    ],
)
def test_what_does_not_go_together_is_two(cli, tmp_path, words, message):
    done = refused(cli, tmp_path, *words.split())
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize(
    "model", ["nobody/nothing", "../../etc/passwd", "no-such-folder", "a\x00b", "x" * 9000]
)
def test_a_model_that_is_nowhere_is_three(cli, tmp_path, model):
    done = refused(cli, tmp_path, "--prior", "sd15", "--prior.model", model)
    assert done.code == 3
    assert len(done.err) < 600


def test_a_prompt_with_too_many_words_is_two(cli, weights, tmp_path):
    done = cli(
        "generate", "word " * 90, "--prior", "sd15", "--weights", weights, *SMALL, "--out", tmp_path / "o"
    )
    assert done.code == 2
    assert "shorten it" in done.err
    assert not (tmp_path / "o").exists()
