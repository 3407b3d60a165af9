"""`splatgen image` and what `splatgen resume` does with its runs: refusals, output, pictures, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from splatgen.commands import image as command
from splatgen.commands.common import arguments, errors
from splatgen.commands.common.errors import Failure
from splatgen.config import Config, ImageConfig, presets

Cli = Callable[..., Any]
MINI = ["--prior", "toybox-mini", "--reward", "toybox-mini", "--device", "cpu"]
TINY = [*MINI, "--steps", "4", "--image.checkpoint-seconds", "0"]
RED = np.full((20, 20, 3), (200, 0, 0), np.uint8)


def save(path: Path, pixels: Any = RED, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def the_run(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


# What comes out


def test_stdout_has_the_folder_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    done = cli("image", "a red cube", *TINY, "--out", tmp_path)
    run = the_run(tmp_path)
    assert (done.code, done.out) == (0, f"{run}\n")
    assert "step 4/4" in done.err
    assert (run / "image.png").is_file()
    assert json.loads((run / "run.json").read_text())["kind"] == "image"
    assert json.loads((run / "config.json").read_text())["image"]["space"] == "latents"


def test_json_and_quiet(cli: Cli, tmp_path: Path) -> None:
    done = cli("image", "a red cube", *TINY, "--out", tmp_path, "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert (found["run"], found["status"], found["step"]) == (str(the_run(tmp_path)), "done", 4)


def test_a_picture_is_changed_by_words(cli: Cli, tmp_path: Path) -> None:
    words = ["a blue cube", "--edit", save(tmp_path / "a.png"), "--source", "a red box", *TINY]
    done = cli("image", *words, "--preference", "weighted", "--out", tmp_path / "out")
    assert done.code == 0
    run = the_run(tmp_path / "out")
    assert np.asarray(Image.open(run / "source.png"))[9, 9].tolist() == [200, 0, 0]
    assert json.loads((run / "config.json").read_text())["source"] == "a red box"


def test_ctrl_c_leaves_a_checkpoint_from_which_resume_goes_on(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splatgen.loop import image_run

    advance = image_run.advance

    def interrupted(config: Any, models: Any, canvas: Any) -> Any:
        if canvas.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(config, models, canvas)

    with monkeypatch.context() as patch:
        patch.setattr(image_run, "advance", interrupted)
        done = cli("image", "a red cube", *TINY, "--out", tmp_path)
    run = the_run(tmp_path)
    assert (done.code, done.out) == (130, f"{run}\n")
    assert f"stopped after step 2: image.png; continue with: splatgen resume {run}" in done.err
    assert (run / "image.png").exists()
    done = cli("resume", run, "--steps", "6")
    assert (done.code, done.out) == (0, f"{run}\n")
    assert "step 6/6" in done.err
    assert (run / "image.png").is_file()
    assert json.loads((run / "config.json").read_text())["steps"] == 6


def test_resume_refuses_what_a_2d_run_can_not_be(cli: Cli, tmp_path: Path) -> None:
    assert cli("image", "a red cube", *TINY, "--out", tmp_path).code == 0
    run = the_run(tmp_path)
    assert "already at step 4" in cli("resume", run, "--steps", "2").err
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**settings, "views": {}}))
    done = cli("resume", run)
    assert (done.code, done.out) == (2, "")
    assert "unknown setting views" in done.err


def test_a_nearest_prompt_is_made_when_forced_and_so_is_a_source(cli: Cli, tmp_path: Path) -> None:
    words = ["a blue corgi", "--edit", save(tmp_path / "a.png"), "--source", "a red corgi", "--force", *TINY]
    done = cli("image", *words, "--out", tmp_path / "out")
    assert done.code == 0
    settings = json.loads((the_run(tmp_path / "out") / "config.json").read_text())
    assert (settings["prompt"], settings["source"]) == ("a blue cube", "a red cube")


# Settings


def read(*words: str) -> ImageConfig:
    return arguments.read(command.Image, "image", words).settings


def test_the_defaults_are_those_of_the_config() -> None:
    assert read("a red cube") == ImageConfig(prompt="a red cube")
    assert ImageConfig().steps != Config().steps


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_lends_what_guides_and_the_3d_rest_is_left_out(name: str) -> None:
    found = read("a red cube", "--preset", name, "--seed", "3")
    from splatgen.config import merge, read_preset

    in_3d = merge(Config(), read_preset(name))
    assert (found.score, found.preference, found.guidance) == (in_3d.score, in_3d.preference, in_3d.guidance)
    assert (found.steps, found.seed) == (read_preset(name).get("steps", ImageConfig().steps), 3)


def test_a_config_file_is_taken_by_the_letter(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('prompt = "a blue cone"\nsteps = 9\n[image]\nlr = 0.5\n')
    found = read("--config", str(file), "--image.count", "2")
    assert (found.prompt, found.steps, found.image.lr, found.image.count) == ("a blue cone", 9, 0.5, 2)
    file.write_text("[views]\ncount = 2\n")
    with pytest.raises(ValueError, match="unknown setting views"):
        read("a red cube", "--config", str(file))


FLAGS = """
--config --edit --force --help --image.checkpoint-seconds --image.count --image.log-every --image.lr
--image.reward-every --image.space --image.start --json --out --preset --quiet --source
"""


def test_image_has_the_options_of_generate_without_those_of_3d(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def flags(verb: str) -> set[str]:
        text = re.sub(r"\x1b\[[0-9;]*m", "", cli(verb, "--help").out)
        return {flag.rstrip(".") for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*", text)}

    of_3d = re.compile(
        r"--(views|splats|render|lr|densify|regularise|output)\.|--(init|stages|steering|viewer|viewer-wait|open|host|port)$"
    )
    shared = {flag for flag in flags("generate") if not of_3d.match(flag)}
    assert flags("image") - shared == set(FLAGS.split()) - shared
    assert shared <= flags("image")


# Refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the prompt is empty"),
        (["a corgi"], "the shelf does not know 'corgi'"),
        (["a red cube", "--negative", "ugly"], "negative prompt: "),
        (["a red cube", "--prior", "toyboks"], "no prior 'toyboks'; did you mean"),
        (["a red cube", "--reward", "hpsv9"], "no reward 'hpsv9'"),
        (["a red cube", "--preset", "toybx"], "no preset 'toybx'; did you mean 'toybox'?"),
        (["a red cube", "--image.count", "0"], "image.count is 0: give 1 to 64"),
        (["a red cube", "--source", "a blue cube"], "give the picture, too, with --edit PICTURE"),
        (["a red cube", "--edit", "a.png"], "--edit needs what the picture shows: add --source"),
        (["a red cube", "--edit", "a.png", "--source", " "], "add --source"),
        (
            ["a red cube", "--edit", "a.png", "--source", "a corgi"],
            "--source: the shelf does not know",
        ),
        (["a red cube", "--edit", "a.png", "--source", "a\nb"], "--source: the prompt has a line break"),
        (
            ["a red cube", "--edit", "none.png", "--source", "a blue cube"],
            "none.png does not exist: give a PNG",
        ),
        (["a red cube", "--edit", ".", "--source", "a blue cube"], "--edit . is no file: give a PNG"),
        (["a red cube", "--edit", "text.png", "--source", "a blue cube"], "--edit text.png cannot be read"),
        (["a red cube", "--edit", "a.gif", "--source", "a blue cube"], "--edit a.gif cannot be read"),
        (["a red cube", "--edit", "cut.png", "--source", "a blue cube"], "--edit cut.png cannot be read"),
        (["a red cube", "--edit", "a.png", "--source", "a blue cube", "--score", "vsd"], "score is 'vsd'"),
    ],
)
def test_refusals_are_two_one_line_and_leave_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    save(tmp_path / "a.png")
    save(tmp_path / "a.gif")
    (tmp_path / "cut.png").write_bytes(save(tmp_path / "cut.png", noise).read_bytes()[:3000])
    (tmp_path / "text.png").write_text("no picture")
    done = cli("image", *words, "--out", "out")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("splatgen: error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_a_multi_view_prior_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    entry = command.PRIORS["toybox-mini"]
    monkeypatch.setitem(command.PRIORS, "toybox-mini", dataclasses.replace(entry, views=4))
    done = cli("image", "a red cube", *MINI, "--out", tmp_path / "out")
    assert done.code == 2
    assert "'toybox-mini' denoises 4 views together, and an image is one" in done.err


def test_refusals_import_no_torch(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    code = """
import sys
from splatgen.cli import main
edit = ["a red cube", "--edit", "a.png", "--source"]
for words in [["corgi"], ["a red cube", "--steps", "0"], [*edit, "a corgi"], edit[:3]]:
    assert main(["image", *words]) == 2, words
assert main(["image", "a red cube", "--edit", "b.png", "--source", "a blue cube"]) == 2
assert main(["image", "--help"]) == 0
assert "torch" not in sys.modules and "PIL" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Pictures


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_usual_formats_are_read(tmp_path: Path, suffix: str) -> None:
    found = command.read_picture(save(tmp_path / f"a.{suffix}"))
    assert (found.shape, found.dtype) == ((20, 20, 3), np.uint8)
    assert np.abs(found.astype(int) - RED).max() <= 3


def test_what_is_transparent_is_grey(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[:, :, 0] = 200
    pixels[:, 1, 3], pixels[:, 2, 3] = 128, 255
    found = command.read_picture(save(tmp_path / "a.png", pixels))
    assert found[0].tolist() == [[128, 128, 128], [164, 64, 64], [200, 0, 0]]
    Image.fromarray(pixels).quantize().save(tmp_path / "palette.png")
    assert np.array_equal(command.read_picture(tmp_path / "palette.png")[:, 0], np.full((2, 3), 128))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "I;16"])
def test_every_kind_of_pixel_becomes_eight_bit_colour(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
    else:
        picture = Image.new("L", (8, 8), 100).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path)
    found = command.read_picture(path)
    assert (found.shape, found.dtype) == ((8, 8, 3), np.uint8)
    assert np.abs(found.astype(int) - 100).max() <= 1


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, :2] = 255
    found = command.read_picture(save(tmp_path / "a.png", pixels, exif=exif))
    assert found.shape == (4, 2, 3)
    assert found[:, 0, 0].tolist() == [255, 255, 0, 0]


def header(width: int, height: int) -> bytes:
    """The beginning of a 1-bit PNG, all that is read to know its size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(body)) + struct.pack(">I", 9) + b"IDAT" + bytes(9)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + end


def test_pictures_that_are_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(header(8001, 8000))
    with pytest.raises(Failure, match="has 8001 x 8000 pixels: give one of 64 megapixels"):
        command.read_picture(path)
    path.write_bytes(header(20_000, 20_000))  # Pillow itself refuses it
    with pytest.raises(Failure, match=r"too large .*: give 64 megapixels"):
        command.read_picture(path)
    os.truncate(path, 100_600_000)  # a sparse file
    with pytest.raises(Failure, match="has 101 MB: give a picture of 100 MB at most") as caught:
        command.read_picture(path)
    assert caught.value.code == errors.USAGE
