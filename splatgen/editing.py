"""What an edit starts from, how foreign splats are put before the cameras, and what it leaves.

    source.ply -> placed in the ball the cameras look at -> optimised -> put back -> splats.ply

Shapes: N splats, B views, C x h x w the prior's space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from splatgen import __version__, formats, video
from splatgen.cameras import orbit
from splatgen.config import Config, ConfigError, OutputOptions
from splatgen.formats.ply import MIN_OPACITY
from splatgen.guidance import weight
from splatgen.moment import Moment
from splatgen.results import PREVIEW_AZIMUTHS, pictures, write_turntable
from splatgen.runs import Run
from splatgen.splats import Splats

Fit = Literal["auto", "always", "never"]
SCORES = ("sds", "sdi")  # those whose noise can be shared with the source
SOURCE = "source.ply"  # in the run folder: what the edit started from
SHARE = 0.95  # of the opacity that must be in view: a few stray splats do not count
IN_VIEW = (0.5, 1.0)  # radius of an object that is left where it is; 1.17 would fill the picture
FITTED = 0.8  # radius of an object that is moved
NEAR = 0.02  # difference from the source, on the scale of -1 to 1, below which the pull back fades


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A shift and a scale, there and back: y = (x - center) / size. No rotation, so SH stay as they are."""

    center: tuple[float, float, float]
    size: float

    def place(self, splats: Splats) -> Splats:
        """Splats before the cameras."""
        if self == IDENTITY:
            return splats
        means = (splats.means.double() - self._center(splats)) / self.size
        return self._scaled(splats, means, -math.log(self.size))

    def put_back(self, splats: Splats) -> Splats:
        """Splats where they came from, up to float32's rounding."""
        if self == IDENTITY:
            return splats
        means = splats.means.double() * self.size + self._center(splats)
        return self._scaled(splats, means, math.log(self.size))

    def _center(self, splats: Splats) -> Tensor:
        return torch.tensor(self.center, dtype=torch.float64, device=splats.means.device)

    @staticmethod
    def _scaled(splats: Splats, means: Tensor, shift: float) -> Splats:
        scales = (splats.scales.double() + shift).to(splats.scales)
        return replace(splats, means=means.to(splats.means), scales=scales)


IDENTITY = Placement(center=(0.0, 0.0, 0.0), size=1.0)


def quantile(values: Tensor, weights: Tensor, share: float) -> float:
    """The value [] of values [N] below which `share` of the weight [N] lies."""
    order = values.argsort()
    below = weights[order].cumsum(0)
    position = int((below < share * below[-1]).sum())
    return float(values[order][min(position, len(values) - 1)])


def placement(splats: Splats, fit: Fit) -> Placement:
    """How to bring splats into view; raises ValueError for a cloud without any extent in numbers.

    Splats count by their opacity, so that a few floaters move nothing. The centre is the middle of the box
    that holds SHARE of it along each axis, the radius that of the ball around it. Whatever is in view and
    not tiny stays (auto): priors know where objects stand, and a cone's middle is not its centroid.
    """
    if fit == "never":
        return IDENTITY
    means, weights = splats.means.double(), splats.opacities.double().sigmoid()
    sizes = splats.scales.double().amax(-1).exp()  # a splat reaches beyond its centre
    if fit == "auto" and IN_VIEW[0] <= quantile(means.norm(dim=-1) + sizes, weights, SHARE) <= IN_VIEW[1]:
        return IDENTITY
    rest = (1.0 - SHARE) / 2.0
    ends = [[quantile(axis, weights, p) for axis in means.unbind(-1)] for p in (rest, 1.0 - rest)]
    center = tuple((low + high) / 2.0 for low, high in zip(*ends, strict=True))
    reach = (means - means.new_tensor(center)).norm(dim=-1) + sizes
    size = quantile(reach, weights, SHARE) / FITTED
    if not math.isfinite(size) or size <= 0.0:
        raise ValueError(f"the source has a radius of {size * FITTED:g}: remove its broken splats")
    return Placement(center=(center[0], center[1], center[2]), size=size)


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


def write_results(run: Run, splats: Splats, options: OutputOptions, fit: Fit) -> None:
    """Everything of a finished edit; splats are before the cameras, on any device."""
    original = load_source(run)
    placed = placement(original, fit)
    comments = [f"splatgen {__version__} {run.id}"]
    formats.save(placed.put_back(splats), run.splats_ply, comments=comments)
    before = placed.place(original).to(splats.means.device)
    write_comparison(before, splats, run.preview, size=options.size)
    if options.frames:
        write_turntable(splats, run.turntable, size=options.size, frames=options.frames)


def write_comparison(before: Splats, after: Splats, path: Path, *, size: int) -> None:
    """Eight views around the object on one sheet: the source in the first row, the result in the second."""
    azimuth = torch.tensor(PREVIEW_AZIMUTHS)
    cameras = orbit(azimuth, torch.full_like(azimuth, 15.0), size=size)
    images = [*pictures(before, cameras), *pictures(after, cameras)]
    video.write_preview(images, path, columns=len(azimuth))
