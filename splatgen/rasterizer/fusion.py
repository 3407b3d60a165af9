"""Splats to a closed surface: depths and colours of our own renders from all around, fused on a grid.

    renders -> depth of the front -> truncated signed distances (Curless and Levoy 1996) -> surface nets

Splats are soft: light gets into an object before it is stopped. In an even haze the depths at which it is
stopped are spread exponentially, with a standard deviation equal to their mean, so that the mean less the
deviation is where the haze begins; of an opaque surface it is the surface. What no camera sees is inside, so
that the surface is closed.

Shapes: N splats, B cameras, P points, a grid [G, G, G].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, grid_sample, normalize, pad

from splatgen.rasterizer import render
from splatgen.scene.cameras import Cameras, orbit, positions, viewmats
from splatgen.scene.placement import placement
from splatgen.scene.splats import Splats, rgb_to_sh
from splatgen.scene.surface_nets import Array, Surface, normals, surface_nets

VIEWS, PIXELS = 48, 192
GRID = 128  # points a side, of a cube around the object
REACH = 1.0  # half the side of that cube; the object, placed, has a radius of 0.8 for 95 % of it
TRUNCATION = 4.0  # steps of the grid, on both sides of a surface
SOLID = 0.5  # alpha from which on a pixel shows the object
LEAST_GRID, TRIES = 8, 6
AT_ONCE = 2**18  # points
GOLDEN = 360.0 * (1.0 - 1.0 / ((1.0 + math.sqrt(5.0)) / 2.0))  # degrees


@dataclass(frozen=True, kw_only=True)
class View:
    """What one camera sees of the object."""

    camera: Cameras  # of one
    rgb: Tensor  # [1, 3, H, W] before black, so times alpha
    alpha: Tensor  # [1, 1, H, W]
    depth: Tensor  # [1, 1, H, W] of its front, along the axis


def surface_of(
    splats: Splats, *, grid: int = GRID, most_faces: int | None = None, views: int = VIEWS
) -> Surface:
    """A closed surface with colours, where the splats are.

    most_faces takes a coarser grid until there are no more; the coarsest has 8 points a side. Raises
    ValueError for splats that show nothing solid.
    """
    if not len(splats):
        raise ValueError("there are no splats: nothing has a surface")
    place = placement(splats, "always")
    placed = place.place(splats)
    seen = look_around(replace(placed, means=placed.means.float()), views)
    vertices, faces = _extracted(seen, grid)
    for _ in range(TRIES):
        if not len(faces):
            raise ValueError("the splats show nothing solid (an opacity of one half): no surface to be found")
        if most_faces is None or len(faces) <= most_faces or grid <= LEAST_GRID:
            break
        grid = max(LEAST_GRID, min(grid - 1, round(grid * math.sqrt(most_faces / len(faces)) * 0.98)))
        vertices, faces = _extracted(seen, grid)
    outward = torch.from_numpy(normals(vertices, faces)).float()
    colors = vertex_colors(seen, torch.from_numpy(vertices).float(), outward)
    return Surface(
        vertices=vertices * place.size + np.array(place.center),
        faces=faces,
        colors=colors.double().cpu().numpy(),
    )


def look_around(splats: Splats, count: int, size: int = PIXELS) -> list[View]:
    """Views from directions spread evenly over the sphere (Vogel's spiral)."""
    turn = torch.arange(count) + 0.5
    cameras = orbit(turn * GOLDEN % 360.0, torch.rad2deg(torch.asin(1.0 - 2.0 * turn / count)), size=size)
    with torch.no_grad():
        return [_view(splats, cameras[n : n + 1].to(splats.means.device)) for n in range(count)]


def _view(splats: Splats, camera: Cameras) -> View:
    seen = render(splats, camera)
    alpha = seen.alpha.clamp(min=1e-6)
    matrix = viewmats(camera)[0]
    z = splats.means @ matrix[2, :3] + matrix[2, 3]  # [N]
    moments = rgb_to_sh(torch.stack([z, z * z, torch.zeros_like(z)], -1))[:, None]  # as colours
    first, second = (render(replace(splats, sh=moments), camera).rgb[:, :2] / alpha).chunk(2, 1)
    spread = (second - first * first).clamp(min=0.0).sqrt()
    return View(camera=camera, rgb=seen.rgb, alpha=seen.alpha, depth=first - spread)


def _extracted(views: list[View], grid: int) -> tuple[Array, Array]:
    field = fused(views, grid).double().cpu().numpy()
    return surface_nets(field, np.full(3, -REACH), 2.0 * REACH / (grid - 1))


def fused(views: list[View], grid: int) -> Tensor:
    """Signed distances over the truncation, -1..1 and negative inside, [G, G, G] by x, y and z."""
    device = views[0].depth.device
    step = 2.0 * REACH / (grid - 1)
    axis = torch.linspace(-REACH, REACH, grid, device=device)
    total, weight = torch.zeros(2, grid, grid, grid, device=device)
    slices = max(1, AT_ONCE // grid**2)
    for i in range(0, grid, slices):  # a grid of 256 is 17 million points
        points = torch.stack(torch.meshgrid(axis[i : i + slices], axis, axis, indexing="ij"), -1)
        for view in views:
            value, counts = _distances(view, points.reshape(-1, 3), TRUNCATION * step)
            total[i : i + slices] += torch.where(counts, value, 0.0).view(points.shape[:3])
            weight[i : i + slices] += counts.view(points.shape[:3])
    field = torch.where(weight > 0, total / weight.clamp(min=1.0), -1.0)
    return avg_pool3d(pad(field[None, None], (1,) * 6, mode="replicate"), 3, stride=1)[0, 0]


def _distances(view: View, points: Tensor, truncation: float) -> tuple[Tensor, Tensor]:
    """Of points [P] from the front that a view sees, -1..1, and whether it can tell."""
    z, uv = _projected(view, points)
    depth = grid_sample(view.depth, uv, mode="nearest", align_corners=False)[0, 0, 0]
    alpha = grid_sample(view.alpha, uv, mode="bilinear", align_corners=False)[0, 0, 0]
    distance = torch.where(alpha < SOLID, 1.0, (depth - z) / truncation)
    inside_picture = (uv.abs() <= 1.0).all(-1)[0, 0]
    return distance.clamp(max=1.0), inside_picture & (distance > -1.0)


def _projected(view: View, points: Tensor) -> tuple[Tensor, Tensor]:
    """Depths [P] of points [P, 3], and their places in it as of grid_sample [1, 1, P, 2]."""
    matrix, K = viewmats(view.camera)[0], view.camera.K[0]
    x, y, z = (points @ matrix[:3, :3].T + matrix[:3, 3]).unbind(-1)
    u = (K[0, 0] * x / z + K[0, 2]) * 2.0 / view.camera.width - 1.0
    v = (K[1, 1] * y / z + K[1, 2]) * 2.0 / view.camera.height - 1.0
    return z, torch.stack([u, v], -1)[None, None]


def vertex_colors(views: list[View], vertices: Tensor, outward: Tensor) -> Tensor:
    """Colours [V, 3] of vertices and their normals [V, 3]: of the views that see them straight, above all."""
    device = views[0].rgb.device
    points, outward = vertices.to(device), outward.to(device)
    total, weight = points.new_zeros(len(points), 3), points.new_zeros(len(points), 1)
    near = 2.0 * TRUNCATION * REACH / GRID
    for view in views:
        z, uv = _projected(view, points)
        rgb = grid_sample(view.rgb, uv, align_corners=False)[0, :, 0].T
        alpha, depth = (grid_sample(x, uv, align_corners=False)[0, 0, 0] for x in (view.alpha, view.depth))
        facing = (normalize(positions(view.camera) - points, dim=-1) * outward).sum(-1).clamp(min=0.0)
        shown = (z < depth + near) & (alpha > SOLID)
        w = (shown * facing**2 + 1e-6)[:, None]  # a little for all: what none sees straight has a colour, too
        total, weight = total + w * rgb, weight + w * alpha[:, None]
    return (total / weight.clamp(min=1e-12)).clamp(0, 1)
