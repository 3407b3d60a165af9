"""Where a .glb puts its meshes: the tree of nodes, flattened.

Shapes: matrices [4, 4] take columns (x, y, z, 1) from a mesh to the world.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatgen.formats.glb_document import Document, numbers, objects, short, whole

NODES_MOST, SCENES_MOST = 10_000, 16
Entry = dict[str, Any]
Matrix = NDArray[np.float64]


def shown(document: Document) -> int | None:
    """The scene that is shown first; None for a file without scenes, which is a library."""
    return whole(document.json, "scene") if "scenes" in document.json else None


def scenes(document: Document) -> list[int | None]:
    """All of them, the one that is shown first to begin with."""
    first, given = shown(document), document.json.get("scenes")
    count = min(len(given), SCENES_MOST) if isinstance(given, list) else 0
    return [first, *(n for n in range(count) if n != first)]


def placed_meshes(document: Document, scene: int | None) -> list[tuple[Entry, Matrix, tuple[Entry, ...]]]:
    """Every mesh of a scene, once for each node that shows it, with its matrix and the nodes down to it.

    Without a scene, each mesh of the file stands where it is. Raises ValueError for nodes that are no tree
    and for transforms that are no numbers. What KHR_node_visibility hides is left out, with all below.
    """
    if scene is None:
        meshes = document.json.get("meshes", [])
        if not isinstance(meshes, list):
            raise ValueError(f"its JSON has {short(meshes)} as meshes, expected a list: it is damaged")
        return [(document.entry("meshes", i), np.eye(4), ()) for i in range(len(meshes[:NODES_MOST]))]
    placed, seen = [], set()
    root: tuple[Entry, ...] = ()
    waiting = [(index, np.eye(4), root) for index in _children(document.entry("scenes", scene), "nodes")]
    while waiting:
        index, outer, above = waiting.pop()
        node = document.entry("nodes", index)
        if index in seen:
            raise ValueError(f"its node {index} hangs in two places: it is damaged, so save it again")
        seen.add(index)
        if len(seen) > NODES_MOST:
            raise ValueError(f"it has more than {NODES_MOST} nodes: save the splats alone")
        if objects(objects(node, "extensions"), "KHR_node_visibility").get("visible", True) is False:
            continue
        matrix = _times(outer, _matrix(node))
        way = (*above, node) if "extensions" in node else above  # whoever extends nothing needs no look
        if "mesh" in node:
            placed.append((document.entry("meshes", node["mesh"]), matrix, way))
        waiting += [(child, matrix, way) for child in _children(node, "children")]
    return placed


def _children(entry: dict[str, Any], key: str) -> list[Any]:
    children = entry.get(key, [])
    if not isinstance(children, list):
        raise ValueError(f"its JSON has {short(children)} as {key}, expected a list: it is damaged")
    return children


def _matrix(node: dict[str, Any]) -> Matrix | None:
    """A node's own transform: a matrix by columns, or translation, rotation (xyzw) and scale."""
    if "matrix" in node:
        return numbers(node, "matrix", [0.0] * 16).reshape(4, 4).T
    if not {"translation", "rotation", "scale"} & node.keys():
        return None
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(numbers(node, "rotation", [0.0, 0.0, 0.0, 1.0]))
    matrix[:3, :3] *= numbers(node, "scale", [1.0, 1.0, 1.0])
    matrix[:3, 3] = numbers(node, "translation", [0.0, 0.0, 0.0])
    return matrix


def rotation_matrix(quat: NDArray[np.float64]) -> Matrix:
    """The matrix [3, 3] of a quaternion xyzw of any length but 0."""
    length = np.linalg.norm(quat)
    if length == 0:
        raise ValueError("a node's rotation is zero: it is damaged, so save it again")
    x, y, z, w = quat / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _times(outer: Matrix, inner: Matrix | None) -> Matrix:
    if inner is None:
        return outer
    product: Matrix = outer @ inner
    if not np.isfinite(product).all():
        raise ValueError("its nodes multiply to numbers that are not finite: it is damaged")
    return product
