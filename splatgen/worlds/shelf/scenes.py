"""Scenes: a caption's models, recoloured, stacked or side by side, and their exact pictures.

Every noun has one model, so a caption and a camera determine the picture up to its background.
The toybox's captions are part of this world and are drawn by the toybox.

Shapes: B images, V vertices, H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from splatgen.scene.cameras import Cameras
from splatgen.worlds.shelf import raster, shelf_folder
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.colours import COLORS, paint_mask, recolour
from splatgen.worlds.shelf.folder import read_models
from splatgen.worlds.shelf.grammar import AnyCaption, Caption, Item
from splatgen.worlds.shelf.meshes import RADIUS, Baked, Floats, Mesh, bake, bounds
from splatgen.worlds.toybox import grammar as toybox_grammar
from splatgen.worlds.toybox import world as toybox_world
from splatgen.worlds.toybox.world import Truth

PAIR_SCALE = 0.64  # models shrink when there are two
PAIR_GAP = 0.05  # between models side by side, world units
TOP_RADIUS = 0.25  # about the vertical axis, where a lower model is looked at for its height
_SAMPLES = np.array(  # of a face, for that height: its middle, and those of its edges
    [[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]], np.float32
)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A surface with its place in the world."""

    surface: Baked
    scale: float
    offset: tuple[float, float, float]

    def positions(self) -> Floats:
        """[V, 3] in the world."""
        moved: Floats = self.surface.positions * np.float32(self.scale) + np.array(self.offset, np.float32)
        return moved


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What stacking needs to know of a model."""

    low: Floats  # [3] corners of its box
    high: Floats
    top: float  # where something stands on it


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Every model, in every colour it can have, lit."""

    surfaces: Mapping[tuple[str, str | None], Baked]  # by noun and colour; None: as it is
    extents: Mapping[str, Extent]  # by noun

    def surface(self, item: Item) -> Baked:
        return self.surfaces[item.noun, item.color]


def stock(models: Mapping[str, Mesh], recoloured: Sequence[str]) -> Shelf:
    """Light models by noun, and those of `recoloured` in every colour."""
    surfaces: dict[tuple[str, str | None], Baked] = {(name, None): bake(m) for name, m in models.items()}
    for name in recoloured:
        mask = paint_mask(models[name])
        surfaces |= {(name, color): bake(recolour(models[name], color, mask)) for color in COLORS}
    return Shelf(surfaces=surfaces, extents={name: extent(m) for name, m in models.items()})


@cache
def shelf() -> Shelf:
    """The models of this machine's folder, read once; ShelfError where there are none."""
    known = catalogue()
    able = [noun.name for noun in known.nouns.values() if noun.recolour]
    return stock(read_models(shelf_folder(), known), able)


def extent(mesh: Mesh) -> Extent:
    """The box of a mesh, and the height of its surface near the vertical axis."""
    low, high = bounds(mesh.positions)
    corners = mesh.positions[mesh.faces]  # [F, 3, 3]
    samples = np.einsum("sk,fkc->sfc", _SAMPLES, corners).reshape(-1, 3)
    points = np.concatenate([mesh.positions, samples])
    near = np.hypot(points[:, 0], points[:, 2]) < TOP_RADIUS
    return Extent(low=low, high=high, top=float(points[near, 1].max()) if near.any() else float(high[1]))


def place(caption: Caption, on: Shelf) -> tuple[Placed, ...]:
    """The canonical arrangement, in the ball of RADIUS around the origin."""
    a = caption.first
    if caption.second is None:
        return (Placed(surface=on.surface(a), scale=1.0, offset=(0.0, 0.0, 0.0)),)
    b, s = caption.second, PAIR_SCALE
    over, under = on.extents[a.noun], on.extents[b.noun]
    if caption.relation == "on top of":
        first, second = (0.0, s * (under.top - float(over.low[1])), 0.0), (0.0, 0.0, 0.0)
    else:
        first = (-s * float(over.high[0]) - PAIR_GAP / 2, -s * float(over.low[1]), 0.0)
        second = (-s * float(under.low[0]) + PAIR_GAP / 2, -s * float(under.low[1]), 0.0)
    return _fitted(
        Placed(surface=on.surface(a), scale=s, offset=first),
        Placed(surface=on.surface(b), scale=s, offset=second),
    )


def _fitted(*parts: Placed) -> tuple[Placed, ...]:
    """Centre the box of all on the origin and scale them into the ball."""
    clouds = [part.positions() for part in parts]
    low = np.min([cloud.min(0) for cloud in clouds], 0)
    high = np.max([cloud.max(0) for cloud in clouds], 0)
    center = (low + high) / 2
    reach = max(float(np.square(cloud - center).sum(1).max()) for cloud in clouds) ** 0.5
    k = RADIUS / reach
    return tuple(
        dataclasses.replace(
            part,
            scale=part.scale * k,
            offset=tuple(((np.array(part.offset) - center) * k).tolist()),
        )
        for part in parts
    )


def point_cloud(
    caption: AnyCaption, count: int, generator: torch.Generator, on: Shelf | None = None
) -> tuple[Tensor, Tensor]:
    """Points on the surface, even by area, [count, 3], with their shaded colours, [count, 3]."""
    if not isinstance(caption, Caption):
        return toybox_world.point_cloud(caption, count, generator)
    corners, colors = [], []
    for part in place(caption, on or shelf()):
        faces = torch.from_numpy(part.surface.faces).long()
        corners.append(torch.from_numpy(part.positions())[faces])
        colors.append(torch.from_numpy(part.surface.colors)[faces])
    corner, color = torch.cat(corners), torch.cat(colors)  # [F, 3, 3]
    area = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]).norm(dim=-1)
    rows = torch.multinomial(area, count, replacement=True, generator=generator)
    u = torch.rand(count, 2, generator=generator)
    u = torch.where(u.sum(-1, keepdim=True) > 1, 1 - u, u)  # the other half of the parallelogram
    weights = torch.cat([1 - u.sum(-1, keepdim=True), u], -1)[..., None]  # [count, 3, 1]
    return (corner[rows] * weights).sum(1), (color[rows] * weights).sum(1)


def lenses(cameras: Cameras) -> list[raster.Lens]:
    """Cameras as the raster takes them."""
    c2w, K = cameras.c2w.cpu().numpy(), cameras.K.cpu().numpy()
    return [
        raster.Lens(
            eye=pose[:3, 3],
            axes=np.ascontiguousarray(pose[:3, :3].T),
            focal=(float(k[0, 0]), float(k[1, 1])),
            center=(float(k[0, 2]), float(k[1, 2])),
        )
        for pose, k in zip(c2w, K, strict=True)
    ]


def premultiplied(
    captions: Sequence[AnyCaption], cameras: Cameras, on: Shelf | None = None, *, supersample: int = 3
) -> Tensor:
    """Colour times coverage, and coverage, of one caption a camera, [B, 4, H, W]; no backward."""
    return _seen(captions, cameras, on, supersample, depth=False)[0]


def ground_truth(
    caption: AnyCaption | Sequence[AnyCaption],
    cameras: Cameras,
    background: Tensor | None = None,  # [3] or [B, 3]; None = black
    *,
    supersample: int = 3,
    on: Shelf | None = None,  # None: this machine's
) -> Truth:
    """The exact picture of one caption from every camera, or of one caption a camera.

    Raises ShelfError where the models are not on this machine.
    """
    captions = list(caption) if isinstance(caption, Sequence) else [caption] * len(cameras)
    if len(captions) != len(cameras):
        raise ValueError(f"got {len(captions)} captions for {len(cameras)} cameras: give one each, or one")
    images, depth = _seen(captions, cameras, on, supersample, depth=True)
    images, depth = images.to(cameras.K), depth.to(cameras.K)
    alpha = images[:, 3:]
    back = torch.zeros(3, device=alpha.device) if background is None else background.to(alpha)
    rgb = images[:, :3] + (1.0 - alpha) * back.expand(len(alpha), 3)[..., None, None]
    return Truth(rgb=rgb, alpha=alpha, depth=depth)


def _seen(
    captions: Sequence[AnyCaption], cameras: Cameras, on: Shelf | None, supersample: int, *, depth: bool
) -> tuple[Tensor, Tensor]:
    """Premultiplied pictures [B, 4, H, W] and distances [B, 1, H, W] (zeros unless asked for)."""
    size = (len(cameras), cameras.height, cameras.width)
    found, away = np.empty((*size, 4), np.float32), np.zeros(size, np.float32)
    sheet = raster.canvas(cameras.width, cameras.height, supersample)
    toys: dict[int, toybox_grammar.Caption] = {}
    for n, (caption, lens) in enumerate(zip(captions, lenses(cameras), strict=True)):
        if not isinstance(caption, Caption):
            toys[n] = caption
            continue
        for part in place(caption, on or shelf()):
            raster.draw(sheet, part.surface, lens, part.scale, part.offset)
        if depth:
            raster.distances(sheet, lens, away[n])
        raster.resolve(sheet, found[n])
    images, distance = torch.from_numpy(found).permute(0, 3, 1, 2), torch.from_numpy(away)[:, None]
    if toys:
        rows = torch.tensor([*toys])
        seen = toybox_world.ground_truth([*toys.values()], cameras[rows], supersample=supersample)
        images[rows] = torch.cat([seen.rgb, seen.alpha], 1).cpu()
        distance[rows] = seen.depth.cpu()
    return images, distance
