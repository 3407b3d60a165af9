"""Where each pixel of a latent looks: the map of rays that a denoiser reads beside the latents.

Convolutions know neither where in the picture they are nor what is seen from there; told both, a network
need not spread the view over its maps by itself (ray maps as in CAT3D, Gao et al. 2024, of a pinhole camera).

Shapes: B views, S the side of the latents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from splatgen.scene.cameras import DEFAULT_DISTANCE, DEFAULT_FOV

RAYS = 24  # channels: 6 of the place in the picture, 18 of the ray
_TURNS = (1, 2)  # half waves per world unit of the point nearest to the origin


def ray_map(camera: Tensor, side: int) -> Tensor:
    """The rays of cameras that look at the origin, [B, RAYS, S, S].

    camera [B, CAMERA] is `seen_from`: its first column tells whether there is one (else only the place in the
    picture is told), then the azimuth's sine and cosine, after its harmonics the elevation's.
    """
    known, sin_az, cos_az = (camera[:, n, None, None] for n in range(3))
    sin_el, cos_el = (camera[:, n, None, None] for n in (-4, -3))
    steps = (torch.arange(side, device=camera.device, dtype=camera.dtype) + 0.5) / side * 2.0 - 1.0
    up, right = torch.meshgrid(-steps, steps, indexing="ij")  # [S, S], -1..1
    waves = [f(math.pi * z) for z in (right, up) for f in (torch.sin, torch.cos)]
    place = torch.stack([right, up, *waves])

    nothing = torch.zeros_like(sin_az)
    back = torch.stack([cos_el * sin_az, sin_el, cos_el * cos_az], 1)  # [B, 3, 1, 1], to the camera
    aside = torch.stack([cos_az, nothing, -sin_az], 1)
    above = torch.linalg.cross(back, aside, dim=1)
    half = math.tan(math.radians(DEFAULT_FOV) / 2.0)
    direction = normalize(half * right * aside + half * up * above - back, dim=1)
    eye = DEFAULT_DISTANCE * back
    nearest = eye - (eye * direction).sum(1, keepdim=True) * direction
    waves = [f(k * math.pi * nearest) for k in _TURNS for f in (torch.sin, torch.cos)]
    ray = torch.cat([direction, nearest, *waves], 1) * known[:, None]
    return torch.cat([place.expand(len(camera), -1, -1, -1), ray], 1)
