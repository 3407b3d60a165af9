"""Turntables and contact sheets out of rendered images.

Images are uint8 RGB arrays, [H, W, 3]; H and W are pixels, N is a number of images.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import logging
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from splatgen.runs import atomic

GIF_LIMIT = 5 * 1000 * 1000  # bytes; what forums and chats still show
# Tried in turn until the GIF is small enough: longest side in pixels, most frames, colours.
_GIF_SIZES = ((512, 120, 256), (400, 60, 128), (320, 40, 64), (240, 30, 32), (128, 24, 16))
# Players guess the colour matrix of an untagged film, some of them wrongly.
_COLORS = ["-vf", "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p", "-colorspace", "bt709"]
_COLORS += ["-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]

_log = logging.getLogger(__name__)
Image = NDArray[np.uint8]


def write_turntable(
    frames: Iterable[Image], path_without_suffix: str | os.PathLike[str], fps: int = 30
) -> Path:
    """Write a film and return its path, whose suffix tells what it became.

    .mp4 (h264, yuv420p, odd sizes padded by a pixel) where there is an ffmpeg, else a .gif of at most
    5 MB, else a .png sheet. Frames may be an iterator: with ffmpeg only one is held at a time.
    Raises ValueError for frames that are none, unlike, or not uint8 [H, W, 3]; RuntimeError with
    ffmpeg's last words when it fails; OSError for the disk.
    """
    stem = Path(path_without_suffix)
    images = _checked(frames)
    ffmpeg = find_ffmpeg()
    if ffmpeg is not None:
        path = stem.with_name(stem.name + ".mp4")
        with atomic.replacing(path) as temporary:
            _encode(ffmpeg, images, temporary, fps)
        return path
    _log.warning("no ffmpeg here, so the turntable becomes a GIF: `pip install imageio-ffmpeg` gives an mp4")
    held = list(images)
    path = stem.with_name(stem.name + ".gif")
    try:
        data = _gif(held, fps)
    except (OSError, ValueError, KeyError) as error:  # what Pillow raises without its GIF plug-in
        _log.warning("no GIF could be made (%s), so the turntable becomes a PNG sheet", error)
        path = stem.with_name(stem.name + ".png")
        write_preview(held[:: math.ceil(len(held) / 16)], path)
    else:
        atomic.write_bytes(path, data)
    return path


def write_preview(
    images: Sequence[Image] | NDArray[np.uint8], path: str | os.PathLike[str], columns: int = 4
) -> None:
    """Write images as a PNG contact sheet, row by row; empty cells are white.

    Raises ValueError as `write_turntable` does, and OSError.
    """
    from PIL import Image as pillow

    if columns < 1:
        raise ValueError(f"a sheet of {columns} columns holds nothing: give 1 or more")
    held = list(_checked(images))
    columns = min(columns, len(held))
    height, width, _ = held[0].shape
    sheet = np.full((math.ceil(len(held) / columns) * height, columns * width, 3), 255, np.uint8)
    for i, image in enumerate(held):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = image
    with atomic.replacing(path) as temporary:
        pillow.fromarray(sheet).save(temporary, format="PNG")


def find_ffmpeg() -> str | None:
    """The ffmpeg that imageio-ffmpeg carries, else the one on PATH, else None."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):  # not installed, or a build of it without the binary
        return shutil.which("ffmpeg")


def _checked(frames: Iterable[Image] | NDArray[np.uint8]) -> Iterator[Image]:
    """The frames, after checking that there is one; each later one is checked as it comes."""
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError("there are no images to write: give at least one")

    def checked() -> Iterator[Image]:
        for i, image in enumerate(itertools.chain([first], iterator)):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise ValueError(f"image {i} is {image.dtype} {image.shape}, give uint8 [H, W, 3]")
            if image.shape != first.shape:
                raise ValueError(f"image {i} is {image.shape}, the first {first.shape}: use one size")
            yield image

    return checked()


def _encode(ffmpeg: str, images: Iterator[Image], path: Path, fps: int) -> None:
    """Pipe raw frames into ffmpeg."""
    first = next(images)
    height, width = (size + size % 2 for size in first.shape[:2])  # yuv420p halves both
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    codec = ["-an", "-c:v", "libx264", "-crf", "18", "-movflags", "+faststart"]
    command = [
        ffmpeg,
        "-nostdin",
        "-y",
        "-loglevel",
        "error",
        *source,
        *_COLORS,
        *codec,
        str(path.absolute()),
    ]
    path.touch(exist_ok=False)  # a folder that can't be written to is an OSError, not a word of ffmpeg's
    # a file, since a pipe that nobody reads while frames are written could fill up and block
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for us: we may want to finish the film
        )
        try:
            _feed(process, itertools.chain([first], images))
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code != 0:
            lines = _lines(errors)
            if any(os.strerror(errno.ENOSPC) in line for line in lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise RuntimeError(f"ffmpeg failed with status {code}: {lines[-1]}")


def _feed(process: subprocess.Popen[bytes], images: Iterator[Image]) -> None:
    pipe = process.stdin
    assert pipe is not None
    # it died: its status and its words say why
    with contextlib.suppress(BrokenPipeError), pipe:
        for image in images:
            pad = [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)]
            pipe.write(np.pad(image, pad, mode="edge").tobytes())


def _lines(errors: IO[bytes]) -> list[str]:
    """What ffmpeg said, at least a line."""
    errors.seek(0)
    return errors.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]


def _gif(images: Sequence[Image], fps: int) -> bytes:
    """The largest GIF of the sizes above that stays within GIF_LIMIT."""
    data = b""
    for side, most, colors in _GIF_SIZES:
        stride = math.ceil(len(images) / most)
        data = _encode_gif(images[::stride], side, colors, milliseconds=1000 * stride / fps)
        if len(data) <= GIF_LIMIT:
            break
    return data


def _encode_gif(images: Sequence[Image], side: int, colors: int, *, milliseconds: float) -> bytes:
    from PIL import Image as pillow

    pages: list[Any] = []
    for image in images:
        page = pillow.fromarray(image)
        page.thumbnail((side, side))
        # as good as the default median cut on renders, and 20 times as fast
        pages.append(page.quantize(colors, method=pillow.Quantize.FASTOCTREE))
    # GIF counts hundredths of a second, so the rounding is spread; browsers slow down less than two
    ticks = [round(i * milliseconds / 10) for i in range(len(pages) + 1)]
    durations = [max(20, 10 * (after - before)) for before, after in itertools.pairwise(ticks)]
    buffer = io.BytesIO()
    pages[0].save(buffer, format="GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)
    return buffer.getvalue()
