"""What a run of splats shows of itself, and the settings that can change while it goes on.

Shapes: N splats, B views, K candidates, C x h x w the prior's space.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from splatgen import formats
from splatgen.config import Config, ConfigError
from splatgen.config.validation import validate
from splatgen.formats.splat_file import SplatFile
from splatgen.guidance.distillation import Gradient
from splatgen.loop.snapshot import Candidate, Cloud, Picture, ViewRequest
from splatgen.loop.step import Models, StepResult
from splatgen.priors import Prior
from splatgen.rasterizer import render
from splatgen.scene.cameras import Cameras
from splatgen.scene.parameters import Scene
from splatgen.scene.splats import Splats, sh_to_rgb

THUMB = 96  # pixels, of a candidate's picture
MOST_PIXELS = 512 * 512  # of a picture from a browser's camera


def steered(
    base: Config, config: Config, models: Models, setting: str, value: float
) -> tuple[Config, Models]:
    """Config and models with a setting changed; raises ConfigError for one that cannot be.

    guidance.scale; lr.factor, times all rates of base; reward.NAME, the weight of a reward that guides.
    """
    kind, _, name = setting.partition(".")
    if setting == "guidance.scale":
        changed = dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, scale=value))
        models = dataclasses.replace(models, denoiser=models.denoiser.changed(scale=value))
    elif setting == "lr.factor":
        rates = {group: value * getattr(base.lr, group) for group in RATES}
        changed = dataclasses.replace(config, lr=dataclasses.replace(base.lr, **rates))
    elif kind == "reward" and name in config.rewards():
        weights = {**config.rewards(), name: value}
        changed = dataclasses.replace(config, reward=tuple(f"{n}={w!r}" for n, w in weights.items()))
        ensemble = dataclasses.replace(models.ensemble, weights=tuple(weights.values()))
        models = dataclasses.replace(models, ensemble=ensemble)
    else:
        known = ", ".join(("guidance.scale", "lr.factor", *(f"reward.{name}" for name in config.rewards())))
        raise ConfigError(f"no setting {setting[:60]!r} can change in a run; those that can: {known}")
    return validate(changed), models


def unsteered(base: Config, models: Models) -> Models:
    """Models as they were before a user changed anything."""
    ensemble = dataclasses.replace(models.ensemble, weights=tuple(base.rewards().values()))
    return dataclasses.replace(
        models, denoiser=models.denoiser.changed(scale=base.guidance.scale), ensemble=ensemble
    )


RATES = ("means", "scales", "quats", "opacities", "sh")


def shown(
    scene: Scene, models: Models | None, seen: StepResult | None, look: ViewRequest | None
) -> dict[str, Any]:
    """The fields of a Snapshot that are about the splats and the last step, which takes its models."""
    splats = scene.splats.detach()
    fields: dict[str, Any] = {"cloud": cloud(splats)}
    if look is not None:
        fields["view"] = picture(splats, look)
    if seen is not None and models is not None:
        cameras = seen.cameras
        fields["cameras"] = cameras.c2w.cpu().numpy().astype(np.float32)
        half = cameras.height / (2.0 * float(cameras.K[0, 1, 1]))
        fields["fov"] = float(np.degrees(2.0 * np.arctan(half)))
        fields["candidates"] = () if seen.found is None else candidates(models, seen.found)
    return fields


def cloud(splats: Splats) -> Cloud:
    """Splats in the form that viewers draw: covariances in place of scales and quaternions."""
    rotation = matrices(splats.quats)
    spread = rotation * splats.scales.exp()[:, None]  # [N, 3, 3] columns scaled
    arrays = (
        splats.means,
        spread @ spread.mT,
        sh_to_rgb(splats.sh[:, 0]).clamp(0.0, 1.0),
        splats.opacities.sigmoid(),
    )
    means, covariances, rgbs, opacities = (a.float().cpu().numpy() for a in arrays)
    return Cloud(means=means, covariances=covariances, rgbs=rgbs, opacities=opacities)


def ply(splats: Splats | SplatFile, comments: Sequence[str] = ()) -> bytes:
    """Splats as the content of a .ply. Raises ValueError and OSError as `formats.save` does."""
    with tempfile.TemporaryDirectory(prefix="splatgen-") as folder:
        path = Path(folder) / "splats.ply"
        formats.save(splats, path, comments=comments)
        return path.read_bytes()


def matrices(quats: Tensor) -> Tensor:
    """Rotations [N, 3, 3] of quaternions [N, 4] wxyz, which need not be of length 1."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def picture(splats: Splats, look: ViewRequest, *, antialiased: bool = False) -> Picture:
    """Our own rasterizer's picture from a browser's camera, on white, of limited size."""
    share = min(1.0, (MOST_PIXELS / (look.width * look.height)) ** 0.5)
    width, height = max(int(look.width * share), 8), max(int(look.height * share), 8)
    focal = 0.5 * height / float(np.tan(np.radians(look.fov) / 2.0))
    K = torch.tensor([[[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]])
    zero = torch.zeros(1)
    camera = Cameras(
        c2w=torch.from_numpy(look.c2w.astype(np.float32))[None],
        K=K,
        width=width,
        height=height,
        azimuth=zero,
        elevation=zero,
    )
    with torch.no_grad():
        rgb = render(splats, camera, torch.ones(3), antialiased=antialiased).rgb
    found: Picture = bytes_of(rgb)[0]
    return found


def candidates(models: Models, found: Gradient) -> tuple[Candidate, ...]:
    """The one-step estimates of the first view, with their rewards and what became of them."""
    with torch.no_grad():
        small = thumbnails(models.prior, found.x0[:, 0])  # [K, 3, S, S]
    if small.shape[-1] > THUMB:
        small = interpolate(small, size=(THUMB, THUMB), mode="bilinear", antialias=True)
    rewards = [None] * len(small) if found.rewards is None else found.rewards[:, 0].tolist()
    kept, weights = found.kept[:, 0].tolist(), found.weights[:, 0].tolist()
    told = dict(zip(kept, weights, strict=True))
    if not found.paired:  # of a pair, the loser may have no weight
        told = {k: weight for k, weight in told.items() if weight != 0.0}
    paired = len(told) == 2 and len(small) == 2
    roles = {k: ("win", "lose")[place] if paired else "kept" for place, k in enumerate(told)}
    return tuple(
        Candidate(picture=image, reward=reward, weight=told.get(k, 0.0), role=roles.get(k, ""))
        for k, (image, reward) in enumerate(zip(bytes_of(small), rewards, strict=True))
    )


def thumbnails(prior: Prior, x: Tensor) -> Tensor:
    """Estimates [K, C, h, w] as pictures of about THUMB pixels: latents are shrunk before they are decoded.

    An autoencoder at full size would take the GPU's time from the run, several times a second.
    """
    side = -(-THUMB * x.shape[-1] // prior.resolution)  # of x, so that its picture has THUMB pixels
    if side < x.shape[-1]:
        x = interpolate(x, size=(side, side), mode="area")
    return prior.preview(x).clamp(0.0, 1.0)


def bytes_of(images: Tensor) -> Picture:
    """Images [B, 3, H, W] in 0..1 as [B, H, W, 3] of bytes."""
    found: Picture = (255.0 * images.clamp(0, 1) + 0.5).byte().permute(0, 2, 3, 1).cpu().numpy()
    return found
