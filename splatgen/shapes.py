"""Where the cloud of the first step comes from: a ball, a splat file, a mesh, or Shap-E for the prompt.

All of them end in the internal frame, +Y up and +Z toward the camera at azimuth 0, and fill the same share of
the picture, whatever the units of a file.

Shapes: N splats, V vertices, F triangles.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from splatgen import formats
from splatgen.budget import Keep
from splatgen.cameras import half_extent
from splatgen.config import Config, SplatOptions, ViewOptions
from splatgen.rng import rng
from splatgen.splats import Splats, random_ball, rgb_to_sh

FILL = 0.69  # radius of what is moved into view, as a share of half the picture
IN_VIEW = (0.43, 0.86)  # radii, likewise, of a splat file that is left where it is
SHARE = 0.95  # of the opacity that must be in view: a few stray splats do not count
FEWEST = 8  # splats that can show an object
MIN_OPACITY = 1 / 255  # below, a splat can't change an 8-bit pixel
MAX_OPACITY = 0.99  # above, next to no gradient passes the sigmoid
MESH_BYTES = 200_000_000
MESH_MOST = 4_000_000  # vertices, and triangles
LINES_MOST, LINE_BYTES = 20_000_000, 100_000
FAR = 1e30  # coordinates beyond are broken, and their squares might overflow
SPREAD, THICKNESS = 0.9, 0.1  # of splats on a surface: in its plane in units of their spacing, and across


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Triangles in the internal frame, in any unit and place."""

    vertices: Tensor  # [V, 3] float64
    faces: Tensor  # [F, 3] int64
    colors: Tensor  # [V, 3] 0..1


def starting_splats(config: Config, keep: Keep) -> Splats:
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
        from splatgen import shap_e

        vertices, faces, colors = shap_e.generate(config.prompt, keep, rng(config.seed, 0, "shap-e"))
        mesh = Mesh(vertices=vertices, faces=faces, colors=colors)
        return on_surface(mesh, generator, o, FILL * half, "Shap-E's mesh")
    path = Path(config.init).expanduser()
    if path.suffix.lower() == ".obj":
        return on_surface(read_obj(path), generator, o, FILL * half, str(path))
    return from_splats(formats.load(path), o, half, most=config.densify.max_splats, name=str(path))


def reach(views: ViewOptions) -> float:
    """Half the height, in world units, that every camera of a run sees at least at the origin."""
    return views.distance[0] if views.relative else half_extent(views.distance[0], views.fov[0])


# Splat files


def from_splats(splats: Splats, options: SplatOptions, half: float, *, most: int, name: str) -> Splats:
    """Splats to start from, in view: at most `most`, those that cover most, of the degree asked for.

    Broken and invisible splats are dropped, and those that are out of view after the rest was moved into it:
    they would stand between the object and a camera. Raises ValueError where hardly any are left.
    """
    splats = splats.select(_usable(splats))
    if len(splats) >= FEWEST:
        splats = fitted(splats, half, name)
        sizes = splats.scales.amax(-1).exp()
        splats = splats.select((splats.means.norm(dim=-1) <= half) & (sizes <= half))
    if len(splats) < FEWEST:
        raise ValueError(
            f"{name} holds {len(splats)} splats that can be seen: give one that shows an object ({FEWEST} or "
            "more)"
        )
    if len(splats) > most:
        area = splats.scales.topk(2, dim=-1).values.sum(-1)  # its log, seen from where a splat is largest
        cover = splats.opacities.sigmoid().log() + area
        splats = splats.select(cover.argsort(descending=True, stable=True)[:most].sort().values)
    quats = splats.quats.double()  # float32 would overflow for components beyond 1e19
    limit = math.log(MAX_OPACITY / (1.0 - MAX_OPACITY))
    return replace(
        splats,
        quats=torch.nn.functional.normalize(quats, dim=-1).float(),
        opacities=splats.opacities.clamp(max=limit),
        sh=with_degree(splats.sh, options.sh_degree),
    )


def _usable(splats: Splats) -> Tensor:
    """Mask [N] of what is finite, has a rotation and can be seen."""
    parts = [v[:, None].flatten(1) for v in (*splats.tensors().values(), splats.scales.exp())]
    finite = torch.cat(parts, 1).isfinite().all(-1)
    return finite & (splats.quats != 0).any(-1) & (splats.opacities.sigmoid() >= MIN_OPACITY)


def fitted(splats: Splats, half: float, name: str) -> Splats:
    """Splats in the middle of the picture, without a rotation: y = (x - centre) scale.

    They count by their opacity, so that a few floaters move nothing. The centre is the middle of the box that
    holds SHARE of it along each axis, the radius that of the ball around it. What is in view and not tiny
    stays: priors know where objects stand. Raises ValueError for a cloud without any extent in numbers.
    """
    means, weights = splats.means.double(), splats.opacities.double().sigmoid()
    sizes = splats.scales.double().amax(-1).exp()  # a splat reaches beyond its centre
    if IN_VIEW[0] * half <= quantile(means.norm(dim=-1) + sizes, weights, SHARE) <= IN_VIEW[1] * half:
        return splats
    rest = (1.0 - SHARE) / 2.0
    ends = [[quantile(axis, weights, p) for p in (rest, 1.0 - rest)] for axis in means.unbind(-1)]
    away = means - means.new_tensor([(low + high) / 2.0 for low, high in ends])
    radius = quantile(away.norm(dim=-1) + sizes, weights, SHARE)
    if not math.isfinite(radius) or radius <= 0.0:
        raise ValueError(f"{name} shows something of radius {radius:g}: remove its broken splats")
    scale = FILL * half / radius
    scales = splats.scales.double() + math.log(scale)
    return replace(splats, means=(away * scale).float(), scales=scales.float())


def quantile(values: Tensor, weights: Tensor, share: float) -> float:
    """The value [] of values [N] below which `share` of the weight [N] lies."""
    order = values.argsort()
    below = weights[order].cumsum(0)
    return float(values[order][min(int((below < share * below[-1]).sum()), len(values) - 1)])


def with_degree(sh: Tensor, degree: int) -> Tensor:
    """Coefficients [N, K, 3] of another degree: cut, or padded with zeros."""
    found = torch.zeros(len(sh), (degree + 1) ** 2, 3)
    kept = min(found.shape[1], sh.shape[1])
    found[:, :kept] = sh[:, :kept]
    return found


# Meshes


def on_surface(
    mesh: Mesh, generator: torch.Generator, options: SplatOptions, radius: float, name: str
) -> Splats:
    """Splats spread evenly over a mesh whose box is centred and whose farthest corner is at `radius`.

    Raises ValueError for a mesh without area.
    """
    corners = mesh.vertices[mesh.faces]  # [F, 3, 3]
    corners = corners - (corners.amin((0, 1)) + corners.amax((0, 1))) / 2.0
    size = float(corners.norm(dim=-1).max())
    corners = corners * (radius / size if size > 0.0 else 0.0)
    normals = torch.linalg.cross(
        corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    )  # 2 x area long
    areas = normals.norm(dim=-1)
    if not float(areas.sum()) > 1e-9 * radius**2:
        raise ValueError(f"{name} has no surface, its triangles have no area: give a mesh of an object")
    faces, shares = spread(areas, options.count, generator)
    spacing = math.sqrt(float(areas.sum()) / 2.0 / options.count)
    # Discs, not balls: what is split off them stays in the surface, and colours of two sides do not mix. On
    # the toybox, thin ones came nearer to the prompt than balls in as many steps, above all in the first 30.
    scales = torch.tensor([SPREAD, SPREAD, THICKNESS]) * spacing
    colors = (shares[..., None] * mesh.colors[mesh.faces[faces]]).sum(1)  # [N, 3]
    sh = torch.zeros(options.count, (options.sh_degree + 1) ** 2, 3)
    sh[:, 0] = rgb_to_sh(colors.float())
    return Splats(
        means=(shares[..., None] * corners[faces]).sum(1).float(),
        quats=facing(normals[faces]).float(),
        scales=scales.log().expand(options.count, 3).clone(),
        opacities=torch.logit(torch.full((options.count,), options.opacity)),
        sh=sh,
    )


def spread(areas: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points on triangles of given areas [F]: which triangle [N], and the weights of its corners [N, 3].

    Each point falls into its own share of the total area: with independent ones, holes would be larger.
    """
    solid = areas.nonzero()[:, 0]
    u = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    ends = areas[solid].cumsum(0)
    faces = solid[torch.searchsorted(ends, u * ends[-1]).clamp(max=len(solid) - 1)]
    a, b = torch.rand(2, count, generator=generator, dtype=torch.float64)
    a, b = torch.where(a + b > 1.0, 1.0 - a, a), torch.where(a + b > 1.0, 1.0 - b, b)
    return faces, torch.stack([1.0 - a - b, a, b], -1)


def facing(normals: Tensor) -> Tensor:
    """Rotations [N, 4] wxyz that take the z axis to normals [N, 3] of any length, or to their opposites."""
    unit = torch.nn.functional.normalize(normals, dim=-1)
    x, y, z = torch.where(unit[:, 2:] < 0.0, -unit, unit).unbind(-1)  # a disc has no front
    return torch.nn.functional.normalize(torch.stack([1.0 + z, -y, x, torch.zeros_like(z)], -1), dim=-1)


def read_obj(path: Path) -> Mesh:
    """The triangles of a Wavefront .obj file, whose axes are the internal ones: +Y up, +Z to the front.

    Reads the lines `v x y z [r g b]` and `f ...`, polygons as fans; all others, those that name materials and
    textures above all, are skipped, and no other file is opened. Vertices without a colour are grey.
    Raises ValueError in one line for anything that is no such file or too large; OSError passes through.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError(f"{path} is no file: give an .obj file")
    if size > MESH_BYTES:
        raise ValueError(f"{path} is larger than {MESH_BYTES // 10**6} MB: simplify the mesh first")
    vertices, faces = array("d"), array("q")  # six and three numbers each
    with path.open("rb") as file:
        for number, words in _lines(file, path):
            try:
                if words[0] == b"v":
                    vertices.extend(_vertex(words))
                elif words[0] == b"f":
                    faces.extend(_fan(words, len(vertices) // 6))
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {_reason(error)}") from error
            if max(len(vertices) // 6, len(faces) // 3) > MESH_MOST:
                raise ValueError(
                    f"{path} has more than {MESH_MOST:,} vertices or triangles: simplify it first"
                )
    return _checked(vertices, faces, path)


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """The words of each line that has any, with its number; a backslash at the end joins two lines."""
    number, start = 0, b""
    while line := file.readline(LINE_BYTES):
        number += 1
        line = start + (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        if len(line) >= LINE_BYTES:
            raise ValueError(f"{path} line {number}: it is longer than {LINE_BYTES:,} bytes: is that a mesh?")
        if number > LINES_MOST:
            raise ValueError(f"{path} has more than {LINES_MOST:,} lines: simplify the mesh first")
        start = b""
        if line.rstrip().endswith(b"\\"):
            start = line.rstrip()[:-1]
            continue
        if words := line.partition(b"#")[0].split():
            yield number, words
    if words := start.partition(b"#")[0].split():  # the last line ends in a backslash
        yield number, words


def _vertex(words: list[bytes]) -> list[float]:
    """x y z r g b of `v x y z`, `v x y z w` or `v x y z r g b`; no colour is NaN."""
    numbers = [float(word) for word in words[1:8]]
    if len(numbers) < 3:
        raise ValueError("a vertex has three coordinates")
    if not all(-FAR < value < FAR for value in numbers):  # false for NaN too
        raise ValueError("a number is not finite, or beyond 1e30")
    return numbers[:6] if len(numbers) >= 6 else [*numbers[:3], math.nan, math.nan, math.nan]


def _fan(words: list[bytes], count: int) -> list[int]:
    """Corners, three a triangle, of `f v v v ...` with v, v/vt, v//vn or v/vt/vn, from 0.

    v is the number of a vertex from 1, or counted from the last of the `count` ones so far, which is -1.
    """
    corners = []
    for word in words[1:]:
        index = int(word.partition(b"/")[0])
        index = index - 1 if index > 0 else count + index if index < 0 else -1
        if not 0 <= index < MESH_MOST:
            raise ValueError("a face uses a vertex that is not there")
        corners.append(index)
    if len(corners) < 3:
        raise ValueError("a face has three corners or more")
    return [c for a, b in itertools.pairwise(corners[1:]) for c in (corners[0], a, b)]


def _reason(error: ValueError) -> str:
    """What is wrong with a line, without quoting what may be binary."""
    words = str(error)
    numbers = ("could not convert", "invalid literal", "Exceeds the limit")
    return "it has something that is not a number" if words.startswith(numbers) else words


def _checked(vertices: array[float], faces: array[int], path: Path) -> Mesh:
    rows = torch.from_numpy(np.array(vertices).reshape(-1, 6))
    corners = torch.from_numpy(np.array(faces).reshape(-1, 3))
    if len(corners) == 0:
        what = f"{len(rows)} vertices and no faces" if len(rows) else "no vertices"
        raise ValueError(f"{path} holds {what}: give a mesh of triangles or polygons")
    if int(corners.max()) >= len(rows):
        raise ValueError(
            f"{path} has a face that uses vertex {int(corners.max()) + 1} of {len(rows)}: export it again"
        )
    colors = rows[:, 3:].clone()
    if float(colors.nan_to_num(0.0).max()) > 1.0:  # some programs write 0 to 255
        colors = colors / 255.0
    return Mesh(vertices=rows[:, :3], faces=corners, colors=colors.nan_to_num(0.5).clamp(0.0, 1.0))
