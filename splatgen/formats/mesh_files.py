"""Triangles with colours at their corners, as .glb, .obj or .ply, for programs that know no splats.

Colours are those that splats show, with their light in them. A .glb holds them as linear light and asks not
to be lit again (KHR_materials_unlit); .obj has them behind each vertex's place, as most programs read them.

Shapes: V vertices, F triangles.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from splatgen.formats import frames, glb, ply
from splatgen.runs import atomic
from splatgen.runs.version import __version__
from splatgen.scene.colors import srgb_to_linear
from splatgen.scene.surface_nets import Array, Surface, normals

SUFFIXES = (".glb", ".obj", ".ply")
UNLIT = "KHR_materials_unlit"


def write_surface(
    surface: Surface, path: str | os.PathLike[str], *, comments: Sequence[str] = (), frame: str = "rub"
) -> None:
    """Write a surface atomically. Raises ValueError for another suffix, and for axes that a .glb has not."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"no mesh format has the suffix {suffix!r}: use {', '.join(SUFFIXES)}")
    if suffix == ".glb" and frame != "rub":
        raise ValueError(f"a .glb has +Y up and the front at +Z, not the axes {frame!r}: use rub")
    turned = replace(surface, vertices=surface.vertices @ frames.matrix(frame).T)
    content = {".glb": _glb, ".obj": _obj, ".ply": _ply}[suffix](turned, comments)
    atomic.write_bytes(path, content)


def _obj(surface: Surface, comments: Sequence[str]) -> bytes:
    corners = np.concatenate([surface.vertices, surface.colors.clip(0, 1)], 1).tolist()
    lines = [f"# {ply.comment(text)}" for text in comments]
    lines += ["v " + " ".join(f"{value:.7g}" for value in row) for row in corners]
    lines += ["f " + " ".join(map(str, row)) for row in (surface.faces + 1).tolist()]
    return "\n".join([*lines, ""]).encode("ascii")


def _ply(surface: Surface, comments: Sequence[str]) -> bytes:
    vertices = np.zeros(len(surface.vertices), [("place", "<f4", 3), ("color", "u1", 3)])
    vertices["place"] = surface.vertices
    vertices["color"] = np.rint(255 * surface.colors.clip(0, 1))
    faces = np.zeros(len(surface.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, surface.faces
    header = [
        *("ply", "format binary_little_endian 1.0"),
        *(f"comment {ply.comment(text)}" for text in comments),
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {len(faces)}",
        *("property list uchar int vertex_indices", "end_header", ""),
    ]
    return "\n".join(header).encode("ascii") + vertices.tobytes() + faces.tobytes()


def _glb(surface: Surface, comments: Sequence[str]) -> bytes:
    color = np.concatenate([srgb_to_linear(surface.colors), np.ones((len(surface.colors), 1))], 1)
    vectors = {"componentType": 5126, "type": "VEC3"}
    arrays: list[tuple[str, Array, dict[str, Any]]] = [
        ("POSITION", surface.vertices.astype("<f4"), vectors),
        ("NORMAL", normals(surface.vertices, surface.faces).astype("<f4"), vectors),
        (
            "COLOR_0",
            np.rint(65535 * color).astype("<u2"),
            {"componentType": 5123, "type": "VEC4", "normalized": True},
        ),
        ("", surface.faces.reshape(-1).astype("<u4"), {"componentType": 5125, "type": "SCALAR"}),
    ]
    views, accessors, start = [], [], 0
    for i, (name, array, kind) in enumerate(arrays):
        target = 34962 if name else 34963
        views.append({"buffer": 0, "byteOffset": start, "byteLength": array.nbytes, "target": target})
        accessors.append({"bufferView": i, "count": len(array), **kind})
        start += array.nbytes
    positions = arrays[0][1]
    accessors[0] |= {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    attributes = {name: i for i, (name, _, _) in enumerate(arrays) if name}
    plain = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    document = {
        "asset": {
            "version": "2.0",
            "generator": f"splatgen {__version__}",
            "extras": {"comments": glb.safe(comments)},
        },
        "extensionsUsed": [UNLIT],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": len(arrays) - 1, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": plain, "extensions": {UNLIT: {}}}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": start}],
    }
    return glb.container(document, b"".join(array.tobytes() for _, array, _ in arrays))
