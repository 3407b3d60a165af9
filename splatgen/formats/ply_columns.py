"""Which properties of a .ply make splats, and in what form other programs write them.

Shapes: N splats, K = (degree + 1)^2 spherical-harmonic coefficients.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence

import numpy as np

from splatgen.formats.ply_header import Column, Vertices
from splatgen.formats.splat_file import NORMALS, Array, SplatFile
from splatgen.scene.harmonics import SH_C0

SCALES = ["scale_0", "scale_1", "scale_2"]
QUATS = ["rot_0", "rot_1", "rot_2", "rot_3"]
COLORS = ["f_dc_0", "f_dc_1", "f_dc_2"]
RGB = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"))

_log = logging.getLogger(__name__)


def property_names(sh_degree: int) -> list[str]:
    """Inria's properties in their order: 17, 26, 41 or 62 of them for degrees 0 to 3."""
    rest = [f"f_rest_{i}" for i in range(3 * ((sh_degree + 1) ** 2 - 1))]
    return [*"xyz", *NORMALS, *COLORS, *rest, "opacity", *SCALES, *QUATS]


def assembled(vertices: Vertices, path: str | os.PathLike[str]) -> SplatFile:
    """The splats of a file's columns, in its frame. Raises ValueError where some are missing."""
    columns = dict(vertices.columns)
    used = _colored(columns, vertices.types) | _flat(columns, path)
    names = _needed(columns)
    found = _splats({name: columns[name] for name in names})
    _hint(found, path)
    zero = not any(columns[name].any() for name in NORMALS if name in columns)
    left = [name for name in vertices.columns if name not in {*names, *used, *(NORMALS if zero else ())}]
    extras = {name: _as_said(columns[name], vertices.types[name]) for name in left}
    return SplatFile(**found.arrays(), extras=extras)


def _colored(columns: dict[str, Column], types: dict[str, str]) -> set[str]:
    """Put f_dc_* where colours are red green blue instead (nerfstudio: --ply-color-mode rgb); their names."""
    for names in RGB:
        if not set(COLORS) & columns.keys() and columns.keys() >= set(names):
            rgb = np.stack([columns[name].astype(np.float64) for name in names], -1)  # [N, 3]
            floats = types[names[0]].startswith("f") and not (rgb > 1.5).any()
            most = 1.0 if floats else 65535.0 if types[names[0]] == "u2" else 255.0
            columns |= dict(zip(COLORS, ((rgb / most - 0.5) / SH_C0).T, strict=True))
            return set(names)
    return set()


def _flat(columns: dict[str, Column], path: str | os.PathLike[str]) -> set[str]:
    """Add scale_2 of splats that are discs (2D Gaussian splatting): the log of zero."""
    if "scale_2" in columns or not columns.keys() >= {"scale_0", "scale_1", "opacity", *QUATS}:
        return set()
    columns["scale_2"] = np.full(len(columns["scale_0"]), -math.inf)
    _log.warning("%s: two scales a splat, as of 2D Gaussian splatting: read as flat splats", os.fspath(path))
    return {"scale_2"}


def _needed(columns: dict[str, Column]) -> list[str]:
    """The properties that make splats, after checking that all are there."""
    rest = sum(name.startswith("f_rest_") for name in columns)
    degrees = {3 * ((d + 1) ** 2 - 1): d for d in range(4)}
    if rest not in degrees:
        raise ValueError(
            f"it has {rest} f_rest_* properties, expected 0, 9, 24 or 45: "
            "save it again with SH degree 0, 1, 2 or 3"
        )
    names = [name for name in property_names(degrees[rest]) if name not in NORMALS]
    missing = [name for name in names if name not in columns]
    if missing:
        hint = "save it again as a 3D Gaussian splat .ply"
        if not {"opacity", *SCALES, *QUATS} & set(columns):
            hint = "it looks like a plain point cloud or mesh, not Gaussian splats"
        if "packed_position" in columns:
            hint = "it looks like SuperSplat's compressed .ply, so convert it with splat-transform"
        raise ValueError(f"it lacks the properties {', '.join(missing)}: {hint}")
    return names


def _splats(columns: dict[str, Column]) -> SplatFile:
    def group(names: Sequence[str], kind: type = np.float32) -> Array:
        found: Array = np.stack([columns[name].astype(kind) for name in names], -1)  # [N, len(names)]
        return found

    rest = [name for name in columns if name.startswith("f_rest_")]
    sh = group(COLORS)[:, None]  # [N, 1, 3]
    if rest:
        flat = group([f"f_rest_{i}" for i in range(len(rest))])  # [N, 3 (K - 1)], channel-major
        flat = flat.reshape(len(sh), 3, len(rest) // 3).transpose(0, 2, 1)
        sh = np.concatenate([sh, flat], 1)  # [N, K, 3]
    return SplatFile(
        means=group("xyz", np.float64),
        quats=group(QUATS),
        scales=group(SCALES),
        opacities=columns["opacity"].astype(np.float32),
        sh=sh,
    )


def _hint(file: SplatFile, path: str | os.PathLike[str]) -> None:
    """Say so where numbers look activated: hardly any splat is more than e^0 = 1 unit wide along all axes."""
    opacities, scales = file.opacities, file.scales
    if len(file) and (opacities >= 0).all() and (opacities <= 1).all() and (scales > 0).all():
        _log.warning(
            "%s: every opacity is in 0..1 and every scale above 0, as if they were activated; a .ply holds "
            "logits and logs: if it looks like fog, save it again with the raw values",
            os.fspath(path),
        )


def _as_said(column: Column, code: str) -> Array:
    """A column in the type that the header says; ascii is read as float64."""
    if column.dtype.kind == code[0]:
        return column.astype(code)
    sound = np.nan_to_num(column)
    limits = np.iinfo(code)
    found: Array = np.clip(sound, limits.min, limits.max).astype(code)
    return found
