"""What the writers of all formats share: which splats are worth a place in a file, and in what shape."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from splatgen.formats import frames
from splatgen.formats.splat_file import Array, SplatFile

MIN_OPACITY = 1 / 255  # below, a splat can't change an 8-bit pixel

_log = logging.getLogger(__name__)


def usable(file: SplatFile) -> NDArray[np.bool_]:
    """Mask of the splats that are finite, also in size, and have a rotation, [N]."""
    with np.errstate(over="ignore"):
        values = (*file.arrays().values(), np.exp(file.scales))
    sound: NDArray[np.bool_] = (file.quats != 0).any(-1)
    for value in values:
        sound &= np.isfinite(value).all(axis=tuple(range(1, value.ndim)))
    return sound


def visible(file: SplatFile) -> NDArray[np.bool_]:
    """Mask of the splats that are at least MIN_OPACITY opaque, [N]."""
    seen: NDArray[np.bool_] = file.opacities >= math.log(MIN_OPACITY / (1 - MIN_OPACITY))
    return seen


def prepared(
    file: SplatFile,
    path: str | os.PathLike[str],
    *,
    frame: str,
    sh_degree: int | None,
    clean: bool,
    most_degree: int = 3,
) -> tuple[SplatFile, int]:
    """Splats in the frame and of the degree that a file wants, and how many were dropped.

    clean drops what is not usable or not visible; without it, what is not usable raises ValueError.
    sh_degree pads with zeros or cuts; None keeps the splats' own, up to the format's most_degree.
    """
    kept = file.select(usable(file) & visible(file)) if clean else file
    dropped = len(file) - len(kept)
    if dropped:
        level = logging.INFO if len(kept) else logging.WARNING  # an empty file is hardly what was wanted
        _log.log(level, "%s: dropped %d of %d splats, invisible or broken", path, dropped, len(file))
    bad = int((~usable(kept)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(kept)} splats are not finite or lack a rotation: set clean=True")
    degree = min(kept.sh_degree, most_degree) if sh_degree is None else sh_degree
    if degree not in range(most_degree + 1):
        has = "0" if most_degree == 0 else f"0 to {most_degree}"
        raise ValueError(f"no SH degree {degree} in {os.fspath(path)!r}: this format has {has}")
    return frames.to_frame(with_degree(kept, degree), frame), dropped


def unit(quats: Array) -> NDArray[np.float64]:
    """Quaternions [N, 4] of length 1, float64: float32 would overflow for components beyond 1e19."""
    exact = quats.astype(np.float64)
    found: NDArray[np.float64] = exact / np.linalg.norm(exact, axis=-1, keepdims=True)
    return found


def with_degree(file: SplatFile, degree: int) -> SplatFile:
    """Splats of another degree: coefficients are cut, or padded with zeros."""
    if degree == file.sh_degree:
        return file
    count = (degree + 1) ** 2
    sh = np.zeros((len(file), count, 3), np.float32)
    sh[:, : file.sh.shape[1]] = file.sh[:, :count]
    return replace(file, sh=sh)
