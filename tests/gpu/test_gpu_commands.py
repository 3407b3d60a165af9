"""What a user does, on the GPU: every verb that makes or shows something."""

import json

import pytest
import steps
import torch

from splatgen.commands.common import embedded, sweeping
from splatgen.loop import object_run
from splatgen.loop.object_snapshots import THUMB, shown, thumbnails
from splatgen.runs.metrics import read_metrics
from splatgen.runs.run_folder import open_run

pytestmark = pytest.mark.skipif(
    embedded.lacks("toybox-mini"),
    reason="the toybox weights are not there",
)
MINI = ["--prior", "toybox-mini", "--reward", "toybox-mini", "--device", "cuda", "--steps", "1"]
SEEN = [*MINI, "--views.size", "16", "--views.count", "2", "--output.size", "16", "--output.frames", "0"]
TINY = [*SEEN, "--splats.count", "40"]


def made(done):
    assert done.code == 0, done.err
    return open_run(done.out.strip())


def test_generate_resume_edit_render_and_export(cli, tmp_path):
    run = made(cli("generate", "a red cube", *TINY, "--out", tmp_path))
    assert json.loads(run.run_json.read_text())["device"] == torch.cuda.get_device_name()
    made(cli("resume", run.folder, "--steps", "2"))
    assert [row["step"] for row in read_metrics(run.metrics)] == [0, 1]
    words = ("a blue cube", "--source", "a red cube", *SEEN, "--out", tmp_path)
    edited = made(cli("edit", run.splats_ply, *words))
    assert edited.splats_ply.is_file()
    picture = ("--out", tmp_path / "a.png", "--size", "16")
    for words in (("render", run.splats_ply, *picture), ("export", run.splats_ply, tmp_path / "a.spz")):
        done = cli(*words)
        assert done.code == 0, done.err


@pytest.mark.parametrize("space", ["latents", "pixels"])
def test_image(cli, tmp_path, space):
    run = made(
        cli("image", "a red cube", *MINI, "--preference", "psd", "--image.space", space, "--out", tmp_path)
    )
    assert (run.folder / "image.png").is_file()


def test_compare(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "has_truth", lambda plan: False)  # the CPU's work, and most of it
    words = ["--methods", "sds", "rewardsds", "--weighted.candidates", "4", "--weighted.lookahead", "1"]
    done = cli("compare", "a red cube", *TINY, *words, "--seeds", "1", "--out", tmp_path)
    assert done.code == 0, done.err


def test_a_change_of_stage_takes_another_prior(tmp_path):
    tables = [{"share": 0.5}, {"share": 0.5, "prior": "sdxl"}]
    given = steps.config("sd15", "sds", "dpo", steps=2, budget="16gb", stages=tables)
    done = object_run.generate(given, out=tmp_path, command=["test"])
    assert done.status == "done"
    assert [row["stage"] for row in read_metrics(done.run.metrics)] == [1, 2]


def test_a_snapshot_for_a_viewer_is_of_numbers_on_the_cpu():
    given = steps.config("sd15", "sds", "weighted")
    models, scene = steps.start(given)
    fields = shown(scene, models, steps.step(given, models, scene), None)
    assert len(fields["candidates"]) == 2
    assert len(fields["cloud"]) == 30


def test_a_preview_decodes_no_more_than_is_shown():
    sizes = []

    class Full:
        resolution = 512

        def preview(self, x):
            sizes.append(tuple(x.shape))
            return torch.zeros(len(x), 3, 8 * x.shape[-1], 8 * x.shape[-1], device=x.device)

    assert thumbnails(Full(), torch.randn(2, 4, 64, 64, device="cuda")).shape[-1] == THUMB
    assert sizes == [(2, 4, THUMB // 8, THUMB // 8)]


def test_no_visible_gpu_is_3_before_anything_is_made(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = cli("generate", "a red cube", *TINY, "--out", tmp_path)
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
