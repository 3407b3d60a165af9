"""What the writers of all formats share: which splats are worth a place in a file, and in what shape."""

from __future__ import annotations

import logging
import math
import os

import torch
from torch import Tensor

from splatgen.formats import frames
from splatgen.scene.splats import Splats, check

MIN_OPACITY = 1 / 255  # below, a splat can't change an 8-bit pixel

_log = logging.getLogger(__name__)


def usable(splats: Splats) -> Tensor:
    """Mask of the splats that are finite, also in size, and have a rotation, [N]."""
    values = (*splats.tensors().values(), splats.scales.exp())
    finite = [v.reshape(len(splats), -1).isfinite().all(-1) for v in values if len(splats)]
    return torch.stack([*finite, (splats.quats != 0).any(-1)]).all(0)


def visible(splats: Splats) -> Tensor:
    """Mask of the splats that are at least MIN_OPACITY opaque, [N]."""
    return splats.opacities >= math.log(MIN_OPACITY / (1 - MIN_OPACITY))


def prepared(
    splats: Splats,
    path: str | os.PathLike[str],
    *,
    frame: str,
    sh_degree: int | None,
    clean: bool,
    most_degree: int = 3,
) -> tuple[Splats, int]:
    """Splats as a file holds them, float32 on the CPU, and how many were dropped.

    clean drops what is not usable or not visible; without it, what is not usable raises ValueError.
    sh_degree pads with zeros or cuts; None keeps the splats' own, up to the format's most_degree.
    """
    check(splats)
    splats = Splats(**{k: v.detach().to("cpu", torch.float32) for k, v in splats.tensors().items()})
    kept = splats.select(usable(splats) & visible(splats)) if clean else splats
    dropped = len(splats) - len(kept)
    if dropped:
        level = logging.INFO if len(kept) else logging.WARNING  # an empty file is hardly what was wanted
        _log.log(level, "%s: dropped %d of %d splats, invisible or broken", path, dropped, len(splats))
    bad = int((~usable(kept)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(kept)} splats are not finite or lack a rotation: set clean=True")
    degree = min(kept.sh_degree, most_degree) if sh_degree is None else sh_degree
    if degree not in range(most_degree + 1):
        has = "0" if most_degree == 0 else f"0 to {most_degree}"
        raise ValueError(f"no SH degree {degree} in {os.fspath(path)!r}: this format has {has}")
    return frames.to_frame(with_degree(kept, degree), frame), dropped


def unit(quats: Tensor) -> Tensor:
    """Quaternions [N, 4] of length 1, float64: float32 would overflow for components beyond 1e19."""
    return torch.nn.functional.normalize(quats.double(), dim=-1, eps=0.0)


def with_degree(splats: Splats, degree: int) -> Splats:
    """Splats of another degree: coefficients are cut, or padded with zeros."""
    if degree == splats.sh_degree:
        return splats
    count = (degree + 1) ** 2
    sh = torch.zeros(len(splats), count, 3)
    sh[:, : splats.sh.shape[1]] = splats.sh[:, :count]
    return Splats(**{**splats.tensors(), "sh": sh})
