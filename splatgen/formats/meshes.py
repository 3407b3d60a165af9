"""Meshes: .obj by our own reader; .stl, .ply with faces and .glb by trimesh, with colours and textures.

Axes are the internal ones, +Y up and +Z to the front, as glTF has them. No file that a mesh names is opened.
Shapes: V vertices, F triangles.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splatgen.formats import MESHES, obj
from splatgen.scene.colors import linear_to_srgb, srgb_to_linear
from splatgen.scene.surface import Mesh

GREY = 0.5  # what has no colour
START = 65_536  # bytes, in which a .ply says what it holds
PIXELS_MOST = 16_777_216  # of a texture


def is_mesh(path: Path) -> bool:
    """Whether a file is to be read as a mesh: by its suffix, or by its first bytes where splats share it."""
    suffix = path.suffix.lower()
    if suffix in MESHES or suffix not in (".ply", ".glb") or not path.is_file():
        return suffix in MESHES
    with path.open("rb") as file:
        start = file.read(START if suffix == ".ply" else 20)
        if suffix == ".ply":
            header = start.partition(b"end_header")[0]  # splats may come with no faces, or with some
            return re.search(rb"\nelement face 0*[1-9]", header) is not None and b" scale_0" not in header
        if start[:4] != b"glTF" or start[16:20] != b"JSON":
            return False
        document = file.read(min(int.from_bytes(start[12:16], "little"), obj.MESH_BYTES))
    return b'"meshes"' in document and b"KHR_gaussian_splatting" not in document


def load(path: Path) -> Mesh:
    """The triangles of a mesh file. ValueError in one line for what is none or too large; OSError passes."""
    if path.suffix.lower() == ".obj":
        return obj.load(path)
    obj.check_size(path)
    import trimesh

    file = io.BytesIO(path.read_bytes())
    try:
        scene = trimesh.load_scene(file, file_type=path.suffix[1:].lower(), process=False)
        pieces = [
            (scene.geometry[scene.graph[node][1]], scene.graph[node][0])
            for node in scene.graph.nodes_geometry
            if isinstance(scene.geometry[scene.graph[node][1]], trimesh.Trimesh)
        ]
        parts = [_part(piece, place, path.suffix.lower() == ".glb") for piece, place in pieces]
    except MemoryError:
        raise
    except Exception as error:  # trimesh's readers raise whatever a broken file leads to
        reason = " ".join(str(error).split())[:100]
        printable = "".join(c if c.isprintable() else "?" for c in reason)
        raise ValueError(f"{path} can't be read as a mesh ({type(error).__name__}: {printable})") from error
    return _checked(_joined(parts), path)


def _part(piece: Any, place: Any, linear: bool) -> Mesh:
    """A piece of a scene where its node puts it; glTF's factors and vertex colours are linear light."""
    matrix = torch.tensor(np.asarray(place, dtype=np.float64))
    vertices = torch.tensor(np.asarray(piece.vertices, dtype=np.float64)).reshape(-1, 3)
    faces = torch.tensor(np.asarray(piece.faces, dtype=np.int64)).reshape(-1, 3)
    colors = torch.full((len(vertices), 3), GREY, dtype=torch.float64)
    visual, uv, image = piece.visual, None, None
    if visual.kind == "vertex":
        colors = _bytes(visual.vertex_colors)
        colors = linear_to_srgb(colors) if linear else colors
    elif visual.kind == "face":  # each face with vertices of its own
        vertices, faces = vertices[faces].reshape(-1, 3), torch.arange(3 * len(faces)).reshape(-1, 3)
        colors = _bytes(visual.face_colors).repeat_interleave(3, 0)
    elif visual.kind == "texture":
        factor, image = _material(visual.material)
        colors = linear_to_srgb(factor).expand(len(vertices), 3)
        uv = None if visual.uv is None else torch.tensor(np.asarray(visual.uv, dtype=np.float64))[:, :2]
        uv = uv if image is not None and uv is not None and len(uv) == len(vertices) else None
    return Mesh(
        vertices=vertices @ matrix[:3, :3].T + matrix[:3, 3],
        faces=faces,
        colors=colors,
        uv=torch.zeros(len(vertices), 2, dtype=torch.float64) if uv is None else uv.nan_to_num(0.0, 0.0, 0.0),
        texture=torch.full((len(faces),), -1 if uv is None else 0),
        textures=() if uv is None or image is None else (image,),
    )


def _material(material: Any) -> tuple[Tensor, Tensor | None]:
    """A material's factor [3] in linear light, and its texture [H, W, 3] as displayed, times the factor."""
    given = getattr(material, "baseColorFactor", None)
    factor = torch.ones(3, dtype=torch.float64) if given is None else _bytes(given)
    picture = getattr(material, "baseColorTexture", None)
    if picture is None:
        return factor, None
    if math.prod(picture.size) > PIXELS_MOST:
        raise ValueError(f"a texture has {picture.size[0]} x {picture.size[1]} pixels: make it smaller")
    image = _bytes(np.asarray(picture.convert("RGB")))
    return factor, linear_to_srgb(srgb_to_linear(image) * factor).float()


def _bytes(values: Any) -> Tensor:
    """RGB or RGBA of bytes, or of 0..1, as [..., 3] in 0..1."""
    array = np.asarray(values)
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    return torch.tensor(array[..., :3].astype(np.float64) / scale)


def _joined(parts: list[Mesh]) -> Mesh:
    """One mesh of several; empty where there is none."""
    empty = torch.zeros(0, 3, dtype=torch.float64)
    start = images = 0
    faces, texture = [], []
    for part in parts:
        assert part.texture is not None
        faces.append(part.faces + start)
        texture.append(torch.where(part.texture < 0, -1, part.texture + images))
        start, images = start + len(part.vertices), images + len(part.textures)
    return Mesh(
        vertices=torch.cat([empty, *(p.vertices for p in parts)]),
        faces=torch.cat([empty.long(), *faces]),
        colors=torch.cat([empty, *(p.colors for p in parts)]),
        uv=torch.cat([empty[:, :2], *(p.uv for p in parts if p.uv is not None)]),
        texture=torch.cat([empty[:, 0].long(), *texture]),
        textures=tuple(image for p in parts for image in p.textures),
    )


def _checked(mesh: Mesh, path: Path) -> Mesh:
    """The mesh; ValueError for one without faces, with vertices that are not there, or that is too large."""
    if len(mesh.faces) == 0:
        raise ValueError(f"{path} holds {len(mesh.vertices)} vertices and no faces: give a mesh of triangles")
    if max(len(mesh.vertices), len(mesh.faces)) > obj.MESH_MOST:
        raise ValueError(f"{path} has more than {obj.MESH_MOST:,} vertices or triangles: simplify it first")
    if int(mesh.faces.min()) < 0 or int(mesh.faces.max()) >= len(mesh.vertices):
        raise ValueError(f"{path} has a face that uses a vertex that is not there: export it again")
    if not bool((mesh.vertices.abs() < obj.FAR).all()):  # false for NaN too
        raise ValueError(f"{path} has a vertex that is not finite, or beyond 1e30: export it again")
    return mesh
