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
import torch
from torch import Tensor

from splatgen.scene.splats import Splats

STEP32 = 2.0**-24  # of float32 just below 1
MOST_LOGIT = math.log((1 - STEP32 / 4) / (STEP32 / 4))  # of an opacity of 1 that was stored as float32
TINY = float(np.finfo(np.float32).tiny)  # the scale of a splat that is flat

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


def checked(splats: Splats, path: str | os.PathLike[str], *, broken: bool) -> Splats:
    """Splats that every part of the program can use; raises ValueError for numbers that are not finite.

    Three things that other tools write have a meaning, and get finite numbers: an infinite logit (opacity
    exactly 0 or 1), minus infinity as a log scale (flat), and a zero quaternion (no rotation). broken=True
    lets everything else through, for callers that drop it.
    """
    opacities = splats.opacities
    opacities = torch.where(opacities.isinf(), opacities.sign() * MOST_LOGIT, opacities)
    flat = splats.scales == -math.inf
    splats = replace(splats, opacities=opacities, scales=splats.scales.masked_fill(flat, math.log(TINY)))
    zero = (splats.quats == 0).all(-1)
    if zero.any():
        _log.warning("%s: %d zero quaternions read as no rotation", os.fspath(path), int(zero.sum()))
        splats.quats[zero] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    for name, value in splats.tensors().items():
        bad = int((~value.isfinite()).sum()) if not broken else 0
        if bad:
            raise ValueError(
                f"it has {bad} numbers in its {name} that are not finite in float32: `splatgen export` "
                "leaves such splats out"
            )
    return splats


def logits(opacities: Tensor, step: float) -> Tensor:
    """Opacities in 0..1 that were stored in steps, as finite logits, float32.

    The first and the last step are half as wide as the others, and are read as their middle.
    """
    return torch.logit(opacities.double().clamp(step / 4, 1 - step / 4)).float()


def log_scales(scales: Tensor, *, broken: bool) -> Tensor:
    """Logs of linear scales, float32; a scale of 0, which is a flat splat, becomes tiny.

    Raises ValueError for negative ones; broken turns them into NaN instead.
    """
    negative = scales < 0
    if negative.any() and not broken:
        raise ValueError(f"it has {int(negative.sum())} negative scales: it is damaged, or another format")
    return scales.double().clamp(min=TINY).masked_fill(negative, math.nan).log().float()
