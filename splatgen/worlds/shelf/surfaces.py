"""From a glTF document to one mesh with a colour at each vertex: what palettes, textures and skins say.

Shapes: V vertices, F faces, H x W texels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatgen.worlds.shelf.gltf import Document, Doubles, GltfError, placed_nodes, vertex_matrices
from splatgen.worlds.shelf.meshes import Mesh, welded

INNER = 0.02  # how far a corner's texel is taken towards the face's middle: palette borders then don't bleed
ROUNDS, MOST = 3, 20_000  # times a face with a picture on it is cut in four, and such faces at once
TOLERANCE = 0.06  # of a colour, beyond which a face is no blend of its corners
SMALLEST = 0.03  # of the model, the side of a face that is not cut any more
GLASS = 0.6  # opacity below which a plain blended material is glass, and left out
SEEN = 0.4  # alpha of a cut-out texture above which a face is there


@dataclass(frozen=True, kw_only=True)
class Part:
    """A primitive in the world, coloured."""

    positions: Doubles  # [V, 3]
    normals: Doubles  # [V, 3]
    colors: Doubles  # [V, 3] display space
    uv: Doubles | None  # [V, 2]
    faces: NDArray[np.int64]  # [F, 3]


def to_display(linear: Doubles) -> Doubles:
    """Linear light to sRGB, both in 0..1 (IEC 61966-2-1)."""
    x = np.clip(linear, 0, 1)
    found: Doubles = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return found


def mesh(document: Document, without: Sequence[str] = ()) -> Mesh:
    """Every triangle of the default scene in one mesh, not normalised.

    without: parts whose node or mesh has one of these in its name are left out. Glass is left out, too,
    unless nothing else is there. Raises GltfError for a file without triangles.
    """
    try:
        parts = list(_parts(document, without, glass=False)) or list(_parts(document, without, glass=True))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, GltfError):
            raise
        name = document.path.name
        raise GltfError(
            f"{name} is damaged ({type(error).__name__}: {str(error)[:80]}): fetch it again"
        ) from error
    parts = [part for part in parts if len(part.faces)]
    if not parts:
        raise GltfError(f"{document.path.name} has no triangles: name another file in the catalogue")
    starts = np.cumsum([0, *(len(part.positions) for part in parts[:-1])])
    positions = np.concatenate([part.positions for part in parts])
    normals = np.nan_to_num(np.concatenate([part.normals for part in parts]))
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)])
    faces = faces[np.isfinite(positions).all(1)[faces].all(1)]
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    whole = Mesh(
        positions=np.nan_to_num(positions).astype(np.float32),
        normals=normals.astype(np.float32),
        colors=np.concatenate([part.colors for part in parts]).astype(np.float32),
        faces=faces.astype(np.int32),
    )
    return welded(whole)


def _parts(document: Document, without: Sequence[str], *, glass: bool) -> Iterator[Part]:
    placed = placed_nodes(document)
    for index in placed:
        node = document.json["nodes"][index]
        if "mesh" not in node:
            continue
        found = document.json["meshes"][node["mesh"]]
        name = f"{node.get('name', '')}|{found.get('name', '')}".lower()
        if any(word in name for word in without):
            continue
        for primitive in found["primitives"]:
            material = _material(document, primitive)
            if primitive.get("mode", 4) == 4 and (glass or not _is_glass(material)):
                part, vertices = _placed(document, index, placed, primitive)
                part = _painted(document, part, vertices, primitive, material)
                part = _textured(document, material, part)
                yield replace(part, colors=_glowing(material, part.colors))


def _material(document: Document, primitive: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (
        document.json["materials"][primitive["material"]] if "material" in primitive else {}
    )
    return found


def _is_glass(material: Mapping[str, Any]) -> bool:
    surface = material.get("pbrMetallicRoughness", {})
    opacity = surface.get("baseColorFactor", (1, 1, 1, 1))[3]
    plain = "baseColorTexture" not in surface
    return bool(material.get("alphaMode") == "BLEND" and plain and opacity < GLASS)


def _placed(
    document: Document, index: int, placed: Mapping[int, Doubles], primitive: Mapping[str, Any]
) -> tuple[Part, NDArray[np.int64]]:
    """A primitive's triangles in the world, black, and which of its vertices each of theirs is.

    Without normals each face gets its own, and so its own vertices.
    """
    attributes = primitive["attributes"]
    local = document.accessor(attributes["POSITION"]).astype(np.float64)
    vertices = np.arange(len(local))
    order = document.accessor(primitive["indices"])[:, 0] if "indices" in primitive else vertices
    faces = order.astype(np.int64).reshape(-1, 3)
    m = vertex_matrices(document, index, placed, attributes, len(local))
    linear = m[:, :3, :3]
    positions = np.einsum("vij,vj->vi", linear, local) + m[:, :3, 3]
    mirrored = bool(np.linalg.det(linear[0]) < 0)
    faces = faces[:, ::-1] if mirrored else faces
    if "NORMAL" in attributes:
        # The cofactors are right for normals, and defined where a joint is scaled to nothing.
        a, b, c = linear[:, 0], linear[:, 1], linear[:, 2]
        cofactors = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], 1)
        own = document.accessor(attributes["NORMAL"]).astype(np.float64)
        normals = np.einsum("vij,vj->vi", cofactors, own) * (-1.0 if mirrored else 1.0)
    else:
        corner = positions[faces]
        across = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        positions, normals = corner.reshape(-1, 3), np.repeat(across, 3, 0)
        vertices, faces = faces.reshape(-1), np.arange(3 * len(faces)).reshape(-1, 3)
    black = np.zeros_like(positions)
    return Part(positions=positions, normals=normals, colors=black, uv=None, faces=faces), vertices


def _painted(
    document: Document,
    part: Part,
    vertices: NDArray[np.int64],
    primitive: Mapping[str, Any],
    material: Mapping[str, Any],
) -> Part:
    """A part in its material's colour times its vertices', with coordinates where it has a texture."""
    surface, attributes = material.get("pbrMetallicRoughness", {}), primitive["attributes"]
    factor = np.array(surface.get("baseColorFactor", (1, 1, 1, 1)), np.float64)
    linear = np.tile(factor[:3], (len(vertices), 1))
    if "COLOR_0" in attributes:
        linear = linear * document.accessor(attributes["COLOR_0"]).astype(np.float64)[vertices][:, :3]
    uv = None
    if "baseColorTexture" in surface:
        info = surface["baseColorTexture"]
        change = info.get("extensions", {}).get("KHR_texture_transform", {})
        which = change.get("texCoord", info.get("texCoord", 0))
        uv = _moved(document.accessor(attributes[f"TEXCOORD_{which}"]).astype(np.float64)[vertices], change)
    return replace(part, colors=to_display(linear), uv=uv)


def _moved(uv: Doubles, change: Mapping[str, Any]) -> Doubles:
    """Texture coordinates after KHR_texture_transform: scale, rotation, offset."""
    angle = change.get("rotation", 0.0)
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, s], [-s, c]])
    moved: Doubles = (uv * np.array(change.get("scale", (1, 1)))) @ turn.T + np.array(
        change.get("offset", (0, 0))
    )
    return moved


def _glowing(material: Mapping[str, Any], colors: Doubles) -> Doubles:
    """A plain glow is a colour, too."""
    glow = np.array(material.get("emissiveFactor", (0, 0, 0)), np.float64)
    if not glow.any() or "emissiveTexture" in material:
        return colors
    return np.maximum(colors, to_display(glow))


def _textured(document: Document, material: Mapping[str, Any], part: Part) -> Part:
    """A part with its texture's colours at the corners of its faces, cut finer where that is too coarse."""
    if part.uv is None:
        return part
    texture = document.json["textures"][material["pbrMetallicRoughness"]["baseColorTexture"]["index"]]
    webp = texture.get("extensions", {}).get("EXT_texture_webp", {}).get("source")
    image = document.image(texture.get("source", webp))
    part = _cut(image, part)
    assert part.uv is not None
    corners = part.faces.reshape(-1)
    texels = sample(image, _inner(part.uv[part.faces]).reshape(-1, 2))
    faces = np.arange(len(corners)).reshape(-1, 3)
    if material.get("alphaMode", "OPAQUE") != "OPAQUE":
        faces = faces[texels[:, 3].reshape(-1, 3).mean(1) > SEEN]
    return Part(
        positions=part.positions[corners],
        normals=part.normals[corners],
        # Factors are nearly always white, so a product in display space is close enough.
        colors=part.colors[corners] * texels[:, :3],
        uv=None,
        faces=faces,
    )


def sample(image: NDArray[np.float32], uv: Doubles) -> Doubles:
    """The texels [V, 4] of an image [H, W, 4] that lie at coordinates [V, 2], which repeat."""
    height, width = image.shape[:2]
    u, v = uv[:, 0] % 1.0, uv[:, 1] % 1.0
    column = np.minimum((u * width).astype(int), width - 1)
    found: Doubles = image[np.minimum((v * height).astype(int), height - 1), column].astype(np.float64)
    return found


def _inner(uv: Doubles) -> Doubles:
    """Corners [F, 3, 2] moved a little towards the middle of their faces."""
    moved: Doubles = uv * (1 - INNER) + uv.mean(1, keepdims=True) * INNER
    return moved


_INSIDE = np.array(  # places in a face where its texture is compared with the blend of its corners
    [
        [1 / 3] * 3,
        [0.5, 0.5, 0],
        [0, 0.5, 0.5],
        [0.5, 0, 0.5],
        [0.6, 0.2, 0.2],
        [0.2, 0.6, 0.2],
        [0.2, 0.2, 0.6],
    ]
)


def _cut(image: NDArray[np.float32], part: Part) -> Part:
    """Cut faces in four whose texture is no blend of their corners' texels: pictures, not palettes."""
    size = float(np.ptp(part.positions, axis=0).max())
    for _ in range(ROUNDS):
        assert part.uv is not None
        inner = _inner(part.uv[part.faces])
        corner = sample(image, inner.reshape(-1, 2))[:, :3].reshape(-1, 3, 3)
        wrong = np.zeros(len(part.faces), bool)
        for place in _INSIDE:
            there = sample(image, np.einsum("k,fkc->fc", place, inner))[:, :3]
            wrong |= np.abs(there - np.einsum("k,fkc->fc", place, corner)).max(1) > TOLERANCE
        p = part.positions[part.faces]
        area = np.linalg.norm(np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]), axis=1)
        wrong &= area > (SMALLEST * size) ** 2
        if not wrong.any() or wrong.sum() > MOST:
            break
        part = _quartered(part, wrong)
    return part


def _quartered(part: Part, which: NDArray[np.bool_]) -> Part:
    """Chosen faces cut at the middles of their edges."""
    assert part.uv is not None
    f, start = part.faces[which], len(part.positions)

    def with_middles(x: Doubles) -> Doubles:
        return np.concatenate([x, *((x[f[:, k]] + x[f[:, (k + 1) % 3]]) / 2 for k in range(3))])

    ab, bc, ca = (start + k * len(f) + np.arange(len(f)) for k in range(3))
    corners = ((f[:, 0], ab, ca), (ab, f[:, 1], bc), (ca, bc, f[:, 2]), (ab, bc, ca))
    return Part(
        positions=with_middles(part.positions),
        normals=with_middles(part.normals),
        colors=with_middles(part.colors),
        uv=with_middles(part.uv),
        faces=np.concatenate([part.faces[~which], *(np.stack(c, 1) for c in corners)]),
    )
