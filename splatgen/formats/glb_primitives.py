"""The splats of a .glb that nobody vouches for: which primitives are some, and what their numbers mean.

Drafts of 2025 stored the log of a scale. A scale can't be negative, and the log of nearly every real one is:
that tells them apart.

Source: Khronos, KHR_gaussian_splatting, release candidate of April 2026.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from splatgen.formats import glb_document, glb_scene, placing, reading
from splatgen.formats.glb_document import FLOATS, SIGNED, UNSIGNED, WHOLE, Document, objects, short
from splatgen.scene.splats import Splats

NAME = "KHR_gaussian_splatting"
KNOWN = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display", "projection": "perspective"}
LOGS = 0.5  # share of negative scales from which on all are logs
PRIMITIVES_MOST = 256

_log = logging.getLogger(__name__)


def clouds(document: Document, size: int, path: str | os.PathLike[str], *, broken: bool) -> list[Splats]:
    """The splats of each primitive that is some, where the scene has them, out of a file of `size` bytes.

    Raises ValueError when there are none, for variants of the extension that mean other splats, and for
    everything that is damaged.
    """
    _check_extensions(document)
    primitives = list(_primitives(document))
    if not primitives and not _is_empty(document):
        raise ValueError("its scene holds no Gaussian splats: it looks like a mesh or a plain point cloud")
    _check_sizes(document, [primitive for primitive, _ in primitives], size)
    return [placing.placed(_splats(document, p, path, broken), matrix) for p, matrix in primitives]


def _check_extensions(document: Document) -> None:
    required = document.json.get("extensionsRequired", [])
    if not isinstance(required, list) or any(name != NAME for name in required):
        raise ValueError(f"it needs the extensions {short(required)}: save it again without compression")


def _is_empty(document: Document) -> bool:
    """Whether it is what save() makes of no splats."""
    return document.json.get("extensionsUsed") == [NAME] and "meshes" not in document.json


def _primitives(document: Document) -> Iterator[tuple[dict[str, Any], glb_scene.Matrix]]:
    """Every primitive of the scene that is splats, with the matrix of its node."""
    found = 0
    for mesh, matrix in glb_scene.placed_meshes(document):
        primitives = mesh.get("primitives")
        if not isinstance(primitives, list) or not all(isinstance(p, dict) for p in primitives):
            raise ValueError("its meshes have no list of primitives: it is damaged, so save it again")
        for primitive in primitives:
            if NAME in objects(primitive, "extensions"):
                found += 1
                if found > PRIMITIVES_MOST:
                    raise ValueError(f"it has more than {PRIMITIVES_MOST} groups of splats: merge them first")
                yield primitive, matrix


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


def _splats(
    document: Document, primitive: dict[str, Any], path: str | os.PathLike[str], broken: bool
) -> Splats:
    """The splats of a primitive, where its mesh has them."""
    extension = objects(objects(primitive, "extensions"), NAME)
    _check_variant(primitive, extension)
    attributes = objects(primitive, "attributes")
    degree = max([0, *(d for d in (1, 2, 3) if f"{NAME}:SH_DEGREE_{d}_COEF_0" in attributes)])
    names = [f"SH_DEGREE_{d}_COEF_{n}" for d in range(degree + 1) for n in range(2 * d + 1)]
    missing = [n for n in ("ROTATION", "SCALE", "OPACITY", *names) if f"{NAME}:{n}" not in attributes]
    if missing:
        raise ValueError(f"its splats lack {', '.join(missing)}: it follows an old draft, or save it again")

    count = _accessor(document, primitive, "POSITION")["count"]

    def tensor(name: str, width: str, kinds: glb_document.Kinds) -> Tensor:
        values = glb_document.values(document, attributes.get(name), width, kinds, name)
        if len(values) != count:
            raise ValueError(
                f"it has {count} splats and {len(values)} of {name}: it is damaged, so save it again"
            )
        return torch.from_numpy(values)

    return Splats(
        means=tensor("POSITION", "VEC3", FLOATS),
        quats=tensor(f"{NAME}:ROTATION", "VEC4", FLOATS | SIGNED)[:, [3, 0, 1, 2]],
        scales=_log_scales(tensor(f"{NAME}:SCALE", "VEC3", FLOATS | SIGNED | UNSIGNED | WHOLE), path, broken),
        opacities=_logits(tensor(f"{NAME}:OPACITY", "SCALAR", FLOATS | UNSIGNED)[:, 0], broken),
        sh=torch.stack([tensor(f"{NAME}:{name}", "VEC3", FLOATS) for name in names], 1),
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


def _log_scales(scales: Tensor, path: str | os.PathLike[str], broken: bool) -> Tensor:
    if float((scales < 0).float().mean()) >= LOGS:
        _log.warning("%s: its scales are negative, so they are read as logs, which drafts of 2025 had", path)
        return scales
    return reading.log_scales(scales, broken=broken)


def _logits(opacities: Tensor, broken: bool) -> Tensor:
    outside = (opacities < 0) | (opacities > 1)
    if outside.any() and not broken:
        raise ValueError(
            f"it has {int(outside.sum())} opacities outside of 0..1: it is damaged, so save it again"
        )
    return reading.logits(opacities, reading.STEP32)
