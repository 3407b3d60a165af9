"""Small .ply files as other programs write them, in text, so that every number can be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from splatgen.scene.splats import SH_C0

BASE = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2")
NAMES = (*BASE, "rot_0", "rot_1", "rot_2", "rot_3")
Columns = dict[str, np.ndarray]


def columns(count: int = 40, seed: int = 0) -> Columns:
    """An object about one unit wide, around the origin of the internal frame, in the axes of a .ply."""
    g = np.random.default_rng(seed)
    means = g.uniform(-0.5, 0.5, (count, 3))
    quats = g.normal(size=(count, 4))
    colors = (g.uniform(0.1, 0.9, (count, 3)) - 0.5) / SH_C0
    parts = [means, colors, np.full((count, 1), 3.0), np.log(g.uniform(0.05, 0.2, (count, 3))), quats]
    return dict(zip(NAMES, np.concatenate(parts, 1).T, strict=True))


def write(
    path: Path, rows: Columns, *, types: Mapping[str, str] | None = None, comments: Sequence[str] = ()
) -> Path:
    """An ascii .ply of these columns, float unless types say otherwise."""
    head = ["ply", "format ascii 1.0", *(f"comment {text}" for text in comments)]
    head += [f"element vertex {len(next(iter(rows.values())))}"]
    head += [f"property {(types or {}).get(name, 'float')} {name}" for name in rows]
    lines = [" ".join(repr(value.item()) for value in row) for row in zip(*rows.values(), strict=True)]
    path.write_text("\n".join([*head, "end_header", *lines]) + "\n")
    return path
