"""A run is stopped or killed, and somebody looks at what there is."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Cli
from faults import only
from test_faults import MINI, RUN, before, needs_weights

from splatgen import formats
from splatgen.cli import main
from splatgen.commands import view
from splatgen.commands.common import execution
from splatgen.runs import lock, run_folder
from splatgen.runs.run_folder import Run

pytestmark = [
    needs_weights,
    pytest.mark.skipif(sys.platform == "win32", reason="signals and locks as POSIX knows them"),
]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that Ctrl-C stopped; look, don't touch."""
    out = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        before(patch, "advance", lambda: os.kill(os.getpid(), signal.SIGINT), call=3)
        assert main([*RUN, "--out", str(out)]) == 130
    return only(out)


@pytest.fixture
def killed(stopped: Path, tmp_path: Path) -> Path:
    """What kill -9 would have left of it."""
    folder = Path(shutil.copytree(stopped, tmp_path / "killed"))
    for name in ("splats.ply", "preview.png"):
        (folder / name).unlink()
    run_folder.update(Run(folder=folder), status="running")
    return folder


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_term_and_a_closed_terminal_leave_the_last_step_to_look_at(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(signal, name)
    before(monkeypatch, "advance", lambda: os.kill(os.getpid(), number), call=2)
    done = cli(*RUN, "--out", tmp_path)
    assert done.code == 128 + number
    run = only(tmp_path)
    assert done.out == f"{run}\n"
    assert "stopped after step 2: splats.ply, preview.png; continue with: splatgen resume" in done.err
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"


def test_under_nohup_a_closed_terminal_is_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before(monkeypatch, "advance", lambda: os.kill(os.getpid(), signal.SIGHUP), call=2)
        assert cli(*RUN, "--out", tmp_path).code == 0
    finally:
        signal.signal(signal.SIGHUP, usual)


def test_render_export_edit_and_view_take_a_stopped_run(cli: Cli, stopped: Path, tmp_path: Path) -> None:
    small = ["--frames", "0", "--size", "16", "--device", "cpu"]
    assert cli("render", stopped, *small, "--out", tmp_path / "p.png").code == 0
    assert cli("export", stopped, tmp_path / "a.spz").code == 0
    assert len(formats.load(tmp_path / "a.spz")) > 0
    edit = [*MINI, "--views.count", "1", "--views.size", "16", "--output.size", "16", "--output.frames", "0"]
    words = ["a red cube -> a blue cube", *edit, "--steps", "1", "--out", tmp_path / "edits"]
    done = cli("edit", stopped, *words)
    assert done.code == 0, done.err
    assert view.record(stopped).status == "stopped"


@pytest.mark.parametrize("verb", ["export", "render"])
def test_a_killed_run_is_looked_at_through_its_checkpoint(
    cli: Cli, killed: Path, tmp_path: Path, verb: str
) -> None:
    rest = [tmp_path / "a.ply"] if verb == "export" else ["--frames", "0", "--size", "16", "--device", "cpu"]
    done = cli(verb, killed, *rest)
    assert done.code == 0, done.err
    assert f"{killed} was not finished: splats.ply is its checkpoint of step 3" in done.err
    assert (killed / "preview.png").is_file()
    assert "was not finished" not in cli("export", killed, tmp_path / "b.ply").err  # now it is there


def test_splats_older_than_the_checkpoint_of_a_killed_run_are_made_again(
    cli: Cli, killed: Path, tmp_path: Path
) -> None:
    cli("export", killed, tmp_path / "a.ply")
    os.utime(killed / "splats.ply", (1.0, 1.0))  # it was stopped, went on, and was killed
    assert "was not finished: splats.ply is" in cli("export", killed, tmp_path / "b.ply").err


def test_a_killed_run_without_a_checkpoint_is_named_with_the_way_on(
    cli: Cli, killed: Path, tmp_path: Path
) -> None:
    shutil.rmtree(killed / "checkpoints")
    done = cli("export", killed, tmp_path / "a.ply")
    assert (done.code, done.out) == (2, "")
    assert f"finish the run first with splatgen resume {killed}" in done.err


def test_of_a_run_at_work_a_copy_is_shown_and_a_second_resume_is_refused(
    cli: Cli, killed: Path, tmp_path: Path
) -> None:
    with lock.held(killed):
        done = cli("export", killed, tmp_path / "a.ply")
        assert f"is at work in process {os.getpid()}" in done.err
        assert "step-000003.ply is its checkpoint of step 3" in done.err
        done = cli("resume", killed, "--quiet")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"splatgen: error: {killed} is at work in process {os.getpid()}, since ")
    assert not (killed / "splats.ply").exists()
    assert cli("resume", killed, "--quiet").code == 0


def test_two_real_processes_do_not_resume_one_run(cli: Cli, killed: Path) -> None:
    command = [sys.executable, "-m", "splatgen.cli", "resume", killed, "--steps", "100000", "--quiet"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while lock.holder(killed) is None:
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        done = cli(*command[3:])
        assert done.code == 2
        assert f"is at work in process {first.pid}" in done.err
        first.send_signal(signal.SIGTERM)
        out, err = first.communicate(timeout=240)
        assert (first.returncode, out) == (143, f"{killed}\n"), err
    finally:
        first.kill()
        first.communicate()
    assert (killed / "splats.ply").is_file()


@pytest.mark.parametrize(("name", "code"), [("SIGHUP", 129), ("SIGTERM", 6)])
def test_a_terminal_that_is_gone_is_no_error_when_it_was_closed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    muted: list[bool] = []
    monkeypatch.setattr(execution, "told", gone)
    monkeypatch.setattr(execution, "mute", lambda: muted.append(True))
    before(monkeypatch, "advance", lambda: os.kill(os.getpid(), getattr(signal, name)), call=2)
    assert cli(*RUN, "--out", tmp_path).code == code
    assert len(muted) == (name == "SIGHUP")
    assert (only(tmp_path) / "splats.ply").is_file()
