"""`import splatgen`: the verbs as functions, and results that show themselves."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import splatgen
from splatgen.commands import functions
from splatgen.commands.common.errors import Failure
from splatgen.commands.common.notebook import Pictures, RunResult, SweepResult
from splatgen.config import Config, ConfigError, from_dict, presets, read_file

TINY: dict[str, Any] = {
    "steps": 2,
    "prior": "toybox-mini",
    "reward": ("toybox-mini",),
    "device": "cpu",
    "views": {"count": 2},
    "splats": {"count": 150},
    "output": {"frames": 3, "size": 32},
    "progress": False,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return splatgen.generate("a red cube", out=tmp_path_factory.mktemp("made"), **TINY)


def fresh(code: str, **environment: str) -> str:
    """What a new process prints."""
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**clean, **environment}, timeout=300
    )
    return done.stdout.strip()


def test_the_names_are_there_before_torch_is() -> None:
    code = (
        "import sys, splatgen; "
        "print(*(callable(getattr(splatgen, n)) for n in splatgen.__all__[1:]), 'torch' in sys.modules)"
    )
    assert fresh(code) == " ".join(["True"] * 8 + ["False"])


@pytest.mark.parametrize(
    ("set_by_user", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_threads_wait_as_on_the_command_line_unless_the_user_says_otherwise(
    set_by_user: dict[str, str], expected: str
) -> None:
    assert fresh("import os, splatgen; print(os.environ['OMP_WAIT_POLICY'])", **set_by_user) == expected


def test_a_name_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match=r"'genrate'; it has .*generate"):
        splatgen.genrate  # noqa: B018
    assert set(dir(splatgen)) == set(splatgen.__all__)


@pytest.mark.parametrize("name", splatgen.__all__[1:])
def test_everything_public_is_typed_and_documented(name: str) -> None:
    function = getattr(splatgen, name)
    signature = inspect.signature(function)
    assert function.__doc__
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    assert signature.return_annotation is not signature.empty


def test_an_object_is_made_and_shows_itself(made: RunResult) -> None:
    assert (made.status, made.step, made.prompt) == ("done", 2, "a red cube")
    assert len(made.splats()) == len(splatgen.load(made)) > 0
    assert set(made.rewards) == {"reward/toybox-mini"}
    page = made._repr_html_()
    assert re.search(r'<(video|img)[^>]* src="data:(video|image)/\w+;base64,', page)
    assert "a red cube" in page


def test_settings_are_those_of_the_command_line(made: RunResult) -> None:
    config = from_dict(read_file(made.files["config"]))
    assert config.splats.count == 150
    assert config.views.count == 2
    with pytest.raises(ConfigError, match="did you mean steps"):
        splatgen.generate("a red cube", stepz=3)
    with pytest.raises(ConfigError, match=r"did you mean guidance\.scale"):
        splatgen.generate("a red cube", guidance={"scal": 3.0})
    with pytest.raises(Failure, match="the prompt is empty"):
        splatgen.generate("", device="cpu")


@pytest.mark.parametrize("preset", presets())
def test_presets_come_below_what_is_given(preset: str) -> None:
    with_it = functions.laid_over(Config(), preset, {"seed": 7, "steps": 3})
    assert (with_it.seed, with_it.steps) == (7, 3)
    table = read_file(presets()[preset])
    assert all(getattr(with_it, key) == table[key] for key in ("score", "preference") if key in table)


def test_a_preset_leaves_nothing_for_a_preference_that_was_deselected() -> None:
    with_it = functions.laid_over(Config(), "psd", {"preference": "none", "score": "sds"})
    assert with_it.psd == Config().psd


@pytest.mark.parametrize("kind", ["run", "folder", "file", "splats"])
def test_an_edit_takes_whatever_holds_splats(made: RunResult, tmp_path: Path, kind: str) -> None:
    sources: dict[str, Any] = {
        "run": made,
        "folder": str(made.folder),
        "file": made.files["splats"],
        "splats": made.splats(),
    }
    words = "a blue cube" if kind in ("run", "folder") else "a red cube -> a blue cube"
    tiny = {name: value for name, value in TINY.items() if name != "splats"}
    edited = splatgen.edit(
        sources[kind], words, out=tmp_path, **{**tiny, "steps": 1, "output": {"frames": 0}}
    )
    config = read_file(edited.files["config"])
    assert (config["source"], config["prompt"]) == ("a red cube", "a blue cube")
    assert '<img src="data:image/png;base64,' in edited._repr_html_()


def test_a_comparison_has_a_table(tmp_path: Path) -> None:
    found = splatgen.compare("a red cube", ["sds", "csd"], seeds=1, out=tmp_path, **{**TINY, "steps": 1})
    assert isinstance(found, SweepResult)
    assert "| csd " in found.table
    assert "<pre>" in found._repr_html_()
    assert "base64" in found._repr_html_()
    assert str(found.folder) in str(found)


def test_a_sweep_and_what_its_runs_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {**TINY, "steps": 1, "out": tmp_path}
    prompts = ["a red cube", " a red cube ", "a blue cube", "a corgi"]
    found = splatgen.sweep(
        prompts, ["sds"], seeds=1, axes={"guidance.scale": [1, 2]}, skip_unknown=True, **given
    )
    said = capsys.readouterr().err
    assert "1 prompt ('a red cube') more than once" in said
    assert "left out: 1 prompt ('a corgi')" in said
    assert [row["prompt"] for row in found.rows] == ["a red cube"] * 2 + ["a blue cube"] * 2
    assert {row["method"] for row in found.rows} == {"sds, guidance.scale=1", "sds, guidance.scale=2"}
    assert all(row["status"] == "done" for row in found.rows)
    measured = splatgen.evaluate(found, ["cost", "splats"], size=32, progress=False)
    assert measured.path == found.folder / "eval.jsonl"
    assert len(measured.path.read_text().splitlines()) == len(measured.rows) == 4
    assert all(row["splats/count"] > 0 for row in measured.rows)
    assert "splats/count" in measured.table
    assert str(measured.path) in measured._repr_html_()
    run = found.folder / found.rows[0]["folder"]
    other = splatgen.evaluate([run], ["splats"], out=tmp_path / "one.jsonl", size=32, progress=False)
    assert [row["run"] for row in other.rows] == [str(run)]


def test_a_sweep_of_a_file_and_what_it_refuses(tmp_path: Path) -> None:
    given = {**TINY, "out": tmp_path / "made"}
    with pytest.raises(ValueError, match="the list holds no prompt"):
        splatgen.sweep([" "], **given)
    with pytest.raises(ValueError, match=r"'nowhere\.txt' does not exist"):
        splatgen.sweep("nowhere.txt", **given)
    with pytest.raises(ConfigError, match="prompts come first"):
        splatgen.sweep(["a red cube"], **given, prompt="a blue cube")
    with pytest.raises(ConfigError, match="a value is there twice"):
        splatgen.sweep(["a red cube"], axes={"guidance.scale": [1, 1]}, **given)
    with pytest.raises(ConfigError, match="it has no value"):
        splatgen.sweep(["a red cube"], axes={"guidance.scale": []}, **given)
    (tmp_path / "prompts.txt").write_text("a red cube\na corgi\n")
    with pytest.raises(Failure, match="'a corgi'"):
        splatgen.sweep(tmp_path / "prompts.txt", **given)
    assert not (tmp_path / "made").exists()


def test_pictures_of_splats(made: RunResult, tmp_path: Path) -> None:
    seen = splatgen.render(made, azimuth=(0.0, 180.0), size=24, device="cpu")
    assert seen.rgb.shape == (2, 24, 24, 3)
    assert seen.rgb.dtype == np.uint8
    np.testing.assert_array_equal(
        splatgen.render(made.splats(), azimuth=0.0, size=24, device="cpu").rgb[0], seen.rgb[0]
    )
    assert seen.png().startswith(b"\x89PNG")
    assert "data:image/png" in seen._repr_html_()
    with pytest.raises(ValueError, match="choose one of"):
        splatgen.render(made, background="pink")
    assert splatgen.save(made.splats(), tmp_path / "x.spz") == 0
    assert len(splatgen.load(tmp_path / "x.spz")) == len(made.splats())


def test_text_in_a_page_is_text(made: RunResult) -> None:
    page = dataclasses.replace(made, prompt="<script>")._repr_html_()
    assert "<script>" not in page


def test_a_stopped_run_says_how_to_go_on(tmp_path: Path) -> None:
    stopped = RunResult(folder=tmp_path, status="stopped", step=1, prompt="", rewards={})
    with pytest.raises(ValueError, match="resume"):
        stopped.splats()
    assert "stopped" in stopped._repr_html_()


def test_it_runs_in_a_thread(tmp_path: Path) -> None:
    """Where no signal can be taken."""
    found: list[RunResult] = []
    options = {**TINY, "steps": 1, "output": {"frames": 0, "size": 32}}
    thread = threading.Thread(
        target=lambda: found.append(splatgen.generate("a red cube", out=tmp_path, **options))
    )
    thread.start()
    thread.join(300)
    assert found[0].status == "done"


def test_progress_is_told_on_stderr_or_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {**TINY, "steps": 1, "output": {"frames": 0, "size": 32}}
    splatgen.generate("a red cube", out=tmp_path, **{**options, "progress": True})
    told = capsys.readouterr()
    assert "step 1/1" in told.err
    splatgen.generate("a red cube", out=tmp_path, **options)
    silent = capsys.readouterr()
    assert silent.err == silent.out == told.out == ""


def test_pictures_count() -> None:
    assert len(Pictures(rgb=np.zeros((3, 2, 2, 3), np.uint8))) == 3
