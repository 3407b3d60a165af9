"""Cameras, and the one place where the axes are defined.

World: right-handed, +Y up. Azimuth 0 puts the camera on +Z looking at the object's front; the
azimuth grows toward +X, the elevation toward +Y (both in degrees). Camera: x right, y up, looking
down its own -Z (OpenGL, as glTF). gsplat wants OpenCV cameras (y down, z forward): `viewmats`
below is the only function that converts.

Shapes: B cameras.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_DISTANCE = 2.5  # world units; a unit-radius object fills the frame at DEFAULT_FOV
DEFAULT_FOV = 50.0  # vertical field of view, degrees


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """A batch of pinhole cameras of one image size. On a GPU's machine, too, they are best on the CPU: what
    looks at their angles need not wait, and `render` takes them from there.

    c2w maps camera coordinates (OpenGL) to the world; K holds focal lengths and the principal
    point in pixels, with pixel centres at +0.5.
    """

    c2w: Tensor  # [B, 4, 4]
    K: Tensor  # [B, 3, 3]
    width: int
    height: int
    azimuth: Tensor  # [B] degrees
    elevation: Tensor  # [B] degrees

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(
                f"a camera needs at least one pixel, got {self.width}x{self.height}: "
                "choose a positive width and height"
            )

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Cameras:
        return Cameras(
            c2w=self.c2w[index],
            K=self.K[index],
            width=self.width,
            height=self.height,
            azimuth=self.azimuth[index],
            elevation=self.elevation[index],
        )

    def repeated(self, count: int) -> Cameras:
        """All of them, `count` times over."""
        return Cameras(
            c2w=self.c2w.repeat(count, 1, 1),
            K=self.K.repeat(count, 1, 1),
            width=self.width,
            height=self.height,
            azimuth=self.azimuth.repeat(count),
            elevation=self.elevation.repeat(count),
        )

    def to(self, device: torch.device | str) -> Cameras:
        return Cameras(
            c2w=self.c2w.to(device),
            K=self.K.to(device),
            width=self.width,
            height=self.height,
            azimuth=self.azimuth.to(device),
            elevation=self.elevation.to(device),
        )

    def resized(self, width: int, height: int) -> Cameras:
        """Return the same cameras at another pixel size (the field of view stays)."""
        scale = torch.tensor(
            [width / self.width, height / self.height, 1.0], dtype=self.K.dtype, device=self.K.device
        )
        return Cameras(
            c2w=self.c2w,
            K=self.K * scale[:, None],
            width=width,
            height=height,
            azimuth=self.azimuth,
            elevation=self.elevation,
        )


def viewmats(cameras: Cameras) -> Tensor:
    """World-to-camera matrices in gsplat's OpenCV convention, [B, 4, 4]."""
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=cameras.c2w.dtype, device=cameras.c2w.device)
    rotation = cameras.c2w[:, :3, :3] * flip  # columns: camera axes right, down, forward
    w2c = torch.zeros_like(cameras.c2w)
    w2c[:, :3, :3] = rotation.mT
    w2c[:, :3, 3] = -(rotation.mT @ cameras.c2w[:, :3, 3:])[..., 0]
    w2c[:, 3, 3] = 1.0
    return w2c


def orbit(
    azimuth: Tensor,  # [B] degrees
    elevation: Tensor,  # [B] degrees
    *,
    size: int | tuple[int, int],
    distance: float | Tensor = DEFAULT_DISTANCE,
    fov: float | Tensor = DEFAULT_FOV,
) -> Cameras:
    """Cameras on a sphere around the origin, looking at it, upright.

    size is the image's side or (width, height) in pixels; distance and fov are scalars or [B].
    """
    width, height = (size, size) if isinstance(size, int) else size
    azimuth = torch.as_tensor(azimuth, dtype=torch.float32)
    elevation = torch.as_tensor(elevation, dtype=torch.float32)
    az, el = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    zero = torch.zeros_like(az)
    back = torch.stack([el.cos() * az.sin(), el.sin(), el.cos() * az.cos()], -1)  # [B, 3]
    right = torch.stack([az.cos(), zero, -az.sin()], -1)  # stays defined at the poles
    up = torch.linalg.cross(back, right)
    c2w = torch.zeros(len(az), 4, 4)
    c2w[:, :3, :3] = torch.stack([right, up, back], -1)
    c2w[:, :3, 3] = back * torch.as_tensor(distance, dtype=torch.float32).reshape(-1, 1)
    c2w[:, 3, 3] = 1.0
    half = torch.tan(torch.deg2rad(torch.as_tensor(fov, dtype=torch.float32)) / 2)
    focal = (0.5 * height / half).expand(len(az))
    K = torch.zeros(len(az), 3, 3)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = 0.5 * width, 0.5 * height, 1.0
    return Cameras(c2w=c2w, K=K, width=width, height=height, azimuth=azimuth, elevation=elevation)


def sample_orbit(
    generator: torch.Generator,
    *,
    views: int,
    size: int,
    elevation: tuple[float, float],
    distance: tuple[float, float] = (DEFAULT_DISTANCE, DEFAULT_DISTANCE),
    fov: tuple[float, float] = (DEFAULT_FOV, DEFAULT_FOV),
    group: int = 1,
    relative: bool = False,
    law: str = "degrees",
) -> Cameras:
    """Random cameras with stratified azimuths: each of the equal sectors gets one view.

    Views of a group follow one another, evenly spaced around the object at one random elevation, distance
    and field of view, as multi-view priors are trained. Relative distances are multiples of 1 / tan(fov / 2).
    Elevations are uniform in degrees; with the law "mixed" in half of the calls uniform on the sphere,
    asin(sin a + u (sin b - sin a)), for all views of a call, as threestudio draws them. Raises ValueError
    where the views don't fill whole groups.
    """
    if views % group:
        raise ValueError(f"{views} views can't be seen {group} at a time: give a multiple of {group}")
    items = views // group
    u = torch.rand(4, items, generator=generator)
    offset = torch.rand(1, generator=generator)  # rotates the strata so that no azimuth is favoured
    first = ((torch.arange(items) + u[0]) / items + offset) % 1.0  # within the first of `group` sectors
    tilt, away, angle = (
        (low + (high - low) * share).repeat_interleave(group)
        for (low, high), share in zip((elevation, distance, fov), u[1:], strict=True)
    )
    if law == "mixed" and torch.rand(1, generator=generator) >= 0.5:
        low, high = (math.sin(math.radians(limit)) for limit in elevation)
        tilt = torch.rad2deg(torch.asin(low + (high - low) * u[1])).repeat_interleave(group)
    if relative:
        away = away / torch.tan(torch.deg2rad(angle) / 2)
    return orbit(
        ((first[:, None] + torch.arange(group)) / group).flatten() * 360.0,
        tilt,
        size=size,
        distance=away,
        fov=angle,
    )


def turntable(
    frames: int,
    *,
    size: int,
    elevation: float = 15.0,
    distance: float = DEFAULT_DISTANCE,
    fov: float = DEFAULT_FOV,
) -> Cameras:
    """Evenly spaced cameras of one full turn, starting at the front."""
    azimuth = torch.arange(frames) * (360.0 / frames)
    return orbit(azimuth, torch.full((frames,), elevation), size=size, distance=distance, fov=fov)


def positions(cameras: Cameras) -> Tensor:
    """Camera centres in the world, [B, 3]."""
    return cameras.c2w[:, :3, 3]


def half_extent(distance: float, fov: float) -> float:
    """Half the height, in world units, that a camera sees at the distance of the origin."""
    return distance * math.tan(math.radians(fov) / 2)
