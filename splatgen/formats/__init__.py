"""Splat and mesh files, chosen by suffix. Importing this package imports no torch; the formats do when used.

Not here: what a run keeps for itself (runs), and what is done with splats once they are read (scene).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splatgen.scene.splats import Splats

# suffix to the module that holds its load() and save()
FORMATS = {
    ".ply": "splatgen.formats.ply",
    ".splat": "splatgen.formats.splat",
    ".spz": "splatgen.formats.spz",
    ".glb": "splatgen.formats.glb",
}
MESHES = (".obj", ".stl")  # suffixes of meshes alone; a .ply and a .glb may hold one or splats


def load(path: str | os.PathLike[str], *, frame: str | None = None, broken: bool = False) -> Splats:
    """Read splats into the internal frame (+Y up, +Z toward the camera at azimuth 0).

    frame names the file's axes where the format leaves them open (see the format's module); None is
    the format's convention. Raises ValueError for a suffix or a content that can't be read, and
    OSError when the file can't be. broken lets splats with impossible numbers through, as NaN or
    infinity, for callers that drop them.
    """
    options = {} if frame is None else {"frame": frame}
    splats: Splats = _module(path).load(path, broken=broken, **options)
    return splats


def save(
    splats: Splats,
    path: str | os.PathLike[str],
    *,
    comments: Sequence[str] = (),
    sh_degree: int | None = None,
    frame: str | None = None,
    clean: bool = True,
) -> int:
    """Write splats atomically and return how many were dropped as invisible or broken.

    sh_degree pads with zeros (Unity wants 3) or cuts; None keeps the splats' own. With clean=False
    nothing is dropped and broken splats raise ValueError.
    """
    options = {} if frame is None else {"frame": frame}
    dropped: int = _module(path).save(
        splats, path, comments=comments, sh_degree=sh_degree, clean=clean, **options
    )
    return dropped


def losses(splats: Splats, path: str | os.PathLike[str], *, sh_degree: int | None = None) -> list[str]:
    """What saving these splats under this name would not keep of them, a phrase each."""
    module = _module(path)
    degree = min(module.MOST_DEGREE, splats.sh_degree if sh_degree is None else sh_degree)
    cut = bool(splats.sh[:, (degree + 1) ** 2 :].any())
    told = [f"spherical harmonics beyond degree {degree}"] if cut else []
    return [*told, *module.losses(splats)]


def _module(path: str | os.PathLike[str]) -> Any:
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"no splat format has the suffix {suffix!r} of {Path(path).name!r}: use {known}")
    return importlib.import_module(FORMATS[suffix])
