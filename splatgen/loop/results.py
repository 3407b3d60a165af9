"""What a run leaves for its user: the .ply and a preview, however it ended; a turntable when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splatgen import formats
from splatgen.config import OutputOptions
from splatgen.loop.preview_views import close_cameras, framed, labelled, usual_cameras
from splatgen.rasterizer import render
from splatgen.runs import video
from splatgen.runs.run_folder import Run
from splatgen.runs.version import __version__
from splatgen.scene.backgrounds import PLAIN
from splatgen.scene.cameras import Cameras, turntable
from splatgen.scene.splats import Splats

SHOWN = 256  # pixels: smaller images are enlarged by whole pixels, so that a viewer shows them


def pictures(
    splats: Splats, cameras: Cameras, background: str = "white", *, antialiased: bool = False
) -> Iterator[NDArray[np.uint8]]:
    """The splats from each camera in turn, uint8 [H, W, 3]."""
    back = torch.tensor(PLAIN[background], device=splats.means.device)
    for n in range(len(cameras)):
        with torch.no_grad():
            rgb = render(splats, cameras[n : n + 1], back, antialiased=antialiased).rgb[0]
        yield (255.0 * rgb.clamp(0, 1) + 0.5).byte().permute(1, 2, 0).cpu().numpy()


def write_preview(
    splats: Splats,
    path: Path,
    *,
    size: int,
    background: str = "white",
    antialiased: bool = False,
    fill: bool = True,
) -> None:
    """Eight named views, the front first, on one sheet; the object fills them, or stays where it is."""
    shown, cameras = (framed(splats), close_cameras(size)) if fill else (splats, usual_cameras(size))
    images = pictures(shown, cameras, background, antialiased=antialiased)
    video.write_preview(list(labelled(images)), path, columns=4)


def write_turntable(
    splats: Splats,
    stem: Path,
    *,
    size: int,
    frames: int,
    elevation: float = 15.0,
    background: str = "white",
    antialiased: bool = False,
) -> Path:
    """One turn as a film; returns the path with the suffix it got."""
    cameras = turntable(frames, size=size, elevation=elevation)
    return video.write_turntable(pictures(splats, cameras, background, antialiased=antialiased), stem)


def write_object(run: Run, splats: Splats, options: OutputOptions) -> None:
    """What there is of a run at any of its steps, first what matters most."""
    formats.save(splats, run.splats_ply, comments=[f"splatgen {__version__} {run.id}"])
    write_preview(splats, run.preview, size=options.size)


def write_film(run: Run, splats: Splats, options: OutputOptions) -> None:
    """The turntable of a finished run, unless it is to have none; splats are before the cameras."""
    if options.frames:
        write_turntable(splats, run.turntable, size=options.size, frames=options.frames)


def write_images(images: Tensor, path: Path) -> None:
    """Images [B, 3, S, S] in 0..1 side by side, as PNG; small ones enlarged by a whole factor."""
    shown = (255.0 * images.detach().clamp(0.0, 1.0) + 0.5).byte().permute(0, 2, 3, 1).cpu().numpy()
    factor = max(SHOWN // shown.shape[1], 1)
    large = shown.repeat(factor, axis=1).repeat(factor, axis=2)
    video.write_preview(list(large), path, columns=len(large))
