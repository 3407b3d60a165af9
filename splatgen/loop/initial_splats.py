"""Where the cloud of the first step comes from: a ball, a splat file, a mesh, or Shap-E for the prompt.

All of them end in the internal frame, +Y up and +Z toward the camera at azimuth 0, and fill the same share of
the picture, whatever the units of a file.

Shapes: N splats.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from splatgen import formats
from splatgen.config import Config, SplatOptions, ViewOptions
from splatgen.formats import meshes
from splatgen.models.budget import LoadOptions
from splatgen.runs.rng import rng
from splatgen.scene.cameras import half_extent
from splatgen.scene.placement import placement
from splatgen.scene.splats import Splats, random_ball
from splatgen.scene.surface import on_surface
from splatgen.scene.thinning import thinned

FILL = 0.69  # radius of what is moved into view, as a share of half the picture
IN_VIEW = (0.43, 0.86)  # radii, likewise, of a splat file that is left where it is
FEWEST = 8  # splats that can show an object
MIN_OPACITY = 1 / 255  # below, a splat can't change an 8-bit pixel
MAX_OPACITY = 0.99  # above, next to no gradient passes the sigmoid
HERE = LoadOptions()
_log = logging.getLogger(__name__)


def starting_splats(config: Config, load_options: LoadOptions = HERE) -> Splats:
    """The cloud of the first step, float32 on the CPU: by config.init and nothing but the config.

    Raises ValueError in one line for a file that can't be used and for a prompt that Shap-E makes nothing
    of, WeightsError where Shap-E's weights are missing or damaged, OSError for the disk.
    """
    o, generator = config.splats, rng(config.seed, 0, "splats")
    if config.init == "sphere":
        return random_ball(
            generator, count=o.count, radius=o.radius, scale=o.scale, opacity=o.opacity, sh_degree=o.sh_degree
        )
    half = reach(config.views)
    if config.init == "shap-e":
        from splatgen.models import shap_e

        mesh = shap_e.generate(config.prompt, load_options, rng(config.seed, 0, "shap-e"))
        return on_surface(mesh, generator, o, FILL * half, "Shap-E's mesh")
    path = Path(config.init).expanduser()
    if meshes.is_mesh(path):
        return on_surface(meshes.load(path), generator, o, FILL * half, str(path))
    file = formats.read(path)
    if file.antialiased:
        _log.warning("%s was made for an antialiased renderer: here its small splats look thicker", path)
    return from_splats(file.splats(exact=True), o, half, most=config.densify.max_splats, name=config.init)


def reach(views: ViewOptions) -> float:
    """Half the height, in world units, that every camera of a run sees at least at the origin."""
    return views.distance[0] if views.relative else half_extent(views.distance[0], views.fov[0])


def from_splats(splats: Splats, options: SplatOptions, half: float, *, most: int, name: str) -> Splats:
    """Splats to start from, in view: at most `most` (see thinning), of the degree asked for.

    Broken and invisible splats are dropped, and those that are out of view after the rest was moved into it:
    they would stand between the object and a camera. A line says how many were. Raises ValueError where
    hardly any are left. Positions may be in float64, and are float32 in the end.
    """
    found = len(splats)
    splats = splats.select(_usable(splats))
    sound = len(splats)
    if len(splats) >= FEWEST:
        view = (IN_VIEW[0] * half, IN_VIEW[1] * half)
        splats = placement(splats, "auto", in_view=view, radius=FILL * half, name=name).place(splats)
        sizes = splats.scales.amax(-1).exp()
        splats = splats.select((splats.means.norm(dim=-1) <= half) & (sizes <= half))
    if len(splats) < FEWEST:
        raise ValueError(
            f"{name} holds {len(splats)} splats that can be seen: give one that shows an object ({FEWEST} or "
            "more)"
        )
    seen = len(splats)
    splats = thinned(splats, most)
    _say_kept(name, found, sound, seen, len(splats))
    quats = splats.quats.double()  # float32 would overflow for components beyond 1e19
    limit = math.log(MAX_OPACITY / (1.0 - MAX_OPACITY))
    return replace(
        splats,
        means=splats.means.float(),
        quats=torch.nn.functional.normalize(quats, dim=-1).float(),
        opacities=splats.opacities.clamp(max=limit),
        sh=with_degree(splats.sh, options.sh_degree),
    )


def _say_kept(name: str, found: int, sound: int, seen: int, kept: int) -> None:
    """One line where not all are: by what was left after each reason to leave some out."""
    counts = (
        (found - sound, "broken or invisible"),
        (sound - seen, "out of view or larger than it"),
        (seen - kept, "beyond --densify.max-splats, the others made larger"),
    )
    reasons = ", ".join(f"{count:,} {words}" for count, words in counts if count)
    if reasons:
        _log.warning("%s: kept %s of %s splats: without %s", name, f"{kept:,}", f"{found:,}", reasons)


def _usable(splats: Splats) -> Tensor:
    """Mask [N] of what is finite, has a rotation and can be seen."""
    parts = [v[:, None].flatten(1) for v in (*splats.tensors().values(), splats.scales.exp())]
    finite = torch.cat(parts, 1).isfinite().all(-1)
    return finite & (splats.quats != 0).any(-1) & (splats.opacities.sigmoid() >= MIN_OPACITY)


def with_degree(sh: Tensor, degree: int) -> Tensor:
    """Coefficients [N, K, 3] of another degree: cut, or padded with zeros."""
    found = torch.zeros(len(sh), (degree + 1) ** 2, 3)
    kept = min(found.shape[1], sh.shape[1])
    found[:, :kept] = sh[:, :kept]
    return found
