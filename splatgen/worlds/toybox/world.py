"""The procedural world: captions become exact images, silhouettes and points by ray casting.

Every object has one canonical geometry, so a caption and a camera determine the picture up to its
background. Shading is fixed in the world (hemisphere, a key and a fill light), the same from every
view, so that it can be baked into splats.

Shapes: B images, P rays an image, M rays of the objects of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from splatgen.scene.cameras import Cameras, orbit, positions
from splatgen.worlds.toybox.grammar import COLORS, PATTERNS, SHAPES, Caption, Item

SPHERE_RADIUS = 0.70
CUBE_HALF = 0.54
CYLINDER_RADIUS, CYLINDER_HALF = 0.52, 0.63
CONE_RADIUS, CONE_HALF = 0.68, 0.66
TORUS_MAJOR, TORUS_MINOR = 0.52, 0.22  # the ring stands upright and faces the front
HALF_HEIGHT = {"sphere": 0.70, "cube": 0.54, "cylinder": 0.63, "cone": 0.66, "torus": 0.74}
HALF_WIDTH = {"sphere": 0.70, "cube": 0.54, "cylinder": 0.52, "cone": 0.68, "torus": 0.74}
HALF_DEPTH = {"sphere": 0.70, "cube": 0.54, "cylinder": 0.52, "cone": 0.68, "torus": 0.22}
PAIR_SCALE = 0.64  # objects shrink when there are two
PAIR_GAP = 0.05  # between objects side by side, world units
STRIPES = 5
FRONT_SHARE = 0.5  # a front covers what lies beyond this share of the half depth

KEY_LIGHT, FILL_LIGHT = (0.60, 0.75, 0.28), (-0.30, 0.10, -0.95)
FAR = 1e9


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An item with its place in the world."""

    item: Item
    center: tuple[float, float, float]
    scale: float


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What cameras see of a caption."""

    rgb: Tensor  # [B, 3, H, W] on the background, 0..1
    alpha: Tensor  # [B, 1, H, W] coverage of the supersampled pixel
    depth: Tensor  # [B, 1, H, W] distance along the ray, mean over the covered samples, 0 where none


def place(caption: Caption) -> tuple[Placed, ...]:
    """The canonical arrangement, centred on the origin."""
    first, second = caption.first, caption.second
    if second is None:
        return (Placed(item=first, center=(0.0, 0.0, 0.0), scale=1.0),)
    s = PAIR_SCALE
    if caption.relation == "on top of":
        top, bottom = s * HALF_HEIGHT[first.shape], s * HALF_HEIGHT[second.shape]
        return (
            Placed(item=first, center=(0.0, bottom, 0.0), scale=s),
            Placed(item=second, center=(0.0, -top, 0.0), scale=s),
        )
    left, right = s * HALF_WIDTH[first.shape], s * HALF_WIDTH[second.shape]
    return (
        Placed(item=first, center=(-right - PAIR_GAP / 2, 0.0, 0.0), scale=s),
        Placed(item=second, center=(left + PAIR_GAP / 2, 0.0, 0.0), scale=s),
    )


def rays(cameras: Cameras, supersample: int) -> tuple[Tensor, Tensor]:
    """Origins [B, 3] and unit directions [B, P, 3] through the sub-pixel centres, row by row."""
    w, h, n = cameras.width, cameras.height, supersample
    x = (torch.arange(w * n, device=cameras.K.device) + 0.5) / n
    y = (torch.arange(h * n, device=cameras.K.device) + 0.5) / n
    K = cameras.K
    u = (x[None, :] - K[:, 0, 2, None]) / K[:, 0, 0, None]  # [B, W n]
    v = -(y[None, :] - K[:, 1, 2, None]) / K[:, 1, 1, None]  # [B, H n], up
    u, v = u[:, None, :].expand(-1, h * n, -1), v[:, :, None].expand(-1, -1, w * n)
    local = torch.stack([u, v, -torch.ones_like(u)], -1).flatten(1, 2)  # [B, P, 3]
    return positions(cameras), normalize(local @ cameras.c2w[:, :3, :3].mT, dim=-1)


def sphere(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """First hit of rays with the unit-pose sphere: distance [M] (FAR: missed) and normal [M, 3]."""
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - SPHERE_RADIUS**2
    t = _smaller_root(a, b, c)
    return t, normalize(o + t.clamp_max(1e3)[..., None] * d, dim=-1)


def cube(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Slab test; the normal is the face that is entered last."""
    inverse = 1.0 / torch.where(d.abs() < 1e-9, torch.full_like(d, 1e-9), d)
    t0, t1 = (-CUBE_HALF - o) * inverse, (CUBE_HALF - o) * inverse
    enter, axis = torch.minimum(t0, t1).max(-1)
    leave = torch.maximum(t0, t1).amin(-1)
    normal = torch.nn.functional.one_hot(axis, 3).to(d.dtype) * -d.sign()
    return torch.where((enter < leave) & (enter > 0), enter, FAR), normal


def cylinder(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Upright capped cylinder."""
    a = d[..., 0] ** 2 + d[..., 2] ** 2
    b = o[..., 0] * d[..., 0] + o[..., 2] * d[..., 2]
    c = o[..., 0] ** 2 + o[..., 2] ** 2 - CYLINDER_RADIUS**2
    side = _smaller_root(a, b, c)
    p = o + side.clamp_max(1e3)[..., None] * d
    side = torch.where(p[..., 1].abs() <= CYLINDER_HALF, side, FAR)
    cap = _disc(o, d, CYLINDER_HALF * -d[..., 1].sign(), CYLINDER_RADIUS)
    flat = torch.zeros_like(d)
    flat[..., 1] = -d[..., 1].sign()
    round_ = normalize(p * torch.tensor([1.0, 0.0, 1.0], device=o.device), dim=-1)
    return torch.minimum(side, cap), torch.where((cap < side)[..., None], flat, round_)


def cone(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Upright cone, apex at +CONE_HALF, base disc at -CONE_HALF."""
    k2 = (CONE_RADIUS / (2 * CONE_HALF)) ** 2
    y = o[..., 1] - CONE_HALF
    a = d[..., 0] ** 2 + d[..., 2] ** 2 - k2 * d[..., 1] ** 2
    b = o[..., 0] * d[..., 0] + o[..., 2] * d[..., 2] - k2 * y * d[..., 1]
    c = o[..., 0] ** 2 + o[..., 2] ** 2 - k2 * y**2
    a = torch.where(a.abs() < 1e-9, torch.full_like(a, 1e-9), a)
    root = (b * b - a * c).clamp_min(0.0).sqrt()
    side = torch.full_like(a, FAR)
    for t in ((-b - root) / a, (-b + root) / a):  # a < 0 swaps their order, hence the minimum of the valid
        height = o[..., 1] + t * d[..., 1]
        valid = (b * b > a * c) & (t > 0) & (height.abs() <= CONE_HALF)
        side = torch.where(valid & (t < side), t, side)
    base = _disc(o, d, torch.full_like(a, -CONE_HALF), CONE_RADIUS)
    p = o + side.clamp_max(1e3)[..., None] * d
    slope = torch.stack([p[..., 0], k2 * (CONE_HALF - p[..., 1]), p[..., 2]], -1)
    flat = torch.zeros_like(d)
    flat[..., 1] = -1.0
    return torch.minimum(side, base), torch.where((base < side)[..., None], flat, normalize(slope, dim=-1))


def torus(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Ring around the z axis, by sphere tracing of the rays that meet its bounding ball."""
    speed = d.norm(dim=-1)
    b, c = (o * d).sum(-1), (o * o).sum(-1) - (TORUS_MAJOR + TORUS_MINOR) ** 2
    start = _smaller_root(speed**2, b, c)
    t, normal = torch.full_like(start, FAR), torch.zeros_like(d)
    near = (start < FAR).nonzero()[:, 0]
    o, d, s, speed = o[near], d[near], start[near], speed[near]
    for _ in range(40):
        s = s + _torus_distance(o + s[:, None] * d) / speed
    p = o + s[:, None] * d
    hit = (_torus_distance(p) < 2e-3) & (p.norm(dim=-1) < TORUS_MAJOR + TORUS_MINOR + 1e-2)
    t[near] = torch.where(hit, s, FAR)
    ring = normalize(p * torch.tensor([1.0, 1.0, 0.0], device=p.device), dim=-1) * TORUS_MAJOR
    normal[near] = normalize(p - ring, dim=-1)
    return t, normal


def _torus_distance(p: Tensor) -> Tensor:
    return torch.hypot(p[:, :2].norm(dim=-1) - TORUS_MAJOR, p[:, 2]) - TORUS_MINOR


def _smaller_root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Nearest positive root of a t^2 + 2 b t + c for rays that start outside, else FAR."""
    disc = b * b - a * c
    t = (-b - disc.clamp_min(0.0).sqrt()) / a.clamp_min(1e-12)
    return torch.where((disc > 0) & (t > 0), t, FAR)


def _disc(o: Tensor, d: Tensor, height: Tensor, radius: float) -> Tensor:
    """Distance to a horizontal disc, else FAR."""
    dy = d[..., 1]
    t = (height - o[..., 1]) / torch.where(dy.abs() < 1e-9, torch.full_like(dy, 1e-9), dy)
    p = o + t.clamp(-1e3, 1e3)[..., None] * d
    inside = p[..., 0] ** 2 + p[..., 2] ** 2 <= radius**2
    return torch.where(inside & (t > 0), t, FAR)


INTERSECT: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "sphere": sphere,
    "cube": cube,
    "cylinder": cylinder,
    "cone": cone,
    "torus": torus,
}


def shade(normal: Tensor) -> Tensor:
    """Brightness [...] of a surface with this world normal [..., 3]; about 0.45 to 1."""

    def light(direction: tuple[float, float, float]) -> Tensor:
        unit = normalize(torch.tensor(direction, device=normal.device), dim=0)
        return (normal @ unit).clamp_min(0.0)

    return 0.45 + 0.1 * (1.0 + normal[..., 1]) + 0.42 * light(KEY_LIGHT) + 0.13 * light(FILL_LIGHT)


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """One item of each image, as tensors: what the ray caster needs."""

    shape: Tensor  # [B] index into SHAPES, -1: no object
    center: Tensor  # [B, 3]
    scale: Tensor  # [B]
    color: Tensor  # [B, 3]
    color2: Tensor  # [B, 3] of the pattern or the front
    style: Tensor  # [B] 0 plain, 1.. pattern, -1 front


def _slots(captions: Sequence[Caption], device: torch.device) -> list[_Slot]:
    placed = [place(caption) for caption in captions]
    slots = []
    for n in range(max(len(p) for p in placed)):
        rows = []
        for p in placed:
            if n >= len(p):
                rows.append((-1.0, 0.0, 0.0, 0.0, 1.0, *(0.0,) * 6, 0.0))
                continue
            item = p[n].item
            style = -1.0 if item.front else PATTERNS.index(item.pattern) + 1.0 if item.pattern else 0.0
            second = COLORS[item.front or item.color2 or item.color]
            rows.append(
                (
                    SHAPES.index(item.shape) + 0.0,
                    *p[n].center,
                    p[n].scale,
                    *COLORS[item.color],
                    *second,
                    style,
                )
            )
        m = torch.tensor(rows, device=device)
        slots.append(
            _Slot(
                shape=m[:, 0].long(),
                center=m[:, 1:4],
                scale=m[:, 4],
                color=m[:, 5:8],
                color2=m[:, 8:11],
                style=m[:, 11].long(),
            )
        )
    return slots


def _albedo(local: Tensor, shape: str, slot: _Slot, index: Tensor) -> Tensor:
    """Surface colour [b, P, 3] at points in the object's own frame [b, P, 3]."""
    half = HALF_HEIGHT[shape]
    band = torch.floor((local[..., 1] / half + 1.0) / 2.0 * STRIPES).long() % 2 == 1
    check = (local > 0).sum(-1) % 2 == 1
    cap = local[..., 2] > FRONT_SHARE * HALF_DEPTH[shape]
    style = slot.style[index, None]
    second = ((style == -1) & cap) | ((style == 1) & band) | ((style == 2) & check)
    return torch.where(second[..., None], slot.color2[index, None], slot.color[index, None])


def cast(captions: Sequence[Caption], origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Ray-cast a batch of scenes: shaded colour [B, P, 3] and distance [B, P] (FAR: background)."""
    distance = torch.full(directions.shape[:2], FAR, device=directions.device)
    color = torch.zeros_like(directions)
    for slot in _slots(captions, directions.device):
        for k, shape in enumerate(SHAPES):
            index = (slot.shape == k).nonzero()[:, 0]
            if len(index) == 0:
                continue
            scale = slot.scale[index, None, None]
            d = directions[index] / scale
            o = ((origins[index] - slot.center[index])[:, None] / scale).expand_as(d)
            t, normal = INTERSECT[shape](o.reshape(-1, 3), d.reshape(-1, 3))
            t, normal = t.view(d.shape[:2]), normal.view(d.shape)
            local = o + t.clamp_max(1e3)[..., None] * d
            shaded = _albedo(local, shape, slot, index) * shade(normal)[..., None]
            nearer = t < distance[index]
            color[index] = torch.where(nearer[..., None], shaded, color[index])
            distance[index] = torch.where(nearer, t, distance[index])
    return color.clamp(0.0, 1.0), distance


def ground_truth(
    caption: Caption | Sequence[Caption],
    cameras: Cameras,
    background: Tensor | None = None,  # [3] or [B, 3]; None = black
    *,
    supersample: int = 3,
) -> Truth:
    """The exact picture of one caption from every camera, or of one caption a camera."""
    captions = [caption] * len(cameras) if isinstance(caption, Caption) else list(caption)
    if len(captions) != len(cameras):
        raise ValueError(f"got {len(captions)} captions for {len(cameras)} cameras: give one each, or one")
    origins, directions = rays(cameras, supersample)
    color, distance = cast(captions, origins, directions)
    hit = (distance < FAR).to(color.dtype)
    b, n = len(cameras), supersample

    def pooled(x: Tensor) -> Tensor:  # [B, P, C] -> [B, C, H, W]
        grid = x.view(b, cameras.height, n, cameras.width, n, -1)
        return grid.mean(dim=(2, 4)).permute(0, 3, 1, 2)

    alpha = pooled(hit[..., None])
    back = torch.zeros(3, device=color.device) if background is None else background.to(color)
    rgb = pooled(color * hit[..., None]) + (1.0 - alpha) * back.expand(b, 3)[..., None, None]
    depth = pooled((distance * hit)[..., None]) / alpha.clamp_min(1e-6)
    return Truth(rgb=rgb, alpha=alpha, depth=depth)


def point_cloud(caption: Caption, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points on the visible surface, [count, 3], with their shaded colours, [count, 3].

    Rays from random directions through random points of the bounding ball hit the surface about
    evenly; those that miss are drawn again.
    """
    points, colors, have = [], [], 0
    while have < count:
        n = 4 * count
        out = normalize(torch.randn(1, n, 3, generator=generator), dim=-1)
        through = 0.95 * normalize(torch.randn(1, n, 3, generator=generator), dim=-1)
        through = through * torch.rand(1, n, 1, generator=generator).pow(1 / 3)
        origin = through + 4.0 * out
        color, distance = _cast_free(caption, origin, -out)
        keep = distance[0] < FAR
        points.append((origin - distance.clamp_max(1e3)[..., None] * out)[0][keep])
        colors.append(color[0][keep])
        have += int(keep.sum())
    return torch.cat(points)[:count], torch.cat(colors)[:count]


def _cast_free(caption: Caption, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """cast() for rays [1, P, 3] that each have their own origin."""
    count = directions.shape[1]
    color, distance = cast([caption] * count, origins[0], directions[0][:, None])
    return color[:, 0][None], distance[:, 0][None]


def random_cameras(generator: torch.Generator, count: int, size: int, overhead: float = 0.14) -> Cameras:
    """Training viewpoints: any azimuth; elevations -15 to 52, a share of them 52 to 80 (overhead)."""
    u = torch.rand(3, count, generator=generator)
    elevation = torch.where(u[1] < overhead, 52.0 + 28.0 * u[2], -15.0 + 67.0 * u[2])
    return orbit(360.0 * u[0], elevation, size=size)
