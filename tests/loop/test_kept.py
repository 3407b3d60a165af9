"""Whatever ends a run, its last good step can be looked at: in memory at the end, or out of a checkpoint."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from splatgen import formats
from splatgen.config import Config, DensifyOptions, ImageConfig, OutputOptions, SplatOptions, ViewOptions
from splatgen.loop import image_run, kept, object_run
from splatgen.loop.loop import Diverged
from splatgen.loop.snapshot import Channel
from splatgen.runs import checkpoint, lock, run_folder
from splatgen.runs.rng import rng
from splatgen.scene.splats import random_ball


def config(**change):
    values = {
        "prompt": "a red cube",
        "prior": "toybox-mini",
        "reward": ("toybox-mini",),
        "steps": 6,
        "device": "cpu",
        "views": ViewOptions(count=1, size=(16,)),
        "splats": SplatOptions(count=50),
        "densify": DensifyOptions(rounds=0),
        "output": OutputOptions(frames=2, size=16, checkpoint_seconds=1e-9),
    }
    return Config(**{**values, **change})


def start(folder, given=None, **options):
    return object_run.generate(given or config(), out=folder, command=["test"], **options)


def only(folder):
    (found,) = folder.iterdir()
    return run_folder.open_run(found)


def stop_at(step):
    calls = iter(range(10**6))
    return lambda: next(calls) >= step


def middle(splats):
    return splats.means.mean(0)


def assert_looks_like_its_checkpoint(run):
    saved = checkpoint.load_latest(run.checkpoints).parts["splats"]["means"]
    torch.testing.assert_close(middle(formats.load(run.splats_ply)), saved.mean(0), atol=1e-5, rtol=0)
    assert Image.open(run.preview).size == (64, 32)
    assert not list(run.folder.glob("turntable*"))  # that takes long, and somebody waits


def test_a_stopped_run_leaves_its_splats_and_a_preview(tmp_path):
    result = start(tmp_path, should_stop=stop_at(3))
    assert (result.status, result.step) == ("stopped", 3)
    assert_looks_like_its_checkpoint(result.run)
    assert run_folder.read(result.run)["splats"] == 50


def fail_at(monkeypatch, step, error):
    inside = object_run.advance

    def advance(given, models, scene):
        if scene.step >= step:
            raise error
        return inside(given, models, scene)

    monkeypatch.setattr(object_run, "advance", advance)


@pytest.mark.parametrize(
    ("error", "status"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "oom"), (RuntimeError("a bug"), "failed")],
)
def test_a_run_that_fails_leaves_its_last_whole_step(tmp_path, monkeypatch, error, status):
    fail_at(monkeypatch, 3, error)
    channel = Channel()
    with pytest.raises(type(error)):
        start(tmp_path, channel=channel)
    run = only(tmp_path)
    assert_looks_like_its_checkpoint(run)
    about = run_folder.read(run)
    assert (about["status"], about["steps"], about["splats"]) == (status, 3, 50)
    last = channel.take()
    assert (last.status, last.step) == (status, 3)
    said = [channel.messages.get_nowait() for _ in range(channel.messages.qsize())]
    assert str(error) in said[-2]
    assert f"splatgen view {run.folder}" in said[-1]


def test_a_run_that_diverges_leaves_its_last_good_step(tmp_path, monkeypatch):
    inside = object_run.advance

    def advance(given, models, scene):
        seen = inside(given, models, scene)
        return dataclasses.replace(seen, failed=torch.ones(())) if scene.step >= 3 else seen

    monkeypatch.setattr(object_run, "advance", advance)
    with pytest.raises(Diverged, match="last good state"):
        start(tmp_path, config(steps=40, patience=2))
    run = only(tmp_path)
    assert run_folder.read(run)["status"] == "diverged"
    assert_looks_like_its_checkpoint(run)


def test_who_watches_sees_the_end_after_the_files_are_there(tmp_path):
    seen = []

    class Watcher(Channel):
        def put(self, snapshot):
            seen.append((snapshot.status, bool(list(tmp_path.glob("*/splats.ply")))))
            super().put(snapshot)

    channel = Watcher()
    result = start(tmp_path, channel=channel)
    assert seen[-2:] == [("writing its files", False), ("done", True)]
    assert channel.messages.get_nowait().startswith(f"done: {result.run.folder}; ")


def killed(folder, given=None, **options):
    """A run folder as kill -9 leaves it."""
    run = start(folder, given, should_stop=stop_at(3), **options).run
    for path in (run.splats_ply, run.preview):
        path.unlink()
    run_folder.update(run, status="running")
    return run


def test_what_was_killed_is_made_out_of_its_checkpoint(tmp_path):
    run = killed(tmp_path)
    path, step = kept.from_checkpoint(run)
    assert (path, step) == (run.splats_ply, 3)
    assert_looks_like_its_checkpoint(run)
    assert lock.holder(run.folder) is None


def test_of_a_run_at_work_nothing_is_replaced(tmp_path):
    run = killed(tmp_path)
    with lock.held(run.folder):
        path, _ = kept.from_checkpoint(run)
    assert path.name == "step-000003.ply"
    assert len(formats.load(path)) == 50
    assert not run.splats_ply.exists()


def test_a_stopped_edit_is_put_back_where_its_source_was(tmp_path):
    ball = random_ball(rng(1, 0, "test"), count=40, radius=0.5, scale=0.1, opacity=0.5)
    far = dataclasses.replace(ball, means=ball.means + torch.tensor([50.0, 0.0, 0.0]))
    given = config(source="a red cube", prompt="a blue cube")
    result = object_run.edit(given, far, out=tmp_path, command=["test"], should_stop=stop_at(2))
    run = result.run
    stopped = formats.load(run.splats_ply)
    assert abs(float(middle(stopped)[0]) - 50.0) < 0.5
    assert Image.open(run.preview).size == (8 * 16, 2 * 16)  # before and after
    run.splats_ply.unlink()
    kept.from_checkpoint(run)
    again = formats.load(run.splats_ply)
    torch.testing.assert_close(again.means, stopped.means)


def test_a_stopped_image_is_there(tmp_path):
    given = ImageConfig(
        prompt="a red cube", prior="toybox-mini", reward=("toybox-mini",), steps=9, device="cpu"
    )
    result = image_run.generate(given, out=tmp_path, command=["test"], should_stop=stop_at(2))
    assert result.status == "stopped"
    assert np.asarray(Image.open(result.run.folder / "image.png")).std() > 0


def test_a_second_process_is_kept_out_and_changes_nothing(tmp_path):
    run = start(tmp_path, should_stop=stop_at(3)).run
    before = run.run_json.read_bytes(), run.metrics.read_bytes()
    with lock.held(run.folder), pytest.raises(lock.BusyError, match="is at work in process"):
        object_run.resume(run.folder, command=["test"])
    assert (run.run_json.read_bytes(), run.metrics.read_bytes()) == before
    assert object_run.resume(run.folder, command=["test"]).status == "done"


def test_a_run_that_begins_again_says_so(tmp_path, caplog):
    run = start(tmp_path, should_stop=stop_at(1)).run
    checkpoint_folders = [path for path in run.checkpoints.iterdir() if path.is_dir()]
    object_run.resume(run.folder, steps=2, command=["test"])
    assert "begins again" not in caplog.text
    for path in [*checkpoint_folders, *run.checkpoints.glob("step-*/*"), run.checkpoints / "latest"]:
        if path.is_file():
            path.unlink()
    for path in run.checkpoints.iterdir():
        path.rmdir()
    object_run.resume(run.folder, command=["test"])
    assert f"{run.folder} has no checkpoint: it begins again at step 0" in caplog.text
