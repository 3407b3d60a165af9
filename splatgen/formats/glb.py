"""Splats in glTF 2.0's binary form, as the extension KHR_gaussian_splatting lays them out.

A primitive of points with, besides POSITION, ROTATION (xyzw), SCALE (linear), OPACITY (0..1) and
SH_DEGREE_l_COEF_n (RGB) as float32, each under the extension's name. COLOR_0 is for viewers that know only
points: linear colour and opacity in 16 bits. Axes are glTF's, which are the internal frame.

Source: Khronos, glTF 2.0; KHR_gaussian_splatting, release candidate of April 2026. Shapes: N splats,
K = (degree + 1)^2 spherical-harmonic coefficients.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatgen.formats import glb_document, glb_primitives, reading, writing
from splatgen.formats.glb_primitives import KNOWN, NAME
from splatgen.formats.splat_file import Array, SplatFile, sigmoid
from splatgen.runs import atomic
from splatgen.runs.version import __version__
from splatgen.scene.colors import srgb_to_linear
from splatgen.scene.harmonics import SH_C0

MOST_DEGREE = 3
KEEPS = frozenset({"comments"})
SORTING = {"sortingMethod": "cameraDistance"}
COMMENTS_MOST, COMMENT_LIMIT = 100, 500
LENGTH_MOST = 2**32 - 1  # bytes, of the whole file


def save(
    file: SplatFile,
    path: str | os.PathLike[str],
    *,
    comments: Sequence[str] = (),
    sh_degree: int | None = None,
    frame: str = "rub",
    clean: bool = True,
) -> int:
    """Write splats atomically; return how many were dropped.

    comments become extras of the asset. clean is as in ply.save; frame can only be "rub", which is glTF's.
    """
    _check_frame(frame)
    written, dropped = writing.prepared(file, path, frame=frame, sh_degree=sh_degree, clean=clean)
    attributes = _attributes(written) if len(written) else {}
    document = {
        "asset": {
            "version": "2.0",
            "generator": f"splatgen {__version__}",
            "extras": {"comments": safe([*comments, *file.comments])},
        },
        "extensionsUsed": [NAME],
        "scene": 0,
        **_scene(attributes),
    }
    atomic.write_bytes(path, container(document, b"".join(a.tobytes() for a in attributes.values())))
    return dropped


def losses(file: SplatFile) -> list[str]:
    """What a .glb does not keep of splats: nothing."""
    return []


def read(path: str | os.PathLike[str], *, frame: str | None = None, broken: bool = False) -> SplatFile:
    """Read the splats of the scene, all in one cloud, and its comments; nothing else of it is read.

    Raises ValueError in one line for files without splats, for variants of the extension that mean other
    splats, and for everything that is damaged; OSError passes through. Takes some thirty times the file's
    size of memory at most: a file may use the same numbers for many properties.
    """
    _check_frame(frame or "rub")
    with reading.opened(path, ".glb") as (file, size):
        document = glb_document.read(file, size)
        clouds = glb_primitives.clouds(document, size, path, broken=broken)
        return reading.checked(_joined(clouds, _comments(document.json)), path, broken=broken)


def _check_frame(frame: str) -> None:
    if frame != "rub":
        raise ValueError(
            f"a .glb has +Y up and the front at +Z by its standard, not the axes {frame!r}: use rub"
        )


def _joined(clouds: list[SplatFile], comments: tuple[str, ...]) -> SplatFile:
    """One cloud of the highest degree among them."""
    degree = max([0, *(cloud.sh_degree for cloud in clouds)])
    empty = SplatFile(
        means=np.zeros((0, 3)),
        quats=np.zeros((0, 4), np.float32),
        scales=np.zeros((0, 3), np.float32),
        opacities=np.zeros(0, np.float32),
        sh=np.zeros((0, (degree + 1) ** 2, 3), np.float32),
    )
    parts = [empty, *(writing.with_degree(cloud, degree) for cloud in clouds)]
    names = empty.arrays()
    arrays: dict[str, Any] = {n: np.concatenate([part.arrays()[n] for part in parts]) for n in names}
    return SplatFile(**arrays, comments=comments)


def _comments(document: dict[str, Any]) -> tuple[str, ...]:
    """What save() left in the extras of the asset; nothing else there is read."""
    asset = document.get("asset")
    extras = asset.get("extras") if isinstance(asset, dict) else None
    found = extras.get("comments") if isinstance(extras, dict) else None
    return tuple(safe([c for c in found if isinstance(c, str)])) if isinstance(found, list) else ()


def _attributes(file: SplatFile) -> dict[str, NDArray[Any]]:
    """Names to numbers [N, W] in the file's order; rows are multiples of 4 bytes, as glTF wants."""
    opacities = sigmoid(file.opacities)[:, None]
    degrees = [(degree, n) for degree in range(file.sh_degree + 1) for n in range(2 * degree + 1)]
    color = np.concatenate([srgb_to_linear(0.5 + SH_C0 * file.sh[:, 0].astype(np.float64)), opacities], -1)
    parts = {
        "ROTATION": writing.unit(file.quats)[:, [1, 2, 3, 0]],
        "SCALE": np.exp(file.scales.astype(np.float64)),
        "OPACITY": opacities,
        **{f"SH_DEGREE_{d}_COEF_{n}": file.sh[:, d * d + n] for d, n in degrees},
    }
    return {
        "POSITION": _floats(file.means),
        **{f"{NAME}:{name}": _floats(value) for name, value in parts.items()},
        "COLOR_0": np.rint(color * 65535).astype("<u2"),
    }


def _floats(values: Array) -> NDArray[Any]:
    return np.ascontiguousarray(values.astype("<f4"))


def _scene(attributes: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The JSON that says what the binary chunk holds; glTF has no arrays of length 0."""
    if not attributes:
        return {"scenes": [{}]}
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    start = 0
    for name, array in attributes.items():
        views.append({"buffer": 0, "byteOffset": start, "byteLength": array.nbytes, "target": 34962})
        start += array.nbytes
        accessor = {"bufferView": len(accessors), "count": len(array), "type": _TYPES[array.shape[1]]}
        accessor["componentType"] = 5126 if array.dtype == np.float32 else 5123
        if name == "COLOR_0":
            accessor["normalized"] = True
        if name == "POSITION":
            accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        accessors.append(accessor)
    primitive = {
        "mode": 0,
        "attributes": {name: i for i, name in enumerate(attributes)},
        "extensions": {NAME: {**KNOWN, **SORTING}},
    }
    return {
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": start}],
    }


_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


def container(document: dict[str, Any], binary: bytes) -> bytes:
    """The file of a document and its numbers. Raises ValueError for one too large."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), glb_document.JSON_CHUNK) + text
    if binary:
        chunks += struct.pack("<II", len(binary), glb_document.BINARY_CHUNK) + binary
    if 12 + len(chunks) > LENGTH_MOST:
        raise ValueError(f"{12 + len(chunks):,} bytes do not fit into a .glb: use .ply or .spz")
    return glb_document.MAGIC + struct.pack("<II", glb_document.VERSION, 12 + len(chunks)) + chunks


def safe(comments: Sequence[str]) -> list[str]:
    """Few and short ones, without the lone surrogates that a prompt may hold and Unicode does not."""
    return [c[:COMMENT_LIMIT].encode("utf-8", "replace").decode() for c in comments[:COMMENTS_MOST]]
