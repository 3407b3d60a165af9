"""Splat and mesh files, chosen by suffix. Importing this package imports no torch; load() does.

Not here: what a run keeps for itself (runs), and what is done with splats once they are read (scene).
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splatgen.formats.splat_file import SplatFile
    from splatgen.scene.splats import Splats

# suffix to the module that holds its read() and save()
FORMATS = {
    ".ply": "splatgen.formats.ply",
    ".splat": "splatgen.formats.splat",
    ".spz": "splatgen.formats.spz",
    ".glb": "splatgen.formats.glb",
}
WRITTEN = {**FORMATS, ".html": "splatgen.formats.object_page"}  # also what is not read
MESHES = (".obj", ".stl")  # suffixes of meshes alone; a .ply and a .glb may hold one or splats
# The ends of names that other programs give to layouts of theirs, which are neither read nor written
PACKED = (".compressed.ply", ".sog", ".ksplat", ".splatv", ".spx", ".lcc", ".rad")

_log = logging.getLogger(__name__)


def load(path: str | os.PathLike[str], *, frame: str | None = None, broken: bool = False) -> Splats:
    """Read splats into the internal frame (+Y up, +Z toward the camera at azimuth 0), float32 on the CPU.

    As read(), for those who need the splats alone; positions that float32 holds too coarsely get a warning.
    """
    from splatgen.formats.splat_file import coarse

    file = read(path, frame=frame, broken=broken)
    lost = coarse(file)
    if lost:
        _log.warning("%s: its positions are rounded to steps of %s: use export --recentre", path, lost)
    return file.splats()


def read(path: str | os.PathLike[str], *, frame: str | None = None, broken: bool = False) -> SplatFile:
    """Read a file into the internal frame, in NumPy and with what it says beside its splats.

    frame names the file's axes where the format leaves them open (see the format's module); None is what the
    file says, else the format's convention. Raises ValueError for a suffix or a content that can't be read,
    and OSError when the file can't be. broken lets splats with impossible numbers through, as NaN or
    infinity, for callers that drop them.
    """
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore"):  # what is not a number is counted and refused
        file: SplatFile = _module(path).read(path, broken=broken, frame=frame)
    return file


def save(
    splats: Splats | SplatFile,
    path: str | os.PathLike[str],
    *,
    comments: Sequence[str] = (),
    sh_degree: int | None = None,
    frame: str | None = None,
    clean: bool = True,
    spz_version: int = 3,
) -> int:
    """Write splats atomically and return how many were dropped as invisible or broken.

    sh_degree pads with zeros (Unity wants 3) or cuts; None keeps the splats' own. With clean=False
    nothing is dropped and broken splats raise ValueError. spz_version is of a .spz, 3 or 4.
    """
    if packed(path):
        raise ValueError(f"{Path(path).name!r} can't be written: {packed(path)}")
    options: dict[str, Any] = {} if frame is None else {"frame": frame}
    if spz_version != 3 and Path(path).suffix.lower() == ".spz":
        options["version"] = spz_version
    dropped: int = _module(path, WRITTEN).save(
        _file(splats), path, comments=comments, sh_degree=sh_degree, clean=clean, **options
    )
    return dropped


def losses(
    splats: Splats | SplatFile, path: str | os.PathLike[str], *, sh_degree: int | None = None
) -> list[str]:
    """What saving these splats under this name would not keep of them, a phrase each."""
    module, file = _module(path, WRITTEN), _file(splats)
    degree = min(module.MOST_DEGREE, file.sh_degree if sh_degree is None else sh_degree)
    cut = bool(file.sh[:, (degree + 1) ** 2 :].any())
    told = [f"spherical harmonics beyond degree {degree}"] if cut else []
    return [*told, *module.losses(file), *_said_beside(file, module)]


def _said_beside(file: SplatFile, module: Any) -> list[str]:
    """What a format has no room for, beside the splats themselves."""
    from splatgen.formats.splat_file import coarse

    told, rounded = [], "spz" not in module.__name__ and coarse(file)
    if rounded:
        told.append(f"positions, in steps of {rounded}: --recentre keeps them")
    if file.antialiased and "antialiased" not in module.KEEPS:
        told.append("that they are antialiased (mip): they may look thicker")
    if file.extras and "extras" not in module.KEEPS:
        names = list(file.extras)
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        told.append(f"the properties {' '.join(names[:6])}{more}")
    comments = [text for text in file.comments if not text.startswith("splatgen ")]
    if comments and "comments" not in module.KEEPS:
        told.append(f"{len(comments)} comment{'s' if len(comments) > 1 else ''} ({comments[0][:40]!r})")
    return told


def _file(splats: Splats | SplatFile) -> SplatFile:
    from splatgen.formats.splat_file import SplatFile, of

    return splats if isinstance(splats, SplatFile) else of(splats)


def packed(path: str | os.PathLike[str]) -> str:
    """Why a name is that of a layout which is neither read nor written; "" for all others."""
    name = Path(path).name.lower()
    end = next((end for end in PACKED if name.endswith(end)), None)
    if end is None:
        return ""
    return f"{end} is a packed layout of others, which splat-transform turns into a .ply and back"


def _module(path: str | os.PathLike[str], table: Mapping[str, str] = FORMATS) -> Any:
    suffix = Path(path).suffix.lower()
    if suffix not in table:
        known = ", ".join(table)
        raise ValueError(f"no splat format has the suffix {suffix!r} of {Path(path).name!r}: use {known}")
    return importlib.import_module(table[suffix])
