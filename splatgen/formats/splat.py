"""Splats in the .splat layout of antimatter15's viewer: 32 bytes each, no header, no spherical harmonics.

    position 3 float32, scale 3 float32 (linear), colour and opacity 4 uint8 (255 is 1),
    rotation 4 uint8 (wxyz, q 128 + 128)

The largest come first, by volume times opacity, so that a viewer can draw while it loads. There is no
word about axes in a file: they are those of a .ply, from which everyone converts.

Source: github.com/antimatter15/splat, main.js and convert.py. Shapes: N splats.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatgen.formats import frames, reading, writing
from splatgen.formats.splat_file import Array, SplatFile, sigmoid
from splatgen.runs import atomic
from splatgen.scene.harmonics import SH_C0

MOST_DEGREE = 0
KEEPS: frozenset[str] = frozenset()
_LAYOUT = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("quat", "u1", 4)])
_OTHERS = {b"ply\n": ".ply", b"ply\r": ".ply", b"glTF": ".glb", b"NGSP": ".spz", b"\x1f\x8b\x08\x00": ".spz"}


def save(
    file: SplatFile,
    path: str | os.PathLike[str],
    *,
    comments: Sequence[str] = (),
    sh_degree: int | None = None,
    frame: str = "ply",
    clean: bool = True,
) -> int:
    """Write splats atomically; return how many were dropped.

    The format has no room for comments and no degree but 0. clean and frame are as in ply.save.
    """
    written, dropped = writing.prepared(
        file, path, frame=frame, sh_degree=sh_degree, clean=clean, most_degree=MOST_DEGREE
    )
    atomic.write_bytes(path, rows(written).tobytes())
    return dropped


def losses(file: SplatFile) -> list[str]:
    """What a .splat does not keep of splats, a phrase each."""
    colors = 0.5 + SH_C0 * file.sh[:, 0]
    clamped = int(((colors < 0) | (colors > 1)).sum())
    told = ["colours and opacities beyond 1/255", "rotations beyond 0.9 degrees"]
    return [*told, f"{clamped:,} colour values beyond 0..1"] if clamped else told


def read(path: str | os.PathLike[str], *, frame: str | None = None, broken: bool = False) -> SplatFile:
    """Read splats into the internal frame; None is that of a .ply.

    Raises ValueError in one line for sizes, numbers (unless broken) and scales that no .splat has;
    OSError passes through. Takes a few times the file's size of memory at most.
    """
    with reading.opened(path, ".splat") as (file, size):
        start = file.read(4)
        if start in _OTHERS:
            raise ValueError(f"it begins like a {_OTHERS[start]}: give it that suffix")
        if size % _LAYOUT.itemsize:
            raise ValueError(
                f"its {size} bytes are no multiple of {_LAYOUT.itemsize}: it is truncated or another format, "
                "so copy it again"
            )
        file.seek(0)
        rows = np.fromfile(file, _LAYOUT, size // _LAYOUT.itemsize)
        found = reading.checked(_splats(rows, broken, upright=frame is not None), path, broken=broken)
        return frames.from_frame(found, frame or "ply")


def rows(file: SplatFile) -> NDArray[np.void]:
    """The file's rows, the largest first, [N]."""
    with np.errstate(divide="ignore"):  # of an opacity of 0
        weight = file.scales.astype(np.float64).sum(-1) + np.log(sigmoid(file.opacities))
    file = file.select(np.argsort(-weight, kind="stable"))
    rows = np.zeros(len(file), _LAYOUT)
    rows["mean"] = file.means
    rows["scale"] = np.exp(file.scales.astype(np.float64))
    colors = 0.5 + SH_C0 * file.sh[:, 0].astype(np.float64)
    rows["color"] = _bytes(255 * np.concatenate([colors, sigmoid(file.opacities)[:, None]], -1))
    rows["quat"] = _bytes(128 * _signed(writing.unit(file.quats)) + 128)
    return rows


def _signed(quats: Array) -> Array:
    """The one of q and -q whose largest component is negative, [N, 4]: -1 is a byte, +1 would be 256."""
    largest = np.take_along_axis(quats, np.abs(quats).argmax(-1)[:, None], -1)  # [N, 1]
    found: Array = -quats * np.sign(largest)
    return found


def _bytes(values: Array) -> NDArray[np.uint8]:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _splats(rows: NDArray[Any], broken: bool, *, upright: bool) -> SplatFile:
    color = rows["color"].astype(np.float32) / 255  # [N, 4]
    quats = (rows["quat"].astype(np.float32) - 128) / 128
    lengths = np.linalg.norm(quats, axis=-1, keepdims=True)
    return SplatFile(
        means=rows["mean"].astype(np.float64),
        quats=quats / np.where(lengths == 0, 1, lengths),
        scales=reading.log_scales(rows["scale"], broken=broken),
        opacities=reading.logits(color[:, 3], 1 / 255),
        sh=((color[:, :3] - 0.5) / np.float32(SH_C0))[:, None],
        upright=upright,
    )
