"""Splats in the .ply layout of Inria's 3D Gaussian Splatting, which every viewer reads.

Little-endian float32, in this order: x y z, nx ny nz (zero), f_dc_0..2, f_rest_* (all of red, then
green, then blue), opacity (logit), scale_0..2 (log), rot_0..3 (wxyz, unit). By default the cloud is
turned half a turn about Z on write and back on read: viewers such as SuperSplat undo exactly that.

Shapes: N splats, K = (degree + 1)^2 spherical-harmonic coefficients, P properties of the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splatgen.formats import frames, ply_header, reading, writing
from splatgen.runs import atomic
from splatgen.scene.splats import Splats

MOST_DEGREE = 3
MIN_OPACITY = writing.MIN_OPACITY
COMMENT_LIMIT = 500  # characters; the prompt may be longer than a header should be
COMMENTS_MOST = 100  # keeps the header within what load() reads of it

_Array = NDArray[np.float32]


def property_names(sh_degree: int) -> list[str]:
    """Inria's properties in their order: 17, 26, 41 or 62 of them for degrees 0 to 3."""
    rest = [f"f_rest_{i}" for i in range(3 * ((sh_degree + 1) ** 2 - 1))]
    return [*"xyz", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity", *_SCALES, *_QUATS]


_SCALES = ["scale_0", "scale_1", "scale_2"]
_QUATS = ["rot_0", "rot_1", "rot_2", "rot_3"]


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

    clean drops splats that are not finite, have no rotation, or are less opaque than 1/255; without
    it the first two raise ValueError. sh_degree pads with zeros or cuts. frame is "ply" (half a turn
    about Z), "rub" (the internal frame) or "rdf" (half a turn about X). OSError passes through.
    """
    from plyfile import PlyData, PlyElement

    if len(comments) > COMMENTS_MOST:
        raise ValueError(
            f"{len(comments)} comments are too many for a .ply header: give {COMMENTS_MOST} or fewer"
        )
    written, dropped = writing.prepared(splats, path, frame=frame, sh_degree=sh_degree, clean=clean)
    rows = _rows(written)  # [N, P]
    layout = np.dtype([(name, "<f4") for name in property_names(written.sh_degree)])
    header = ["Vertical axis: y", f"SH degree: {written.sh_degree}", "SplatRenderMode: default"]
    vertex = PlyElement.describe(rows.view(layout).reshape(-1), "vertex")
    data = PlyData([vertex], byte_order="<", comments=[*header, *map(_comment, comments)])
    with atomic.replacing(path) as temporary:
        data.write(str(temporary))
    return dropped


def losses(splats: Splats) -> list[str]:
    """What a .ply does not keep of splats: nothing."""
    return []


def load(path: str | os.PathLike[str], *, frame: str = "ply", broken: bool = False) -> Splats:
    """Read splats into the internal frame, float32 on the CPU.

    Accepts ascii and both byte orders, any numeric type and order of properties, files without
    normals, and further properties and elements, which are ignored. Raises ValueError in one line for
    anything else, also for numbers that are not finite unless broken; OSError passes through. Takes a
    few times the file's size of memory at most.
    """
    with reading.opened(path, ".ply") as (file, size):
        columns = ply_header.read_vertices(file, size)
        with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and is refused below
            kept = {name: columns[name].astype(np.float32) for name in _needed(columns)}
        return frames.from_frame(reading.checked(_assemble(kept), path, broken=broken), frame)


def _needed(columns: dict[str, ply_header.Column]) -> list[str]:
    """The properties that make splats, after checking that all are there."""
    rest = sum(name.startswith("f_rest_") for name in columns)
    degrees = {3 * ((d + 1) ** 2 - 1): d for d in range(4)}
    if rest not in degrees:
        raise ValueError(
            f"it has {rest} f_rest_* properties, expected 0, 9, 24 or 45: "
            "save it again with SH degree 0, 1, 2 or 3"
        )
    names = [name for name in property_names(degrees[rest]) if name not in ("nx", "ny", "nz")]
    missing = [name for name in names if name not in columns]
    if missing:
        hint = "save it again as a 3D Gaussian splat .ply"
        if not {"opacity", *_SCALES, *_QUATS} & set(columns):
            hint = "it looks like a plain point cloud or mesh, not Gaussian splats"
        if "packed_position" in columns:
            hint = "it looks like SuperSplat's compressed .ply, so convert it with splat-transform"
        raise ValueError(f"it lacks the properties {', '.join(missing)}: {hint}")
    return names


def _assemble(columns: dict[str, _Array]) -> Splats:
    def group(names: Sequence[str]) -> Tensor:
        return torch.from_numpy(np.stack([columns[name] for name in names], -1))  # [N, len(names)]

    rest = [name for name in columns if name.startswith("f_rest_")]
    sh = group(["f_dc_0", "f_dc_1", "f_dc_2"])[:, None]  # [N, 1, 3]
    if rest:
        flat = group([f"f_rest_{i}" for i in range(len(rest))])  # [N, 3 (K - 1)]
        sh = torch.cat([sh, flat.reshape(len(sh), 3, len(rest) // 3).mT], 1)  # [N, K, 3]
    return Splats(
        means=group("xyz"),
        quats=group(_QUATS),
        scales=group(_SCALES),
        opacities=torch.from_numpy(columns["opacity"]),
        sh=sh,
    )


def _rows(splats: Splats) -> _Array:
    """All properties in the file's order, [N, P]."""
    n = len(splats)
    rest = splats.sh[:, 1:].mT.flatten(1)  # [N, 3 (K - 1)], channel-major
    parts = [splats.means, torch.zeros(n, 3), splats.sh[:, 0], rest, splats.opacities[:, None], splats.scales]
    rows: _Array = torch.cat([*parts, writing.unit(splats.quats).float()], -1).contiguous().numpy()
    return rows


def _comment(text: str) -> str:
    """One short ASCII line, as the header demands: a prompt may hold anything."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "?" for c in line).encode("ascii", "backslashreplace").decode()
    return line if len(line) <= COMMENT_LIMIT else line[: COMMENT_LIMIT - 3] + "..."
