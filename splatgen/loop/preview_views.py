"""The eight views a preview shows: named, unlike each other, and filled by the object.

Shapes: H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from splatgen.scene.cameras import DEFAULT_DISTANCE, DEFAULT_FOV, Cameras, orbit
from splatgen.scene.placement import FITTED, placement
from splatgen.scene.splats import Splats

VIEWS = (  # name, azimuth, elevation in degrees; right is to the right of the front's picture
    ("front", 0.0, 12.0),
    ("right", 90.0, 12.0),
    ("back", 180.0, 12.0),
    ("left", 270.0, 12.0),
    ("front, from above", 35.0, 35.0),
    ("back, from above", 215.0, 35.0),
    ("top", 0.0, 85.0),
    ("underside", 0.0, -55.0),
)
FILLED = 0.9  # of the picture's side, by the ball around the object
INK = (120, 120, 120)  # readable on white, black and grey
_FRACTION = 18  # of the picture's side, the height of a label


def close_fov() -> float:
    """The field of view, in degrees, in which an object of the radius FITTED fills the picture."""
    return 2.0 * math.degrees(math.asin(FITTED / DEFAULT_DISTANCE)) / FILLED


def framed(splats: Splats) -> Splats:
    """Splats in the middle, at the size that `close_fov` fits; a cloud without extent as it is."""
    if not len(splats):
        return splats
    try:
        return placement(splats, "always").place(splats)
    except ValueError:  # its middle or its size is no number: the sheet shows what there is
        return splats


def close_cameras(size: int) -> Cameras:
    """The cameras of VIEWS for framed splats, pictures of size x size pixels."""
    return usual_cameras(size, close_fov())


def usual_cameras(size: int, fov: float = DEFAULT_FOV) -> Cameras:
    """The cameras of VIEWS at the distance from which a run sees its splats; fov in degrees."""
    _, azimuth, elevation = zip(*VIEWS, strict=True)
    return orbit(torch.tensor(azimuth), torch.tensor(elevation), size=size, fov=fov)


def labelled(images: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Images [H, W, 3] of VIEWS with their names in the corner; too small ones stay without."""
    from PIL import Image, ImageDraw, ImageFont

    for image, (name, _, _) in zip(images, VIEWS, strict=True):
        height = len(image) // _FRACTION
        if height < 8:
            yield image
            continue
        page = Image.fromarray(image)
        ImageDraw.Draw(page).text((height // 2, height // 3), name, INK, ImageFont.load_default(height))
        yield np.asarray(page)
