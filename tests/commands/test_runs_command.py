"""`splatgen runs`: what there is, how large, and that nothing else is ever deleted."""

from __future__ import annotations

import io
import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from splatgen.runs import atomic, listing, lock, run_folder
from splatgen.runs.run_folder import Run


def make(out, prompt, status="done", days=0, name=None, checkpoint=1000):
    run = run_folder.create(out, prompt, command=["test"], config={}, name=name)
    (run.checkpoints / "step-000004").mkdir()
    (run.checkpoints / "step-000004" / "splats.safetensors").write_bytes(bytes(checkpoint))
    run_folder.update(run, status=status, steps=4)
    began = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
    atomic.write_json(run.run_json, {**run_folder.read(run), "started": began})
    return run.folder


@pytest.fixture
def out(tmp_path):
    """Three runs, one of them of a comparison, and things that are none."""
    folder = tmp_path / "outputs"
    make(folder, "a red cube", days=9, name="old", checkpoint=2_000_000)
    make(folder, "a blue ball", status="stopped", days=2, name="middle")
    (folder / "compared").mkdir()
    make(folder / "compared", "a green torus", days=1, name="sds-0")
    (folder / "notes").mkdir()
    (folder / "notes" / "keep.txt").write_text("mine")
    return folder


def listed(done):
    return [line.split()[-1] for line in done.out.splitlines() if line and "in checkpoints" not in line]


def test_all_are_listed_newest_first_with_status_and_size(cli, out):
    done = cli("runs", "--out", out)
    assert done.code == 0
    assert listed(done) == ["compared/sds-0", "middle", "old"]
    assert "done      2.0 MB old" in done.out
    assert "3 runs, 2.0 MB, of them 2.0 MB in checkpoints" in done.out
    data = json.loads(cli("runs", "--out", out, "--json").out)["runs"]
    assert [one["prompt"] for one in data] == ["a green torus", "a blue ball", "a red cube"]
    assert data[2]["checkpoint_bytes"] == 2_000_000


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--match", "RED"], ["old"]),
        (["--status", "stopped"], ["middle"]),
        (["--status", "stopped", "done", "--older", "1.5"], ["middle", "old"]),
        (["middle"], ["middle"]),
        (["--match", "corgi"], []),
    ],
)
def test_filters(cli, out, words, found):
    done = cli("runs", *words, "--out", out)
    assert (done.code, listed(done)) == (0, found)
    assert ("no such runs" in done.err) == (not found)


def test_one_that_was_killed_one_at_work_and_one_that_is_broken(cli, tmp_path):
    for name in ("killed", "running", "broken"):
        make(tmp_path, "a red cube", status="running", name=name)
    (tmp_path / "broken" / "run.json").write_text("{")
    with lock.held(tmp_path / "running"):
        done = cli("runs", "--out", tmp_path)
        for name in ("killed", "running", "broken"):
            assert any(line.startswith(name) and line.endswith(name) for line in done.out.splitlines())
        refused = cli("runs", "running", "--delete", "--yes", "--out", tmp_path)
        assert refused.code == 2
        assert f"is at work in process {os.getpid()}" in refused.err
    assert (tmp_path / "running" / "run.json").is_file()


def test_lines_fit_80_columns(cli, tmp_path):
    run_folder.create(tmp_path, "a " + "very " * 40 + "red cube", command=["test"], config={})
    run_folder.create(tmp_path, "x" * 60, command=["test"], config={})
    assert max(len(line) for line in cli("runs", "--out", tmp_path).out.splitlines()) <= 80
    assert [listing_size(n) for n in (0, 99_949_999, 999_000_000, 1_234_000_000)] == [
        "0.0 MB",
        "99.9 MB",
        "999 MB",
        "1.2 GB",
    ]


def listing_size(count):
    from splatgen.commands.runs import megabytes

    return megabytes(count)


def test_what_is_named_or_filtered_is_deleted_and_nothing_else(cli, out):
    done = cli("runs", "--status", "stopped", "--delete", "--yes", "--out", out)
    assert (done.code, done.out) == (0, f"{out / 'middle'}\n")
    assert not (out / "middle").exists()
    done = cli("runs", out / "compared" / "sds-0", "--delete", "--yes", "--out", out)
    assert done.code == 0
    assert sorted(path.name for path in out.iterdir()) == ["compared", "notes", "old"]
    assert (out / "notes" / "keep.txt").read_text() == "mine"


def test_checkpoints_alone_go_and_the_object_stays(cli, out):
    (out / "old" / "splats.ply").write_text("mine")
    only_there = cli("runs", "middle", "--delete-checkpoints", "--yes", "--out", out)
    assert (only_there.code, only_there.out) == (2, "")
    assert "middle has nothing but its checkpoints" in only_there.err
    assert (out / "middle" / "checkpoints" / "step-000004").is_dir()
    done = cli("runs", "old", "--delete-checkpoints", "--yes", "--out", out)
    assert "deleted the checkpoints of 1 run, 2.0 MB" in done.err
    assert (out / "old" / "splats.ply").read_text() == "mine"
    assert list((out / "old" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--delete"], "say which runs"),
        (["--delete-checkpoints", "--yes"], "say which runs"),
        (["old", "--delete"], "nothing is deleted; --yes deletes without asking"),  # nobody can be asked
        (["nowhere", "--delete", "--yes"], "nowhere is no run"),
        (["notes", "--delete", "--yes"], "notes is no run"),
        (["../outputs", "--delete", "--yes"], "is no run"),
        (["--match", "corgi", "--delete", "--yes"], "no such runs"),
        (["--status", "over"], "--status 'over': give one of running, done"),
        (["--older", "-1"], "--older -1: give a number of days"),
        (["--older", "nan"], "--older nan: give a number of days"),
        (["old", "--delete", "--delete-checkpoints"], "give one of the two"),
    ],
)
def test_what_is_refused_deletes_nothing(cli, out, words, message, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    before = listing.size(out)
    done = cli("runs", *words, "--out", out)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert listing.size(out) == before


def test_a_folder_of_runs_given_as_a_run_says_how_to_list_it(cli, out):
    done = cli("runs", out)
    assert (done.code, done.out) == (2, "")
    assert f"{out} is no run: to list a folder, splatgen runs --out {out}" in done.err
    assert done.err.count("\n") == 1


def test_a_link_to_a_run_is_not_followed(cli, out, tmp_path):
    elsewhere = make(tmp_path / "elsewhere", "a red cube", name="precious")
    (out / "link").symlink_to(elsewhere)
    assert "link" not in cli("runs", "--out", out).out
    assert cli("runs", "link", "--delete", "--yes", "--out", out).code == 2
    assert Run(folder=elsewhere).run_json.is_file()


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_on_a_terminal_it_asks(cli, out, monkeypatch, answer, gone):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    done = cli("runs", "old", "--delete", "--out", out)
    assert "splatgen: delete 1 run, 2.0 MB? [y/N] " in done.err
    assert (out / "old").exists() != gone


def test_no_folder_yet_is_no_error(cli, tmp_path):
    done = cli("runs", "--out", tmp_path / "nothing")
    assert (done.code, done.out) == (0, "")
    assert "no such runs" in done.err
