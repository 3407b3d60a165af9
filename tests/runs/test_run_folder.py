"""Run folders: names that can't leave, metadata that survives, metrics that stay valid."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen import __version__
from splatgen.runs import atomic, run_folder


def make(out, prompt="a red cube", **options):
    return run_folder.create(
        out, prompt, command=["splatgen", "generate", prompt], config={"steps": 3}, **options
    )


@settings(deadline=None)
@given(st.text())
def test_slug_of_any_text(prompt):
    name = run_folder.slug(prompt)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert len(name) <= 40


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red Cube, on a table!", "a-red-cube-on-a-table"),
        ("", "untitled"),
        ("🦊", "untitled"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\x\x00y\n", "c-x-y"),
        ("Crème brûlée", "creme-brulee"),
        ("CON", "con-prompt"),
        ("nul", "nul-prompt"),
        ("com1", "com1-prompt"),
        ("lpt9", "lpt9-prompt"),
        ("console", "console"),
        ("x" * 10_000, "x" * 40),
        ("a" * 39 + " b", "a" * 39),
    ],
)
def test_slugs(prompt, name):
    assert run_folder.slug(prompt) == name


def test_importing_imports_no_torch():
    code = "import sys, splatgen.runs.run_folder, splatgen.runs.video; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_create(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    run = make(tmp_path / "a" / "b", seed=7, device="cpu", models={"toybox": "1"})
    assert re.fullmatch(r"\d{8}-\d{6}-a-red-cube-[0-9a-f]{6}", run.id)
    assert run.folder.parent == tmp_path / "a" / "b"
    assert sorted(os.listdir(run.folder)) == ["checkpoints", "config.json", "run.json"]
    assert json.loads(run.config_json.read_text()) == {"steps": 3}
    data = run_folder.read(run)
    assert data["version"] == __version__
    assert data["command"] == "splatgen generate 'a red cube'"
    assert (data["prompt"], data["seed"], data["device"]) == ("a red cube", 7, "cpu")
    assert data["models"] == {"toybox": "1"}
    assert data["status"] == "running"
    assert data["ended"] is None
    assert data["packages"]["torch"].startswith("2.")
    assert datetime.fromisoformat(data["started"]).tzinfo is not None
    assert "hf_verysecret" not in run.run_json.read_text()
    paths = [run.metrics, run.checkpoints, run.splats_ply, run.preview, run.turntable]
    assert [p.name for p in paths] == [
        "metrics.jsonl",
        "checkpoints",
        "splats.ply",
        "preview.png",
        "turntable",
    ]


@pytest.mark.parametrize(
    "prompt", ["", "x" * 10_000, "🦊", "a\nb", "../../x", "/etc", "CON", "a\x00b", "\udc80"]
)
def test_odd_prompts_stay_inside_and_are_kept(tmp_path, prompt):
    run = make(tmp_path, prompt)
    assert run.folder.resolve().parent == tmp_path.resolve()
    assert run_folder.read(run)["prompt"] == prompt


def test_runs_of_one_second_do_not_collide(tmp_path, monkeypatch):
    assert len({make(tmp_path).folder for _ in range(20)}) == 20
    ids = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr(run_folder.secrets, "token_hex", lambda n: next(ids) if n == 3 else "00000000")
    monkeypatch.setattr(
        run_folder, "datetime", namedtuple("D", "now")(lambda *_: datetime(2026, 1, 2, 3, 4, 5))
    )
    assert make(tmp_path).id == "20260102-030405-a-red-cube-aaaaaa"
    assert make(tmp_path).id == "20260102-030405-a-red-cube-bbbbbb"


def test_relative_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make("outputs").folder.parent == Path("outputs")


def test_a_full_disk_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("U", "free")(10 << 20))
    with pytest.raises(OSError, match="10 MB free, a run needs 50 MB") as caught:
        make(tmp_path / "out")
    assert caught.value.errno == 28
    assert os.listdir(tmp_path) == []
    make(tmp_path / "out", min_free_mb=5)


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="use another --out"):
        make(tmp_path / "out")
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="not a folder"):
        make(tmp_path / "file" / "out")


@pytest.mark.parametrize("at", range(4))
def test_a_failed_create_leaves_nothing(tmp_path, monkeypatch, at):
    """Fails at making the folder, at either file, and at the sync after them."""
    calls = {"write_json": [1, 2], "sync_folder": [5]}
    count = {"write_json": 0, "sync_folder": 0}

    def failing(name):
        real = getattr(atomic, name)

        def call(*args):
            count[name] += 1
            if at == 3 and name == "sync_folder" and count[name] == calls[name][0] - 2:
                raise OSError(5, "Input/output error")
            if name == "write_json" and count[name] == at:
                raise KeyboardInterrupt
            return real(*args)

        return call

    for name in calls:
        monkeypatch.setattr(atomic, name, failing(name))
    if at == 0:
        monkeypatch.setattr(
            run_folder, "_make_folder", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only"))
        )
    with pytest.raises((OSError, KeyboardInterrupt)):
        make(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []


def test_a_failed_create_spares_other_runs(tmp_path, monkeypatch):
    other = make(tmp_path / "out")
    monkeypatch.setattr(run_folder, "_metadata", lambda *_args, **_kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == [other.id]


def test_update_and_resume(tmp_path):
    run = make(tmp_path)
    run_folder.update(
        run, splats=12, loss=math.nan, score=np.float32(0.5), tensor=torch.tensor(3), path=tmp_path
    )
    data = run_folder.read(run)
    assert (data["splats"], data["loss"], data["score"], data["tensor"]) == (12, None, 0.5, 3)
    assert data["path"] == str(tmp_path)
    assert data["ended"] is None
    assert 10 < data["peak_memory_mb"] < 100_000
    run_folder.update(run, status="stopped", wall_time_s=100.0)
    assert run_folder.read(run)["ended"] is not None
    again = run_folder.open_run(run.folder)
    run_folder.update(again, status="running")
    data = run_folder.read(again)
    assert 100 <= data["wall_time_s"] < 110  # the time before the resume counts, the pause does not
    assert data["ended"] is None
    assert data["splats"] == 12


def test_update_errors(tmp_path):
    run = make(tmp_path)
    with pytest.raises(ValueError, match="'finished': use one of running, done"):
        run_folder.update(run, status="finished")
    for text in ("{", "[]", ""):
        run.run_json.write_text(text)
        with pytest.raises(ValueError, match=r"run\.json"):
            run_folder.update(run, splats=1)
    with pytest.raises(ValueError, match=r"has no run\.json"):
        run_folder.open_run(tmp_path)


def test_git_hash_only_of_this_checkout(tmp_path, monkeypatch):
    (tmp_path / "site-packages" / "splatgen").mkdir(parents=True)
    monkeypatch.setattr(
        run_folder, "__file__", str(tmp_path / "site-packages" / "splatgen" / "runs" / "run_folder.py")
    )
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # somebody else's
    assert run_folder._git_hash() is None
    assert "git" not in run_folder.read(make(tmp_path))
    (tmp_path / "site-packages" / ".git").mkdir()  # broken
    assert run_folder._git_hash() is None
