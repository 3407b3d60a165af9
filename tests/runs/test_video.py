"""Films and sheets, read back by Pillow and ffmpeg."""

import builtins
import os
import shutil
import stat
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from splatgen.runs import video

needs_ffmpeg = pytest.mark.skipif(video.find_ffmpeg() is None, reason="no ffmpeg here")


def film(count=6, height=32, width=48):
    """A white square that moves right over a coloured ground."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 2] = 200
    for i in range(count):
        frames[i, 4:12, 3 * i : 3 * i + 8] = 255
    return list(frames)


def decode(path, width, height):
    """All frames of a film as ffmpeg decodes them, [N, H, W, 3], and what it says of the stream."""
    command = [video.find_ffmpeg(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3), done.stderr.decode()


@needs_ffmpeg
def test_mp4_holds_the_frames_in_order(tmp_path):
    path = video.write_turntable(iter(film()), tmp_path / "turn.table", fps=25)
    assert path == tmp_path / "turn.table.mp4"
    assert os.listdir(tmp_path) == ["turn.table.mp4"]
    frames, words = decode(path, 48, 32)
    assert "h264" in words
    assert "yuv420p" in words
    assert "25 fps" in words
    assert "tv, bt709" in words
    assert len(frames) == 6
    assert np.abs(frames.astype(int) - np.stack(film())).mean() < 6


@needs_ffmpeg
def test_odd_sizes_are_padded(tmp_path):
    path = video.write_turntable(film(height=33, width=47), tmp_path / "t")
    assert decode(path, 48, 34)[0].shape == (6, 34, 48, 3)
    path = video.write_turntable([np.zeros((1, 1, 3), np.uint8)], tmp_path / "one")
    assert decode(path, 2, 2)[0].shape == (1, 2, 2, 3)


def fake_ffmpeg(tmp_path, monkeypatch, script):
    path = tmp_path / "fake"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(video, "find_ffmpeg", lambda: str(path))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("cat > /dev/null; echo first >&2; echo the last word >&2; exit 3", "status 3: the last word"),
        ("exec <&-; echo died early >&2; exit 1", "status 1: died early"),
        ("exit 1", "status 1: it said nothing"),
        ("yes a complaint | head -n 100000 >&2; exit 1", "status 1: a complaint"),
    ],
)
def test_a_failing_ffmpeg_is_an_error(tmp_path, monkeypatch, script, words):
    fake_ffmpeg(tmp_path, monkeypatch, script)
    big = [np.zeros((256, 256, 3), np.uint8)] * 8  # more than a pipe holds
    with pytest.raises(RuntimeError, match=words) as caught:
        video.write_turntable(big, tmp_path / "t")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["fake"]


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, "echo x: No space left on device >&2; exit 1")
    with pytest.raises(OSError, match=r"No space left on device: '.*/t\.mp4'"):
        video.write_turntable(film(), tmp_path / "t")
    assert os.listdir(tmp_path) == ["fake"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        video.write_turntable(film(), tmp_path / "none" / "t")


def test_an_error_of_the_renderer_stops_ffmpeg(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 600")

    def frames():
        yield from film(2)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        video.write_turntable(frames(), tmp_path / "t")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert sorted(os.listdir(tmp_path)) == ["fake", "pid"]


def test_ctrl_c_does_not_reach_ffmpeg(tmp_path, monkeypatch):
    """A terminal interrupts its whole session; the program decides whether the film is finished."""
    fake_ffmpeg(tmp_path, monkeypatch, "cat > /dev/null; cut -d' ' -f6 /proc/$$/stat >&2; exit 1")
    with pytest.raises(RuntimeError) as caught:
        video.write_turntable(film(), tmp_path / "t")
    assert int(str(caught.value).split()[-1]) != os.getsid(0)


def test_gif_without_ffmpeg(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(video, "find_ffmpeg", lambda: None)
    path = video.write_turntable(film(), tmp_path / "t", fps=20)
    assert path == tmp_path / "t.gif"
    assert "pip install imageio-ffmpeg" in caplog.text
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (6, (48, 32), 50, 0)
        gif.seek(5)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - film()[5]).mean() < 3


def test_gif_is_reduced_until_it_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "find_ffmpeg", lambda: None)
    monkeypatch.setattr(video, "GIF_LIMIT", 200_000)
    noise = list(np.random.default_rng(0).integers(0, 256, (30, 256, 256, 3), np.uint8))
    path = video.write_turntable(noise, tmp_path / "t", fps=30)
    assert path.suffix == ".gif"
    assert path.stat().st_size <= 200_000
    with Image.open(path) as gif:
        durations = []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
    assert sum(durations) == pytest.approx(1000, rel=0.05)  # a turn takes as long as before


def test_sheet_when_gif_fails_too(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(video, "find_ffmpeg", lambda: None)

    def broken(*_args, **_kwargs):
        raise ValueError("unknown file extension: .gif")

    monkeypatch.setattr(video, "_gif", broken)
    path = video.write_turntable(film(40), tmp_path / "t")
    assert path == tmp_path / "t.png"
    assert "unknown file extension" in caplog.text
    with Image.open(path) as sheet:
        assert sheet.size == (4 * 48, 4 * 32)


def test_preview_layout(tmp_path):
    images = np.stack([np.full((3, 5, 3), 40 * i, np.uint8) for i in range(5)])
    video.write_preview(images, tmp_path / "p.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "p.png"))
    assert sheet.shape == (6, 15, 3)
    assert sheet[0, ::5, 0].tolist() == [0, 40, 80]
    assert sheet[3, ::5, 0].tolist() == [120, 160, 255]  # the empty cell is white
    video.write_preview(images[:2], tmp_path / "p.png", columns=9)
    assert np.asarray(Image.open(tmp_path / "p.png")).shape == (3, 10, 3)
    assert os.listdir(tmp_path) == ["p.png"]


GOOD = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "no images"),
        ([GOOD.astype(np.float32)], "image 0 is float32"),
        ([GOOD[..., 0]], r"image 0 is uint8 \(4, 4\)"),
        ([GOOD[:0]], "image 0"),
        ([GOOD, GOOD[:2]], r"image 1 is \(2, 4, 3\), the first \(4, 4, 3\)"),
    ],
)
@pytest.mark.parametrize("ffmpeg", [True, False])
def test_wrong_images_are_refused(tmp_path, monkeypatch, frames, words, ffmpeg):
    if not ffmpeg:
        monkeypatch.setattr(video, "find_ffmpeg", lambda: None)
    with pytest.raises(ValueError, match=words):
        video.write_turntable(frames, tmp_path / "t")
    with pytest.raises(ValueError, match=words):
        video.write_preview(frames, tmp_path / "p.png")
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="0 columns"):
        video.write_preview([GOOD], tmp_path / "p.png", columns=0)


def test_finding_ffmpeg(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "imageio_ffmpeg":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(shutil, "which", lambda name: f"/somewhere/{name}")
    assert video.find_ffmpeg() == "/somewhere/ffmpeg"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert video.find_ffmpeg() is None
