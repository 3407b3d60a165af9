"""`splatgen compare`: what it refuses, and what a user gets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from splatgen.cli import main
from splatgen.commands.common import checks
from splatgen.commands.compare import read
from splatgen.worlds.toybox import weights_folder

needs_weights = pytest.mark.skipif(
    any(checks.missing_weights(name, weights_folder()) for name in ("mini-prior", "mini-reward", "judge")),
    reason="the toybox weights are not there",
)
TINY = ["--prior", "toybox-mini", "--reward", "toybox-mini", "--steps", "2", "--views.count", "2"]
TINY += ["--splats.count", "60", "--output.size", "32", "--views.size", "16"]

REFUSALS: list[tuple[list[str], str]] = [
    ([], "the prompt is empty"),
    (["a red cube", "--config", "edit.json"], "a comparison edits nothing"),
    (["a red cube", "--methods", "sds", "sdz"], "no method 'sdz'; did you mean"),
    (["a red cube", "--methods", "sds", "sds+psb"], "no method 'sds+psb'"),
    (["a red cube", "--methods", "sds", "preset:psx"], "no preset 'psx'; did you mean 'psd'?"),
    (["a red cube", "--methods", "sds", "psd", "sds"], "the method 'sds' is there twice"),
    (["a red cube", "--methods", "psd", "sds+psd"], "sds+psd and psd are the same method"),
    (["--methods", "sds", "a red cube"], "put it before --methods"),
    (["a red cube", "--methods"], "no methods"),
    (["a red cube", "--seeds", "0"], "--seeds 0: give 1 to 1000"),
    (["a red cube", "--methods", "sds", "psd", "--sdi.tau", "0.1"], "no method of sds, psd uses that"),
    (["a red cube", "--ascent.weight", "2"], "ascent.weight is 2.0"),
    (["a red cube", "--weighted.candidates", "2"], "method rewardsds: weighted.candidates is 2"),
    (["a red cube", "--score", "sdi"], "--score: scores and preferences come from --methods"),
    (["a red cube", "--preference=psd"], "--preference=psd: scores and preferences come"),
    (["a red cube", "--guidance.scale", "1"], "method psd: guidance.scale is 1.0"),
    (["a red cube", "--reward", "hpsv9"], "no reward 'hpsv9'"),
    (["a corgi"], "the nearest prompt it can do is"),
    (["--resume", "."], "has no sweep.json"),
    (["--resume", "broken"], "holds no prompts, methods and seeds"),
    (["--resume", ".", "--steps", "4"], "give only --workers"),
    (["a red cube", "--resume", "."], "give only --workers"),
]


@pytest.mark.parametrize(("words", "message"), REFUSALS)
def test_refusals_are_two_one_line_and_leave_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken").mkdir()
    Path("broken/sweep.json").write_text('{"methods": {}}')
    Path("edit.json").write_text('{"source": "a blue cube"}')
    done = cli("compare", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("splatgen: error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "edit.json"]


def test_refusals_import_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from splatgen.cli import main
assert main(["compare", "--help"]) == 0
for words in {[words for words, _ in REFUSALS[::3]]!r}:
    assert main(["compare", *words]) == 2, words
heavy = {{"torch", "numba", "diffusers", "PIL"}} & set(sys.modules)
assert not heavy, heavy
"""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sweep.json").write_text('{"seeds": [1]}')
    (tmp_path / "edit.json").write_text('{"source": "a blue cube"}')
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


# --- settings ------------------------------------------------------------------------------------


def test_the_base_is_common_and_a_preset_brings_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[splats]\ncount = 77\n")
    words = ["a red cube", "--methods", "sds", "psd", "preset:sdi", "--seed", "5", "--seeds", "2"]
    words += ["--steps", "9", "--prior", "toybox-mini", "--config", str(file), "--preset", "toybox-draft"]
    _, plan = read(words)
    sds, psd, preset = plan.methods.values()
    assert list(plan.methods) == ["sds", "psd", "preset:sdi"]
    assert list(plan.seeds) == [5, 6]
    assert [(c.score, c.preference) for c in (sds, psd, preset)] == [
        ("sds", "none"),
        ("sds", "psd"),
        ("sdi", "none"),
    ]
    assert {c.steps for c in (sds, psd, preset)} == {9}
    assert {c.prior for c in (sds, psd, preset)} == {"toybox-mini"}
    assert {c.splats.count for c in (sds, psd, preset)} == {77}
    assert (sds.output.frames, preset.output.frames) == (30, 0)  # the draft's, and none by default
    assert preset.guidance.perp_neg
    assert not sds.guidance.perp_neg


# --- the whole program ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which a comparison was made, and its stdout."""
    import contextlib
    import io

    out, stdout = tmp_path_factory.mktemp("out"), io.StringIO()
    words = ["a red cube", "--methods", "sds", "rewardsds", "--seeds", "2", *TINY, "--quiet"]
    words += ["--holdout-reward", "toybox-judge", "--out", str(out)]
    with contextlib.redirect_stdout(stdout):
        assert main(["compare", *words]) == 0
    return out, stdout.getvalue()


@needs_weights
def test_stdout_is_the_table_and_the_folder(printed: tuple[Path, str]) -> None:
    out, text = printed
    (folder,) = out.iterdir()
    *tables, note, last = text.rstrip("\n").split("\n\n")
    assert all(len(line) <= 80 for line in text.splitlines()[:-1])  # the folder stands alone
    heads = [[c.strip() for c in part.splitlines()[0].strip("| ").split("|")] for part in tables]
    assert {head[0] for head in heads} == {"method"}
    titles = ["runs", "toybox-mini", "toybox-judge (held out)", "IoU", "PSNR dB", "colour error"]
    assert [c for head in heads for c in head[1:]] == [*titles, "judged right", "calls/step", "seconds"]
    for part in tables:
        _, rule, sds, reward = part.splitlines()
        assert set(rule) == {"|", "-"}
        assert len({len(line) for line in part.splitlines()}) == 1
        assert sds.startswith("| sds ")
        assert reward.startswith("| rewardsds ")
    assert "| 2/2 " in tables[0]
    assert "\n".join(tables).count("±") == 6
    # 4 candidates of 2 views with and without the prompt, for half the run
    assert any("| 10.0 (x2.50) " in part for part in tables)
    assert "n = 2." in note
    assert re.fullmatch(r"4 runs in \d+:\d\d\.", note.splitlines()[-1])
    assert last == str(folder)
    assert "-compare-a-red-cube-" in folder.name
    files = {"sweep.json", "sweep.jsonl", "table.md", "sheet.png"}
    assert {p.name for p in folder.iterdir()} == files | {"sds-0", "sds-1", "rewardsds-0", "rewardsds-1"}


@needs_weights
def test_resume_has_nothing_to_do_and_json_is_one_object(cli: Cli, printed: tuple[Path, str]) -> None:
    (folder,) = printed[0].iterdir()
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/splats.ply")}
    done = cli("compare", "--resume", folder, "--json")
    assert done.code == 0, done.err
    assert len(done.err.splitlines()) == 2  # the plan, what is at work, and no run
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/splats.ply")} == written
    data: dict[str, Any] = json.loads(done.out)
    assert Path(data["sheet"]) == folder / "sheet.png"
    assert Path(data["folder"]) == folder
    content = json.loads((folder / "sweep.json").read_text())
    assert {key: data[key] for key in content} == content
    assert len(data["runs"]) == 4
    iou = [run["numbers"]["truth/iou"] for run in data["runs"] if run["method"] == "sds"]
    assert data["table"]["sds"]["truth/iou"]["mean"] == pytest.approx(sum(iou) / 2)
    pair = [
        second["numbers"]["truth/psnr"] - first["numbers"]["truth/psnr"]
        for first in data["runs"]
        for second in data["runs"]
        if (first["method"], second["method"]) == ("sds", "rewardsds") and first["seed"] == second["seed"]
    ]
    difference = data["table"]["rewardsds"]["truth/psnr"]["difference"]
    assert difference["mean"] == pytest.approx(sum(pair) / 2)
    half = 12.7062 * abs(pair[0] - pair[1]) / 2  # t(0.975, 1) s / sqrt 2, with s = |a - b| / sqrt 2
    assert difference["half"] == pytest.approx(half, rel=1e-4, abs=1e-9)


@needs_weights
def test_when_every_run_diverges_the_exit_code_says_so(cli: Cli, tmp_path: Path) -> None:
    wild = ["--steps", "22", "--guidance.scale", "1e38", "--guidance.no-clamp", "--seeds", "1"]
    done = cli("compare", "a red cube", "--methods", "sds", "csd", *TINY, *wild, "--out", tmp_path)
    assert done.code == 4, done.err
    assert done.err.count("diverged: Diverged: no finite gradient") == 2
    assert done.out.count("| 0/1, 1 diverged |") == 2


@needs_weights
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX knows them")
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splatgen.sweeps.worker import Worker

    begin = Worker._attempt

    def interrupted(*given: Any) -> BaseException | None:
        os.kill(os.getpid(), signal.SIGINT)
        return begin(*given)

    monkeypatch.setattr(Worker, "_attempt", interrupted)
    done = cli("compare", "a red cube", "--methods", "sds", "csd", "--seeds", "1", *TINY, "--out", tmp_path)
    (folder,) = tmp_path.iterdir()
    assert done.code == 130, done.err
    assert f"continue with: splatgen compare --resume {folder}" in done.err
    assert "| 0/1, 1 stopped |" in done.out
    monkeypatch.setattr(Worker, "_attempt", begin)
    done = cli("compare", "--resume", folder, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("| 1/1 ") == 2
