"""What an edit starts from, how foreign splats are put before the cameras, and what it leaves.

    source.ply -> placed in the ball the cameras look at -> optimised -> put back -> splats.ply

Shapes: N splats, B views, C x h x w the prior's space.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from splatgen import formats
from splatgen.config import Config, ConfigError, OutputOptions
from splatgen.formats.writing import MIN_OPACITY
from splatgen.guidance.distillation import weight
from splatgen.guidance.moment import Moment
from splatgen.loop.preview_views import VIEWS, labelled, usual_cameras
from splatgen.loop.results import pictures
from splatgen.runs import video
from splatgen.runs.run_folder import Run
from splatgen.runs.version import __version__
from splatgen.scene.placement import Fit, placement
from splatgen.scene.splats import Splats

SCORES = ("sds", "sdi")  # those whose noise can be shared with the source
SOURCE = "source.ply"  # in the run folder: what the edit started from
NEAR = 0.02  # difference from the source, on the scale of -1 to 1, below which the pull back fades


def check_source(splats: Splats, name: str, fit: Fit) -> None:
    """Raise ValueError for splats that show nothing, or that cannot be brought into view."""
    if len(splats) == 0:
        raise ValueError(f"{name} holds no splats: give one that shows an object")
    if not bool((splats.opacities.sigmoid() >= MIN_OPACITY).any()):
        raise ValueError(f"{name} holds {len(splats)} splats, all invisible: give one that shows an object")
    placement(splats, fit)


def check_settings(config: Config) -> None:
    """Raise ConfigError for settings that an edit cannot use."""
    if not config.source:
        raise ConfigError("source is empty: say what the splats show")
    if config.score not in SCORES:
        raise ConfigError(
            f"score is {config.score!r}: an edit subtracts what the prior sees in the source under the same "
            f"noise, and that score subtracts something of its own: use {' or '.join(SCORES)}"
        )
    if config.edit.keep < 0.0 or not math.isfinite(config.edit.keep):
        raise ConfigError(f"edit.keep is {config.edit.keep!r}: give 0 or more")


def adapted(config: Config, splats: Splats) -> Config:
    """The config as the source demands: its count and degree, and a cap that is not below its count."""
    count = len(splats)
    return replace(
        config,
        splats=replace(config.splats, count=count, sh_degree=splats.sh_degree),
        densify=replace(config.densify, max_splats=max(config.densify.max_splats, count)),
    )


def save_source(run: Run, splats: Splats) -> None:
    """Write what the edit starts from into its folder."""
    formats.save(splats, run.folder / SOURCE, comments=[f"splatgen {__version__} {run.id}: the source"])


def load_source(run: Run) -> Splats:
    """What an edit started from, where it came from; the same at the start and after a resume."""
    path = run.folder / SOURCE
    if not path.is_file():
        raise ValueError(f"{path} is missing: an edit needs what it started from, so start it anew")
    return formats.load(path)


def pull(moment: Moment, keep: float, weighting: str) -> Tensor:
    """The gradient [B, C, h, w] that holds x at the source, beside the score's: w(t) keep sign(x - source).

    Of a Huber loss, so linear within NEAR. Unlike a square's, its pull does not grow with the change: it
    stops what the words barely ask for, noise above all, and hardly slows what they do ask for.
    """
    if moment.source is None or keep == 0.0:
        return torch.zeros_like(moment.x)
    away = ((moment.x - moment.source.x) / NEAR).clamp(-1.0, 1.0)
    return weight(weighting, *moment.amplitudes()) * keep * away


def write_object(run: Run, splats: Splats, options: OutputOptions, fit: Fit) -> None:
    """What there is of an edit at any of its steps; splats are before the cameras, on any device."""
    original = load_source(run)
    placed = placement(original, fit)
    comments = [f"splatgen {__version__} {run.id}"]
    formats.save(placed.put_back(splats), run.splats_ply, comments=comments)
    before = placed.place(original).to(splats.means.device)
    write_comparison(before, splats, run.preview, size=options.size)


def write_comparison(before: Splats, after: Splats, path: Path, *, size: int) -> None:
    """Eight views of the object on one sheet: the source in the first row, the result in the second."""
    cameras = usual_cameras(size)
    images = [*pictures(before, cameras), *labelled(pictures(after, cameras))]
    video.write_preview(images, path, columns=len(VIEWS))
