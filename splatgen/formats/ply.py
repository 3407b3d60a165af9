"""Splats in the .ply layout of Inria's 3D Gaussian Splatting, which every viewer reads.

Little-endian float32, in this order: x y z, nx ny nz (zero), f_dc_0..2, f_rest_* (all of red, then
green, then blue), opacity (logit), scale_0..2 (log), rot_0..3 (wxyz, unit), and what else the splats came
with. By default the cloud is turned half a turn about Z on write and back on read: viewers such as SuperSplat
undo exactly that.

Two comments of others have a meaning: `Vertical axis: z` (nerfstudio) says that Z is up, and
`SplatRenderMode: mip` (Brush) that the splats were made for an antialiased renderer.

Shapes: N splats, K = (degree + 1)^2 spherical-harmonic coefficients, P properties of the file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatgen.formats import frames, ply_columns, ply_header, reading, writing
from splatgen.formats.ply_columns import QUATS, SCALES, property_names
from splatgen.formats.splat_file import NORMALS, SplatFile
from splatgen.runs import atomic

MOST_DEGREE = 3
KEEPS = frozenset({"antialiased", "comments", "extras"})
COMMENT_LIMIT = 500  # characters; the prompt may be longer than a header should be
COMMENTS_MOST = 100  # keeps the header within what read() reads of it
AXIS, DEGREE, MODE = "Vertical axis: ", "SH degree: ", "SplatRenderMode: "
VERTICAL = {"y": "ply", "z": "zup"}  # the axis that is up, to the frame

_log = logging.getLogger(__name__)


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

    clean drops splats that are not finite, have no rotation, or are less opaque than 1/255; without
    it the first two raise ValueError. sh_degree pads with zeros or cuts. frame is "ply" (half a turn
    about Z), "rub" (the internal frame), "rdf" (half a turn about X) or "zup". OSError passes through.
    """
    from plyfile import PlyData, PlyElement

    if len(comments) > COMMENTS_MOST:
        raise ValueError(
            f"{len(comments)} comments are too many for a .ply header: give {COMMENTS_MOST} or fewer"
        )
    written, dropped = writing.prepared(file, path, frame=frame, sh_degree=sh_degree, clean=clean)
    own = [f"{DEGREE}{written.sh_degree}", f"{MODE}{'mip' if file.antialiased else 'default'}"]
    if file.upright:  # what nobody said of a foreign file is not said here
        own = [f"{AXIS}{'z' if frame == 'zup' else 'y'}", *own]
    given = [comment(text) for text in comments]
    kept = [*given, *(text for text in map(comment, file.comments) if text not in given)][:COMMENTS_MOST]
    vertex = PlyElement.describe(_rows(written), "vertex")
    data = PlyData([vertex], byte_order="<", comments=[*own, *kept])
    with atomic.replacing(path) as temporary:
        data.write(str(temporary))
    return dropped


def losses(file: SplatFile) -> list[str]:
    """What a .ply does not keep of splats: nothing."""
    return []


def read(path: str | os.PathLike[str], *, frame: str | None = None, broken: bool = False) -> SplatFile:
    """Read splats into the internal frame; None is what the file's comments say, else "ply".

    Accepts ascii and both byte orders, any numeric type and order of properties, files without
    normals, colours as red green blue, two scales (2D Gaussian splatting), and further properties, which are
    kept. Raises ValueError in one line for anything else, also for numbers that are not finite unless broken;
    OSError passes through. Takes a few times the file's size of memory at most.
    """
    with reading.opened(path, ".ply") as (file, size):
        vertices = ply_header.read_vertices(file, size)
        with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and is refused below
            found = ply_columns.assembled(vertices, path)
        said = _said(vertices.comments)
        known = VERTICAL.get(said.get(AXIS, "").lower())
        if AXIS in said and known is None:
            _log.warning("%s: %s%s is not read, its axes are taken as ply", path, AXIS, said[AXIS][:40])
        found = replace(
            found,
            antialiased=said.get(MODE, "").lower() == "mip",
            upright=frame is not None or known is not None,
            comments=tuple(text for text in vertices.comments if not _said([text])),
        )
        return frames.from_frame(reading.checked(found, path, broken=broken), frame or known or "ply")


def _said(comments: Sequence[str]) -> dict[str, str]:
    """What comments say that have a meaning here, by what they begin with; the first counts."""
    found: dict[str, str] = {}
    for text in comments:
        for start in (AXIS, DEGREE, MODE):
            if text.lower().startswith(start.lower().strip()):
                found.setdefault(start, text[len(start.strip()) :].strip())
    return found


def _rows(file: SplatFile) -> NDArray[np.void]:
    """All properties in the file's order, [N]."""
    extras = {name: value for name, value in file.extras.items() if name not in NORMALS}
    names = property_names(file.sh_degree)
    layout: list[Any] = [(name, "<f4") for name in names]
    layout += [(name, value.dtype.newbyteorder("<")) for name, value in extras.items()]
    rows = np.zeros(len(file), layout)
    for name, value in {**file.extras, **_values(file)}.items():
        rows[name] = value
    return rows


def _values(file: SplatFile) -> dict[str, NDArray[Any]]:
    """Every property that splats have, by name, [N] each."""
    rest = file.sh[:, 1:].transpose(0, 2, 1).reshape(len(file), 3 * (file.sh.shape[1] - 1))  # channel-major
    groups: list[tuple[Sequence[str], NDArray[Any]]] = [
        ("xyz", file.means),
        (["f_dc_0", "f_dc_1", "f_dc_2"], file.sh[:, 0]),
        ([f"f_rest_{i}" for i in range(rest.shape[1])], rest),
        (["opacity"], file.opacities[:, None]),
        (SCALES, file.scales),
        (QUATS, writing.unit(file.quats)),
    ]
    return {name: value[:, i] for names, value in groups for i, name in enumerate(names)}


def comment(text: str) -> str:
    """One short ASCII line, as the header demands: a prompt may hold anything."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "?" for c in line).encode("ascii", "backslashreplace").decode()
    return line if len(line) <= COMMENT_LIMIT else line[: COMMENT_LIMIT - 3] + "..."
