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
import torch
from numpy.typing import NDArray

from splatgen.formats import frames, reading, writing
from splatgen.runs import atomic
from splatgen.scene.splats import SH_C0, Splats, rgb_to_sh, sh_to_rgb

MOST_DEGREE = 0
_LAYOUT = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("quat", "u1", 4)])
_OTHERS = {b"ply\n": ".ply", b"ply\r": ".ply", b"glTF": ".glb", b"NGSP": ".spz", b"\x1f\x8b\x08\x00": ".spz"}


def save(
    splats: Splats,
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
        splats, path, frame=frame, sh_degree=sh_degree, clean=clean, most_degree=MOST_DEGREE
    )
    atomic.write_bytes(path, _rows(written).tobytes())
    return dropped


def losses(splats: Splats) -> list[str]:
    """What a .splat does not keep of splats, a phrase each."""
    colors = sh_to_rgb(splats.sh[:, 0])
    clamped = int(((colors < 0) | (colors > 1)).sum())
    told = ["colours and opacities beyond 1/255", "rotations beyond 0.9 degrees"]
    return [*told, f"{clamped:,} colour values beyond 0..1"] if clamped else told


def load(path: str | os.PathLike[str], *, frame: str = "ply", broken: bool = False) -> Splats:
    """Read splats into the internal frame, float32 on the CPU.

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
        return frames.from_frame(reading.checked(_splats(rows, broken), path, broken=broken), frame)


def _rows(splats: Splats) -> NDArray[np.void]:
    """The file's rows, the largest first, [N]."""
    weight = splats.scales.double().sum(-1) + splats.opacities.double().sigmoid().log()
    splats = splats.select(weight.argsort(descending=True, stable=True))
    rows = np.zeros(len(splats), _LAYOUT)
    rows["mean"] = splats.means.numpy()
    rows["scale"] = splats.scales.double().exp().numpy()
    colors = 0.5 + SH_C0 * splats.sh[:, 0].double()
    rows["color"] = _bytes(255 * torch.cat([colors, splats.opacities.double().sigmoid()[:, None]], -1))
    rows["quat"] = _bytes(128 * _signed(writing.unit(splats.quats)) + 128)
    return rows


def _signed(quats: torch.Tensor) -> torch.Tensor:
    """The one of q and -q whose largest component is negative, [N, 4]: -1 is a byte, +1 would be 256."""
    largest = quats.gather(-1, quats.abs().argmax(-1, keepdim=True))  # [N, 1]
    return -quats * largest.sign()


def _bytes(values: torch.Tensor) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = values.round().clamp(0, 255).to(torch.uint8).numpy()
    return rounded


def _splats(rows: NDArray[Any], broken: bool) -> Splats:
    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(rows[name].astype(np.float32))

    color = tensor("color") / 255  # [N, 4]
    quats = (tensor("quat") - 128) / 128
    return Splats(
        means=tensor("mean"),
        quats=torch.nn.functional.normalize(quats, dim=-1),
        scales=reading.log_scales(tensor("scale"), broken=broken),
        opacities=reading.logits(color[:, 3], 1 / 255),
        sh=rgb_to_sh(color[:, :3])[:, None],
    )
