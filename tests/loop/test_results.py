"""The pictures and files that a finished run leaves."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from splatgen import formats
from splatgen.config import OutputOptions
from splatgen.loop import results
from splatgen.rasterizer import render
from splatgen.runs import run_folder
from splatgen.runs.rng import rng
from splatgen.scene.cameras import orbit, turntable
from splatgen.scene.splats import Splats, random_ball, rgb_to_sh


def cloud(**options):
    return random_ball(
        rng(0, 0, "splats"), **{"count": 60, "radius": 0.5, "scale": 0.1, "opacity": 0.5, **options}
    )


def marked():
    """A red blob toward the front and a blue one toward the back."""
    return Splats(
        means=torch.tensor([[0.0, 0, 0.5], [0, 0, -0.5]]),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1),
        scales=torch.full((2, 3), 0.2).log(),
        opacities=torch.full((2,), 8.0),
        sh=rgb_to_sh(torch.tensor([[1.0, 0, 0], [0, 0, 1]]))[:, None],
    )


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0), ("grey", 128)])
def test_empty_corners_show_the_background_exactly(background, value):
    (picture,) = results.pictures(cloud(radius=0.1, scale=0.02), turntable(1, size=16), background)
    assert picture.dtype == np.uint8
    assert picture.shape == (16, 16, 3)
    assert (picture[0, 0] == value).all()


def test_pictures_are_the_render_rounded_to_the_nearest_value():
    cameras = turntable(3, size=16)
    rgb = render(cloud(), cameras, torch.ones(3)).rgb.clamp(0, 1).permute(0, 2, 3, 1)
    found = np.stack(list(results.pictures(cloud(), cameras)))
    assert np.abs(found / 255 - rgb.numpy()).max() <= 0.5 / 255 + 1e-6


def test_bright_colours_do_not_wrap_around():
    bright = dataclasses.replace(marked(), sh=torch.full((2, 1, 3), 50.0))
    (picture,) = results.pictures(bright, turntable(1, size=16), "black")
    assert picture[8, 8].tolist() == [255, 255, 255]


def test_the_preview_shows_eight_views_and_the_front_first(tmp_path):
    results.write_preview(marked(), tmp_path / "preview.png", size=32)
    sheet = np.asarray(Image.open(tmp_path / "preview.png"))
    assert sheet.shape == (64, 128, 3)
    front, back = sheet[16, 16].astype(int), sheet[16, 80].astype(int)
    assert front[0] > front[2] + 100
    assert back[2] > back[0] + 100


def test_a_preview_is_filled_wherever_the_object_stands_and_each_view_has_its_name(tmp_path):
    far = dataclasses.replace(cloud(radius=0.1, scale=0.02), opacities=torch.full((60,), 8.0))
    far = dataclasses.replace(far, means=far.means + torch.tensor([0.4, -0.3, 0.2]))
    results.write_preview(far, tmp_path / "preview.png", size=192)
    sheet = np.asarray(Image.open(tmp_path / "preview.png"))
    for row in range(2):
        for column in range(4):
            cell = sheet[192 * row : 192 * row + 192, 192 * column : 192 * column + 192]
            assert (cell[:20] != 255).any(), "its name"
            below = (cell[20:] != 255).any(-1).nonzero()
            assert min(np.ptp(axis) for axis in below) > 0.55 * 192


def test_nothing_to_frame_is_shown_as_it_is(tmp_path):
    results.write_preview(cloud(count=0), tmp_path / "preview.png", size=16)
    assert (np.asarray(Image.open(tmp_path / "preview.png")) == 255).all()


def test_a_finished_run_has_its_files(tmp_path):
    run = run_folder.create(tmp_path, "a red cube", command=["test"], config={})
    options = OutputOptions(frames=2, size=16)
    results.write_object(run, cloud(), options)
    results.write_film(run, cloud(), options)
    loaded = formats.load(run.splats_ply)
    assert len(loaded) == 60
    order = loaded.means[:, 0].argsort(), cloud().means[:, 0].argsort()
    torch.testing.assert_close(loaded.means[order[0]], cloud().means[order[1]])
    assert run.preview.is_file()
    assert [p.suffix for p in run.folder.glob("turntable.*")] in ([".mp4"], [".gif"], [".png"])
    assert run.id.encode() in run.splats_ply.read_bytes()[:2000]


def test_no_frames_no_turntable(tmp_path):
    run = run_folder.create(tmp_path, "a red cube", command=["test"], config={})
    results.write_film(run, cloud(), OutputOptions(frames=0, size=16))
    assert not list(run.folder.glob("turntable*"))


def test_the_turntable_turns_the_whole_way(tmp_path):
    path = results.write_turntable(marked(), tmp_path / "turn", size=32, frames=4)
    assert path.is_file()
    frames = list(results.pictures(marked(), turntable(4, size=32)))
    alone = next(
        iter(results.pictures(marked(), orbit(torch.tensor([180.0]), torch.tensor([15.0]), size=32)))
    )
    assert (frames[2] == alone).all()
