"""Full and read-only disks: a small file system of our own under what the command line does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from faults import fingerprint, only, refused
from PIL import Image

from splatgen import formats
from splatgen.cli import main
from splatgen.commands.common import checks
from splatgen.loop import image_run, kept, object_run
from splatgen.runs import checkpoint, video
from splatgen.runs.metrics import read_metrics
from splatgen.scene.splats import random_ball
from splatgen.sweeps.ledger import read_sweep
from splatgen.sweeps.worker import Worker
from splatgen.worlds.toybox import weights_folder

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs, which is Linux's"),
    pytest.mark.skipif(
        any(checks.missing_weights(name, weights_folder()) for name in ("mini-prior", "mini-reward")),
        reason="the miniature toybox weights are not there",
    ),
]
MIB = 2**20
SIZE = 56 * MIB  # a run wants 50 MB free when it starts
MINI = ["--prior", "toybox-mini", "--reward", "toybox-mini", "--device", "cpu", "--quiet"]
TINY = [*MINI, "--views.count", "1", "--views.size", "16", "--splats.count", "60", "--output.size", "16"]
RUN = ["a red cube", *TINY, "--steps", "5", "--output.frames", "0"]
OFTEN = ["--output.checkpoint-seconds", "1e-9"]
NEVER = ["--output.checkpoint-seconds", "0"]


@dataclass(frozen=True)
class Disk:
    """A file system of SIZE bytes."""

    path: Path

    def fill(self, leave: int = 0) -> None:
        """Take all but so many bytes; the kernel gives pages of 4096."""
        with open(self.path / "filler", "ab") as file:
            free = shutil.disk_usage(self.path).free
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), max(free - leave, 1))

    def clear(self) -> None:
        (self.path / "filler").unlink()


def mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs a root that may mount: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", f"size={SIZE}", "splatgen-test", path)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def before(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, event: Callable[[], None], call: int = 1
) -> None:
    """Something happens once, before the n-th call of a function."""
    inside, count = getattr(module, name), iter(range(1, 10**6))

    def eventful(*args: Any, **options: Any) -> Any:
        if next(count) == call:
            event()
        return inside(*args, **options)

    monkeypatch.setattr(module, name, eventful)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], str]:
    """Fingerprints of runs that nothing happens to, each made once."""
    known: dict[str, str] = {}

    def fingerprint_of(words: list[str]) -> str:
        key = " ".join(words)
        if key not in known:
            out = tmp_path_factory.mktemp("whole")
            assert main([*words, "--out", str(out)]) == 0
            known[key] = fingerprint(only(out))
        return known[key]

    return fingerprint_of


def error(cli: Cli, *words: object) -> str:
    """The one line of a command that ends with exit code 6 and prints nothing."""
    done = cli(*words)
    return refused(done.code, done.out, done.err)


def assert_resumes(cli: Cli, run: Path, expected: str) -> None:
    """The run goes on and ends as if nothing had happened, with nothing half-written left."""
    done = cli("resume", run, "--quiet")
    assert (done.code, done.out, done.err) == (0, f"{run}\n", "")
    assert fingerprint(run) == expected
    assert not list(run.rglob(".*"))


# Before there is a run


def test_nothing_is_started_without_room_and_the_line_has_the_numbers(cli: Cli, disk: Disk) -> None:
    ply, out = disk.path / "object.ply", disk.path / "out"
    generator = torch.Generator().manual_seed(1)
    formats.save(random_ball(generator, count=40, radius=0.5, scale=0.1, opacity=0.5), ply)
    disk.fill(leave=40 * MIB)
    for words in (
        ["generate", *RUN],
        ["image", "a red cube", *MINI],
        ["compare", *RUN],
        ["edit", ply, "a red cube -> a blue cube", *MINI],
    ):
        text = error(cli, *words, "--out", out)
        assert "40 MB free, a run needs 50 MB; free some or use another --out" in text
    assert not out.exists()


def test_a_read_only_disk_is_refused_also_for_a_resume(cli: Cli, disk: Disk) -> None:
    assert cli("generate", *RUN, *NEVER, "--out", disk.path / "out").code == 0
    run = only(disk.path / "out")
    kept = fingerprint(run)
    mount("-o", "remount,ro", disk.path)
    words = "no permission to write here; use another --out"
    assert words in error(cli, "generate", *RUN, "--out", disk.path / "out")
    assert words in error(cli, "generate", *RUN, "--out", disk.path / "new" / "out")
    assert words in error(cli, "resume", run, "--steps", "9", "--quiet")
    assert only(disk.path / "out") == run
    assert fingerprint(run) == kept


# While it runs


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    cli: Cli, disk: Disk, whole: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before(patch, object_run, "advance", lambda: disk.fill(leave=500_000), call=4)
        text = error(cli, "generate", *RUN, *OFTEN, "--out", disk.path)
    assert "0.5 MB free, a checkpoint takes 1.0 MB; free some space: " in text
    run = only(disk.path)
    assert checkpoint.load_latest(run / "checkpoints").step == 3
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert "0 MB free, a run needs 50 MB" in error(cli, "resume", run, "--quiet")
    assert checkpoint.load_latest(run / "checkpoints").step == 3
    disk.clear()
    assert_resumes(cli, run, whole(["generate", *RUN, *OFTEN]))


@pytest.mark.parametrize("leave", [0, 8192, 24576])
def test_a_disk_that_fills_up_inside_a_checkpoint_leaves_the_one_before(
    cli: Cli, disk: Disk, whole: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch, leave: int
) -> None:
    """Somebody else takes the room between the look at it and the write."""
    with monkeypatch.context() as patch:
        before(patch, checkpoint, "_write_part", lambda: disk.fill(leave), call=5 * 2 + 2)  # of five parts
        assert "No space left on device: " in error(cli, "generate", *RUN, *OFTEN, "--out", disk.path)
    run = only(disk.path)
    assert checkpoint.load_latest(run / "checkpoints").step == 2
    assert not list((run / "checkpoints").glob(".*"))
    disk.clear()
    assert_resumes(cli, run, whole(["generate", *RUN, *OFTEN]))


def test_a_row_of_metrics_that_does_not_fit_is_torn_off(
    cli: Cli, disk: Disk, whole: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", *RUN, *NEVER, "--steps", "20"]  # a row has some 350 bytes, a page 4096
    with monkeypatch.context() as patch:
        before(patch, object_run, "advance", disk.fill, call=3)
        assert "No space left on device: " in error(cli, *words, "--out", disk.path)
    run = only(disk.path)
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert 3 <= len(rows) < 20
    assert not (run / "metrics.jsonl").read_bytes().endswith(b"\n")  # torn, where the page ends
    disk.clear()
    assert_resumes(cli, run, whole(words))


@pytest.mark.parametrize("moment", ["step", "results"])
def test_a_disk_that_becomes_read_only_ends_the_run_and_a_resume_goes_on(
    cli: Cli,
    disk: Disk,
    whole: Callable[[list[str]], str],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """Our view of it becomes so: the kernel keeps a disk writable on which a file is open for writing."""

    def freeze() -> None:
        run = only(disk.path)
        mount("--bind", run, run)
        mount("-o", "remount,bind,ro", run)

    module, name, call = (object_run, "advance", 4) if moment == "step" else (kept, "write", 1)
    with monkeypatch.context() as patch:
        before(patch, module, name, freeze, call)
        assert "Read-only file system: " in error(cli, "generate", *RUN, *OFTEN, "--out", disk.path)
    run = only(disk.path)
    assert json.loads((run / "run.json").read_text())["status"] == "running"  # it could not be told
    assert checkpoint.load_latest(run / "checkpoints").step == (3 if moment == "step" else 5)
    assert "no permission to write here" in error(cli, "resume", run, "--quiet")
    subprocess.run(["umount", "--lazy", run], check=True)
    assert_resumes(cli, run, whole(["generate", *RUN, *OFTEN]))


# Results


@pytest.mark.parametrize(
    ("leave", "made"),
    [
        (0, set()),
        (4096, set()),
        (8192, {"splats.ply"}),
        (12288, {"splats.ply", "preview.png"}),
        (16384, {"splats.ply", "preview.png", "turntable.mp4"}),  # run.json is what does not fit
    ],
)
def test_results_that_do_not_fit_are_left_out_whole_and_a_resume_makes_them(
    cli: Cli,
    disk: Disk,
    whole: Callable[[list[str]], str],
    monkeypatch: pytest.MonkeyPatch,
    leave: int,
    made: set[str],
) -> None:
    if video.find_ffmpeg() is None:
        pytest.skip("without ffmpeg there is no .mp4")
    words = ["generate", *RUN, *NEVER, "--output.frames", "2"]
    with monkeypatch.context() as patch:
        before(patch, kept, "write", lambda: disk.fill(leave))
        assert "No space left on device: " in error(cli, *words, "--out", disk.path)
    run = only(disk.path)
    others = {"metrics.jsonl", "run.json", "config.json", "checkpoints"}
    assert {path.name for path in run.iterdir()} == made | others
    if "splats.ply" in made:
        assert len(formats.load(run / "splats.ply")) > 0
    disk.clear()
    assert_resumes(cli, run, whole(words))
    assert (run / "turntable.mp4").stat().st_size > 500


def test_an_image_that_does_not_fit_is_made_by_a_resume(
    cli: Cli, disk: Disk, whole: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["image", "a red cube", *MINI, "--steps", "3", "--image.checkpoint-seconds", "0"]
    with monkeypatch.context() as patch:
        before(patch, image_run, "write_images", disk.fill)
        assert "No space left on device: " in error(cli, *words, "--out", disk.path)
    run = only(disk.path)
    assert not (run / "image.png").exists()
    disk.clear()
    assert_resumes(cli, run, whole(words))


def test_a_comparison_on_a_full_disk_is_completed_by_its_resume(
    cli: Cli, disk: Disk, whole: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compare", *RUN, *NEVER, "--steps", "2", "--methods", "sds", "csd", "--seeds", "1"]
    with monkeypatch.context() as patch:
        before(patch, Worker, "_attempt", lambda: disk.fill(500_000), call=2)
        done = cli(*words, "--out", disk.path)
        assert refused(done.code, done.out, done.err)
    folder = only(disk.path)
    assert [o.status for o in read_sweep(folder).outcomes] == ["done", "waiting"]
    disk.clear()
    (folder / ".sheet.0123abcd.tmp.png").touch()  # as a kill would leave it
    assert cli("compare", "--resume", folder, "--quiet").code == 0
    assert fingerprint(folder) == whole(words)
    assert not list(folder.rglob(".*"))


def test_what_is_rendered_or_exported_onto_a_full_disk_replaces_nothing(
    cli: Cli, disk: Disk, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(1)
    splats = random_ball(generator, count=40, radius=0.5, scale=0.1, opacity=0.5)
    formats.save(splats, tmp_path / "object.ply")
    for name in ("a.ply", "turntable.mp4", "preview.png"):
        (disk.path / name).write_bytes(name.encode())
    disk.fill()
    words = [tmp_path / "object.ply", "--frames", "2", "--size", "32", "--device", "cpu"]
    if video.find_ffmpeg() is not None:
        assert "No space left on device: " in error(
            cli, "render", *words, "--out", disk.path / "turntable.mp4"
        )
    assert "No space left on device: " in error(cli, "render", *words, "--out", disk.path / "preview.png")
    done = cli("export", words[0], disk.path / "a.ply", "--overwrite")
    assert done.code == 6
    assert "Traceback" not in done.err
    assert "No space left on device: " in done.err.splitlines()[-1]
    disk.clear()
    for path in disk.path.iterdir():
        assert path.read_bytes() == path.name.encode()


@pytest.mark.parametrize("leave", [0, 4096, 8192])
def test_a_film_that_does_not_fit_names_the_disk_whatever_ffmpeg_says_last(disk: Disk, leave: int) -> None:
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 255, (48, 48, 3), dtype=np.uint8) for _ in range(12)]
    disk.fill(leave)
    with pytest.raises(OSError, match=r"No space left on device: '.*/film\.(mp4|gif)'"):
        video.write_turntable(frames, disk.path / "film")
    with pytest.raises(OSError, match=r"No space left on device: '.*/sheet\.png'"):
        video.write_preview(frames, disk.path / "sheet.png")
    assert [path.name for path in disk.path.iterdir()] == ["filler"]
    disk.clear()
    video.write_preview(frames, disk.path / "sheet.png")
    assert Image.open(disk.path / "sheet.png").size == (192, 144)
