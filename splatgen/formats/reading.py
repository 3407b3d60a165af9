"""What the readers of all formats share: how a file is opened, and what splats must be to leave a reader."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from splatgen.formats.splat_file import Array, SplatFile

STEP32 = 2.0**-24  # of float32 just below 1
MOST_LOGIT = math.log((1 - STEP32 / 4) / (STEP32 / 4))  # of an opacity of 1 that was stored as float32
TINY = float(np.finfo(np.float32).tiny)  # the scale of a splat that is flat
MOST = float(np.finfo(np.float32).max)

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], kind: str) -> Iterator[tuple[BinaryIO, int]]:
    """Yield a file and its size in bytes; a ValueError on the way gets the path in front.

    Raises ValueError for a folder, and for a pipe, which would block; OSError passes through.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{os.fspath(path)!r} is not a file: give a {kind} file")
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} can't be read as {kind}: {error}") from error


def checked(file: SplatFile, path: str | os.PathLike[str], *, broken: bool) -> SplatFile:
    """Splats that every part of the program can use; raises ValueError for numbers that are not finite.

    Three things that other tools write have a meaning, and get finite numbers: an infinite logit (opacity
    exactly 0 or 1), minus infinity as a log scale (flat), and a zero quaternion (no rotation). broken=True
    lets everything else through, for callers that drop it.
    """
    opacities = np.where(np.isinf(file.opacities), np.sign(file.opacities) * MOST_LOGIT, file.opacities)
    scales = np.where(file.scales == -math.inf, math.log(TINY), file.scales).astype(np.float32)
    means = np.where(np.abs(file.means) > MOST, math.inf, file.means)
    quats, zero = file.quats, (file.quats == 0).all(-1)
    if zero.any():
        _log.warning("%s: %d zero quaternions read as no rotation", os.fspath(path), int(zero.sum()))
        quats = np.where(zero[:, None], np.array([1, 0, 0, 0], np.float32), quats)
    file = replace(file, means=means, quats=quats, scales=scales, opacities=opacities.astype(np.float32))
    for name, value in file.arrays().items():
        bad = int((~np.isfinite(value)).sum()) if not broken else 0
        if bad:
            raise ValueError(
                f"it has {bad} numbers in its {name} that are not finite in float32: `splatgen export` "
                "leaves such splats out"
            )
    return file


def logits(opacities: Array, step: float) -> Array:
    """Opacities in 0..1 that were stored in steps, as finite logits, float32.

    The first and the last step are half as wide as the others, and are read as their middle.
    """
    shares = np.clip(opacities.astype(np.float64), step / 4, 1 - step / 4)
    return np.log(shares / (1 - shares)).astype(np.float32)


def log_scales(scales: Array, *, broken: bool) -> Array:
    """Logs of linear scales, float32; a scale of 0, which is a flat splat, becomes tiny.

    Raises ValueError for negative ones; broken turns them into NaN instead.
    """
    negative = scales < 0
    if negative.any() and not broken:
        raise ValueError(f"it has {int(negative.sum())} negative scales: it is damaged, or another format")
    sound = np.where(negative, math.nan, np.maximum(scales.astype(np.float64), TINY))
    return np.log(sound).astype(np.float32)
