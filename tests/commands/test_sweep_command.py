"""`splatgen sweep`, `eval` and `report`: what they refuse, and what a user gets."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from splatgen.cli import main
from splatgen.commands.common import checks, sweeping
from splatgen.commands.common.progress import duration
from splatgen.commands.common.sweep_words import about_stages
from splatgen.commands.sweep import read
from splatgen.config import ConfigError, from_dict, read_preset
from splatgen.config.methods import slots
from splatgen.runs import lock
from splatgen.sweeps import evaluation
from splatgen.sweeps.estimate import model_calls
from splatgen.sweeps.ledger import Outcome, read_rows, read_sweep
from splatgen.sweeps.plan import line_up
from splatgen.sweeps.worker import Worker
from splatgen.worlds.toybox import weights_folder

needs_weights = pytest.mark.skipif(
    any(checks.missing_weights(name, weights_folder()) for name in ("mini-prior", "mini-reward", "judge")),
    reason="the toybox weights are not there",
)
TINY = ["--prior", "toybox-mini", "--reward", "toybox-mini", "--steps", "2", "--views.count", "2"]
TINY += ["--splats.count", "60", "--output.size", "32", "--views.size", "16", "--device", "cpu"]

MANY = ",".join(map(str, range(1, 600)))
REFUSALS: list[tuple[list[str], int, str]] = [
    ([], 2, "no prompts: give a file of them, or a set: shelf-100"),
    (["nothing.txt"], 2, "does not exist: give a file of prompts"),
    (["a red cube"], 2, "for one prompt: splatgen compare"),
    (["folder"], 2, "is a folder: give a file of prompts"),
    (["prompts.doc"], 2, "has none of the suffixes .txt, .csv, .json, .jsonl"),
    (["empty.txt"], 2, "holds no prompt"),
    (["huge.txt"], 2, "has 10 MB: a file of prompts has 4 at most"),
    (["corgi.txt"], 2, "1 prompt ('a corgi') of 2 can't be made: --skip-unknown leaves them out"),
    (["hats.txt", "--skip-unknown"], 2, "none of 1 prompts can be made"),
    (["two.txt", "--methods", "sdz"], 2, "no method 'sdz'"),
    (["two.txt", "--score", "sdi"], 2, "scores and preferences come from --methods"),
    (["two.txt", "--set", "guidance.scale"], 2, "write KEY=A,B,C"),
    (["two.txt", "--set", "guidance.scale=2,3", "--set", "guidance.scale=4"], 2, "--set has a key twice"),
    (["two.txt", "--set", "guidance.skale=2"], 2, "did you mean guidance.scale"),
    (["two.txt", "--methods", "sds", "--set", "psd.rho=0,1"], 2, "no method of sds uses psd"),
    (["two.txt", "--workers", "0"], 2, "--workers 0: give 1 to 1024"),
    (
        ["two.txt", "--ray", "local", "--gpus", "1.5"],
        2,
        "--gpus 1.5: give a share up to 1, or a whole number",
    ),
    (
        ["two.txt", "--seeds", "1000", "--set", f"steps={','.join(map(str, range(1, 600)))}"],
        2,
        "1,000,000 runs",
    ),
    (["--resume", "folder"], 2, "has no sweep.json"),
    (["two.txt", "--resume", "folder"], 2, "--resume takes everything from the folder"),
]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of prompts, which is the working one."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    texts = {
        "two.txt": "a red cube\na blue sphere\n",
        "empty.txt": "\n\n",
        "prompts.doc": "a red cube\n",
        "corgi.txt": "a red cube\na corgi\n",
        "hats.txt": "a hat of felt\n",
        "huge.txt": "a red cube\n" * 1_000_000,
    }
    for name, text in texts.items():
        Path(name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(("words", "code", "message"), REFUSALS)
def test_refusals_are_one_line_and_leave_nothing(
    cli: Cli, prompts: Path, words: list[str], code: int, message: str
) -> None:
    before = sorted(prompts.iterdir())
    given = ["--prior", "toybox"] if words and "--resume" not in words else []
    done = cli("sweep", *words, *given)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("splatgen: error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert sorted(prompts.iterdir()) == before


def test_without_ray_a_line_says_how(cli: Cli, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    for words in (["--workers", "2"], ["--ray", "auto"]):
        done = cli("sweep", "two.txt", *words)
        assert (done.code, done.out) == (3, "")
        assert "takes Ray, which is not installed: pip install 'splatgen[ray]'" in done.err


def test_refusals_and_plans_import_no_torch(prompts: Path) -> None:
    code = f"""
import sys
from splatgen.cli import main
for words in {[words for words, _, _ in REFUSALS[:12:3]]!r}:
    assert main(["sweep", *words, "--prior", "toybox"]) == 2, words
assert main(["sweep", "two.txt", "--prior", "toybox", "--dry-run", "--device", "cpu"]) == 0
assert main(["eval", "--list"]) == 0
assert main(["report", "folder"]) == 2
heavy = {{"torch", "numba", "diffusers", "PIL", "ray"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 prompts x 4 methods x 3 seeds: 24 runs, about " in done.stderr


def test_the_plan_has_every_axis(prompts: Path) -> None:
    words = ["two.txt", "--methods", "sds", "preset:sdi", "--set", "guidance.scale=2,3", "--seed", "5"]
    _, plan = read([*words, "--seeds", "2", "--prior", "toybox-mini"])
    assert list(plan.methods) == [
        f"{m}, guidance.scale={s}" for m in ("sds", "preset:sdi") for s in (2, 3)
    ]  # fmt: skip
    assert (plan.prompts, plan.seeds) == (("a red cube", "a blue sphere"), (5, 6))
    assert {c.prior for c in plan.methods.values()} == {"toybox-mini"}


def test_an_included_set_is_known_by_its_name() -> None:
    _, plan = read(["shelf-100", "--preset", "shelf", "--methods", "sds"])
    assert len(plan.prompts) == 100
    assert plan.first.prior == "shelf"


def test_stages_are_a_presets_own_no_methods_and_refused_elsewhere(tmp_path: Path) -> None:
    assert read_preset("shelf")["stages"]
    options, plan = read(["shelf-100", "--preset", "shelf", "--methods", "csd", "preset:shelf"])
    assert plan.methods["csd"].stages == ()
    assert list(plan.methods["preset:shelf"].stages) == read_preset("shelf")["stages"]
    assert about_stages(options).startswith("the stages of the preset shelf are left out: methods have one")
    assert about_stages(read(["shelf-100", "--preset", "toybox", "--methods", "csd"])[0]) == ""
    (tmp_path / "own.toml").write_text("[[stages]]\nshare = 0.5\n[[stages]]\nshare = 0.5\n")
    with pytest.raises(ConfigError, match="method sds has stages"):
        read(["shelf-100", "--config", str(tmp_path / "own.toml"), "--methods", "sds"])


def test_a_disk_that_is_too_small_is_said_before(
    cli: Cli, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping.shutil, "disk_usage", lambda _: type("U", (), {"free": 60 * 2**20})())
    done = cli("sweep", "two.txt", "--seeds", "100", "--prior", "toybox")
    assert done.code == 6
    assert "60 MB free in" in done.err.splitlines()[-1]
    assert "use another --out" in done.err


# The whole program


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A sweep's folder, and what the command printed."""
    out, stdout, stderr = tmp_path_factory.mktemp("out"), io.StringIO(), io.StringIO()
    file = out / "prompts.csv"
    file.write_text('id,prompt\n1,a red cube\n2,a blue sphere\n3,"a red cube"\n4,a corgi\n')
    words = [str(file), "--methods", "sds", "csd", "--seeds", "1", *TINY, "--skip-unknown"]
    words += ["--holdout-reward", "toybox-judge", "--out", str(out)]
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        assert main(["sweep", *words]) == 0
    (folder,) = out.glob("*-sweep-*")
    return folder, stdout.getvalue(), stderr.getvalue()


@needs_weights
def test_a_sweep_prints_its_plan_its_runs_and_its_table(swept: tuple[Path, str, str]) -> None:
    folder, out, err = swept
    lines = err.splitlines()
    assert "1 prompt ('a red cube') more than once: taken once" in lines[0]
    assert "left out: 1 prompt ('a corgi')" in lines[1]
    assert "2 prompts x 2 methods x 1 seed: 4 runs, about 32 model calls, about 0:0" in lines[2]
    assert (
        sum(bool(re.search(r"\d/4 \w+, seed 0, a .*: done, toybox-mini -?0.*, IoU ", line)) for line in lines)
        == 4
    )
    assert [line for line in lines if line.startswith("splatgen: in ")] == [f"splatgen: in {folder}"]
    assert sum(bool(re.search(r"; \d+:\d\d left$", line)) for line in lines) == 3
    assert out.splitlines()[-1] == str(folder)
    assert all(len(line) <= 80 for line in out.splitlines()[:-1])
    assert len(read_rows(folder)) == 4
    assert (folder / "table.md").read_text().startswith("| method | runs | toybox-mini ")
    assert "seconds" not in (folder / "table.md").read_text()
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["0000-a-red-cube", "0001-a-blue-sphere"]


def test_what_is_left_comes_from_the_calls_that_were_seen() -> None:
    bases = {name: from_dict({"prior": "toybox", **slots(name)}) for name in ("sds", "dreamdpo")}
    plan = line_up(["a red cube"], bases, [0, 1])
    announcer = sweeping.Announcer(plan, missing=plan.tasks()[:3], quiet=True)
    announcer.began -= 1000.0
    assert announcer.left() == ""
    first, *rest = plan.tasks()[:3]
    announcer.end(Outcome.of(first, status="done"))
    times = sum(model_calls(task.config) for task in rest) / model_calls(first.config)
    assert times > 2.5
    assert announcer.left() == f"; {duration(1000.0 * times)} left"
    for task in rest:
        announcer.end(Outcome.of(task, status="done"))
    assert announcer.left() == ""


@needs_weights
def test_a_run_of_a_sweep_is_an_ordinary_run(cli: Cli, swept: tuple[Path, str, str]) -> None:
    run = swept[0] / "0001-a-blue-sphere" / "csd-0"
    done = cli("resume", run, "--quiet")
    assert (done.code, done.out.strip()) == (0, str(run))


@needs_weights
def test_two_in_one_folder_are_refused(cli: Cli, swept: tuple[Path, str, str]) -> None:
    with lock.held(swept[0]):
        done = cli("sweep", "--resume", swept[0])
    assert done.code == 2
    assert "is at work in process" in done.err.splitlines()[-1]


@needs_weights
def test_poisoned_runs_are_tried_twice_listed_and_tried_again_by_a_resume(
    cli: Cli, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, tries = Worker._attempt, []

    def poisoned(self: Worker, config, *rest):  # type: ignore[no-untyped-def]
        if config.prompt == "a red cube" and config.score == "csd":
            tries.append(config)
            return ZeroDivisionError("a poisoned run")
        return inside(self, config, *rest)

    monkeypatch.setattr(Worker, "_attempt", poisoned)
    words = ["--methods", "sds", "csd", "--seeds", "1", *TINY, "--quiet", "--out", "made"]
    done = cli("sweep", "two.txt", *words)
    assert done.code == 0
    assert len(tries) == 2
    assert "| 1/2, 1 failed |" in done.out
    assert "csd, seed 0, a red cube: ZeroDivisionError: a poisoned run" in done.out
    (folder,) = Path("made").iterdir()
    monkeypatch.setattr(Worker, "_attempt", inside)
    assert cli("sweep", "--resume", folder, "--quiet").code == 0
    assert [o.status for o in read_sweep(folder).outcomes] == ["done"] * 4


@needs_weights
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX knows them")
def test_ctrl_c_stops_with_a_checkpoint(cli: Cli, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Worker._attempt

    def interrupted(self: Worker, *given):  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), signal.SIGINT)
        return inside(self, *given)

    monkeypatch.setattr(Worker, "_attempt", interrupted)
    done = cli("sweep", "two.txt", "--methods", "sds", "--seeds", "1", *TINY, "--out", "made")
    (folder,) = Path("made").iterdir()
    assert done.code == 130, done.err
    assert f"continue with: splatgen sweep --resume {folder}" in done.err
    assert [o.status for o in read_sweep(folder).outcomes] == ["stopped", "waiting"]


# Evaluation and report


@needs_weights
def test_an_evaluation_has_a_row_a_run_and_a_report_quotes_both(
    cli: Cli, swept: tuple[Path, str, str]
) -> None:
    folder = swept[0]
    done = cli(
        "eval", folder, "--size", "64", "--metrics", "truth", "splats", "cost", "toybox-judge", "--quiet"
    )
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == str(folder / "eval.jsonl")
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    assert [(r["method"], r["prompt"]) for r in rows] == [
        (o.method, o.prompt) for o in read_sweep(folder).outcomes
    ]
    for row, outcome in zip(rows, read_sweep(folder).outcomes, strict=True):
        assert row["truth/iou"] == pytest.approx(outcome.numbers["truth/iou"])
        assert row["cost/calls"] == pytest.approx(2 * outcome.numbers["cost/model_calls"])
        assert 0 < row["splats/count"] < 200
    done = cli("report", folder)
    assert (done.code, done.out.strip()) == (0, str(folder / "report.html"))
    page, table = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    mean = sum(o.numbers["truth/iou"] for o in read_sweep(folder).outcomes if o.method == "sds") / 2
    assert f"{mean:.3f}" in table
    assert f"<td>{mean:.3f}</td>" in page
    assert "truth/ssim" in table
    assert "a red cube" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing beside it
    assert page.count("data:image/webp") == 4
    assert (folder / "report.tex").read_text().count(r"\\") == 3


@needs_weights
def test_a_single_run_is_evaluated(cli: Cli, swept: tuple[Path, str, str], tmp_path: Path) -> None:
    run = swept[0] / "0000-a-red-cube" / "sds-0"
    done = cli("eval", run, "--metrics", "splats", "--size", "32", "--out", tmp_path / "a.jsonl", "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)
    assert (row["run"], row["status"], row["method"], row["views"]) == (
        str(run),
        "done",
        "sds+none",
        "random-10",
    )


@needs_weights
def test_runs_without_a_truth_are_counted(
    cli: Cli, swept: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splatgen.sweeps.metrics.has_truth", lambda config: False)
    run = swept[0] / "0000-a-red-cube" / "sds-0"
    done = cli("eval", run, "--metrics", "truth", "--size", "32", "--out", tmp_path / "a.jsonl")
    assert done.code == 0, done.err
    assert "no truth for 1 of 1: only embedded priors' runs have one" in done.err


@needs_weights
def test_an_evaluation_that_is_broken_off_leaves_what_it_measured(
    cli: Cli, swept: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measured = tmp_path / "a.jsonl", evaluation.evaluate
    out.write_text("of an earlier one")

    def broken_off(*given: Any) -> Iterator[Any]:
        rows = measured(*given)
        yield next(rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", broken_off)
    done = cli("eval", swept[0], "--metrics", "splats", "--size", "32", "--out", out)
    assert done.code == 130
    assert "splatgen: 4 runs, by splats\n" in done.err
    assert f"the rows measured so far are in {tmp_path / 'a-part.jsonl'}" in done.err
    assert len((tmp_path / "a-part.jsonl").read_text().splitlines()) == 1
    assert out.read_text() == "of an earlier one"


@needs_weights
def test_rows_go_to_parquet(cli: Cli, swept: tuple[Path, str, str], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    done = cli(
        "eval", swept[0], "--metrics", "splats", "--size", "32", "--out", tmp_path / "a.parquet", "--quiet"
    )
    assert done.code == 0, done.err
    assert parquet.read_table(tmp_path / "a.parquet").num_rows == 4


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["eval"], 2, "no runs: give run folders"),
        (["eval", "nothing", "--metrics", "splats"], 2, "nothing does not exist: give run folders"),
        (["eval", "folder", "--metrics", "splats"], 2, "folder holds no run"),
        (["eval", "folder", "--metrics", "iou"], 2, "no metric 'iou'"),
        (
            ["eval", "folder", "--metrics", "hpsv2"],
            3,
            "the weights of hpsv2 are not here: `splatgen fetch hpsv2`",
        ),
        (["eval", "folder", "--metrics", "clip-iqa"], 3, "`splatgen fetch clip-iqa`"),
        (["eval", "folder", "--metrics", "clip-b32"], 3, "`splatgen fetch clip-b32`"),
        (["eval", "folder", "--metrics", "mps"], 2, "no metric 'mps': it is published as a pickled program"),
        (["eval", "folder", "--size", "3"], 2, "--size 3: give 16 to 2048"),
        (["eval", "folder", "--out", "a.csv"], 2, "a file that ends in .jsonl or .parquet"),
        (["report", "folder"], 2, "has no sweep.json"),
    ],
)
def test_what_can_not_be_evaluated_is_one_line(
    cli: Cli, prompts: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(prompts / "cache"))
    done = cli(*words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err.splitlines()[-1]
    assert done.err.count("\n") == 1
