"""The splats of a .glb that nobody vouches for: which primitives are some, and what their numbers mean.

Drafts of 2025 stored the log of a scale. A scale can't be negative, and the log of nearly every real one is:
that tells them apart, for all splats of a file at once. An extension that a file requires counts where an
object on the way to the splats has it: lights and materials of other meshes are no reason to refuse it.

Source: Khronos, KHR_gaussian_splatting, release candidate of April 2026.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from splatgen.formats import glb_document, glb_scene, placing, reading
from splatgen.formats.glb_document import FLOATS, SIGNED, UNSIGNED, WHOLE, Document, objects, short
from splatgen.formats.splat_file import Array, SplatFile

NAME = "KHR_gaussian_splatting"
KNOWN = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display", "projection": "perspective"}
LOGS = 0.5  # share of negative scales from which on all are logs
PRIMITIVES_MOST = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Group:
    """A primitive that is splats, and the matrix of its node."""

    primitive: dict[str, Any]
    matrix: glb_scene.Matrix


def clouds(document: Document, size: int, path: str | os.PathLike[str], *, broken: bool) -> list[SplatFile]:
    """The splats of each primitive that is some, where the scene has them, out of a file of `size` bytes.

    Raises ValueError when there are none, for variants of the extension that mean other splats, and for
    everything that is damaged.
    """
    groups = _groups(document, path)
    if not groups and not _is_empty(document):
        raise ValueError("its scene holds no Gaussian splats: it looks like a mesh or a plain point cloud")
    _check_sizes(document, [group.primitive for group in groups], size)
    found = [_splats(document, group.primitive, broken) for group in groups]
    logs = _are_logs([cloud.scales for cloud in found])
    if logs:
        _log.warning("%s: its scales are negative, so they are read as logs, which drafts of 2025 had", path)
    else:
        found = [replace(cloud, scales=reading.log_scales(cloud.scales, broken=broken)) for cloud in found]
    return [placing.placed(cloud, group.matrix) for cloud, group in zip(found, groups, strict=True)]


def _groups(document: Document, path: str | os.PathLike[str]) -> list[Group]:
    """Of the scene that is shown first, or else of the first that has splats."""
    first, *others = glb_scene.scenes(document)
    groups = list(_primitives(document, first))
    for scene in others if not groups else ():
        groups = list(_primitives(document, scene))
        if groups:
            _log.warning("%s: scene %s, shown first, holds no splats: read from scene %s", path, first, scene)
            break
    left = _count(document) - len({id(group.primitive) for group in groups})
    if left and groups:
        _log.warning("%s: %d groups of splats are hidden or in other scenes, and not read", path, left)
    if left and not groups:
        raise ValueError("its splats are hidden or in no scene: show them in a scene, and save it again")
    return groups


def _count(document: Document) -> int:
    """Groups of splats in all meshes of the file, whether a scene shows them or not."""
    meshes = glb_document.dicts(document.json.get("meshes"))
    primitives = [p for mesh in meshes for p in glb_document.dicts(mesh.get("primitives"))]
    return sum(NAME in p["extensions"] for p in primitives if isinstance(p.get("extensions"), dict))


def _are_logs(scales: list[Array]) -> bool:
    """Whether numbers [N, 3] of all groups of a file, which one program wrote, are logs of scales."""
    count = sum(array.size for array in scales)
    return count > 0 and sum(int((array < 0).sum()) for array in scales) >= LOGS * count


def _is_empty(document: Document) -> bool:
    """Whether it is what save() makes of no splats."""
    return document.json.get("extensionsUsed") == [NAME] and "meshes" not in document.json


def _primitives(document: Document, scene: int | None) -> Iterator[Group]:
    """Every primitive of a scene that is splats, with the matrix of its node."""
    required = glb_document.required(document)
    found = 0
    for mesh, matrix, way in glb_scene.placed_meshes(document, scene):
        primitives = mesh.get("primitives")
        if not isinstance(primitives, list) or not all(isinstance(p, dict) for p in primitives):
            raise ValueError("its meshes have no list of primitives: it is damaged, so save it again")
        for primitive in primitives:
            if NAME in objects(primitive, "extensions"):
                found += 1
                if found > PRIMITIVES_MOST:
                    raise ValueError(f"it has more than {PRIMITIVES_MOST} groups of splats: merge them first")
                for entry in (*way, mesh, primitive):
                    glb_document.check_extensions(entry, required)
                yield Group(primitive=primitive, matrix=matrix)


def _check_sizes(document: Document, primitives: list[dict[str, Any]], size: int) -> None:
    """Refuse files that ask for more splats than positions fit into them, by using the same ones again."""
    counts = [_accessor(document, primitive, "POSITION")["count"] for primitive in primitives]
    if 12 * sum(counts) > size:
        raise ValueError(
            f"it shows {short(sum(counts))} splats out of {size:,} bytes: it repeats them, so write them out"
        )


def _accessor(document: Document, primitive: dict[str, Any], name: str) -> dict[str, Any]:
    accessor = document.entry("accessors", objects(primitive, "attributes").get(name))
    glb_document.whole(accessor, "count", least=1)
    return accessor


def _splats(document: Document, primitive: dict[str, Any], broken: bool) -> SplatFile:
    """The splats of a primitive, where its mesh has them, with scales as they are in the file."""
    extension = objects(objects(primitive, "extensions"), NAME)
    _check_variant(primitive, extension)
    attributes = objects(primitive, "attributes")
    degree = max([0, *(d for d in (1, 2, 3) if f"{NAME}:SH_DEGREE_{d}_COEF_0" in attributes)])
    names = [f"SH_DEGREE_{d}_COEF_{n}" for d in range(degree + 1) for n in range(2 * d + 1)]
    missing = [n for n in ("ROTATION", "SCALE", "OPACITY", *names) if f"{NAME}:{n}" not in attributes]
    if missing:
        raise ValueError(f"its splats lack {', '.join(missing)}: it follows an old draft, or save it again")

    count = _accessor(document, primitive, "POSITION")["count"]

    def numbers(name: str, width: str, kinds: glb_document.Kinds) -> Array:
        values = glb_document.values(document, attributes.get(name), width, kinds, name)
        if len(values) != count:
            raise ValueError(
                f"it has {count} splats and {len(values)} of {name}: it is damaged, so save it again"
            )
        return values

    return SplatFile(
        # in bytes by KHR_mesh_quantization: the node's matrix makes them large
        means=numbers("POSITION", "VEC3", FLOATS | SIGNED | UNSIGNED | WHOLE).astype(np.float64),
        quats=numbers(f"{NAME}:ROTATION", "VEC4", FLOATS | SIGNED)[:, [3, 0, 1, 2]],
        scales=numbers(f"{NAME}:SCALE", "VEC3", FLOATS | SIGNED | UNSIGNED | WHOLE),
        opacities=_logits(numbers(f"{NAME}:OPACITY", "SCALAR", FLOATS | UNSIGNED)[:, 0], broken),
        sh=np.stack([numbers(f"{NAME}:{name}", "VEC3", FLOATS) for name in names], 1),
    )


def _check_variant(primitive: dict[str, Any], extension: dict[str, Any]) -> None:
    """Raise ValueError for what the extension leaves to others: it would be drawn in another way."""
    if primitive.get("mode", 4) != 0:
        raise ValueError(f"its splats have the mode {short(primitive.get('mode', 4))}, expected 0 (points)")
    for key, known in KNOWN.items():
        if extension.get(key, known) != known:
            raise ValueError(f"its splats have the {key} {short(extension[key])}, this reads {known!r}")
    if objects(extension, "extensions"):
        names = short(", ".join(extension["extensions"]))
        raise ValueError(f"its splats are compressed or extended by {names}: save it again without")


def _logits(opacities: Array, broken: bool) -> Array:
    outside = (opacities < 0) | (opacities > 1)
    if outside.any() and not broken:
        raise ValueError(
            f"it has {int(outside.sum())} opacities outside of 0..1: it is damaged, so save it again"
        )
    return reading.logits(opacities, reading.STEP32)
