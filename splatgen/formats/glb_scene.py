"""Where a .glb puts its meshes: the tree of nodes, flattened.

Shapes: matrices [4, 4] take columns (x, y, z, 1) from a mesh to the world.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatgen.formats.glb_document import Document, numbers, short, whole

NODES_MOST = 10_000
Matrix = NDArray[np.float64]


def placed_meshes(document: Document) -> list[tuple[dict[str, Any], Matrix]]:
    """Every mesh of the scene that is shown first, once for each node that has it, with its matrix.

    A file without scenes is a library: each of its meshes stands where it is. Raises ValueError for nodes
    that are no tree and for transforms that are no numbers.
    """
    if "scenes" not in document.json:
        meshes = document.json.get("meshes", [])
        if not isinstance(meshes, list):
            raise ValueError(f"its JSON has {short(meshes)} as meshes, expected a list: it is damaged")
        return [(document.entry("meshes", i), np.eye(4)) for i in range(len(meshes[:NODES_MOST]))]
    scene = document.entry("scenes", whole(document.json, "scene"))
    placed, seen = [], set()
    waiting = [(index, np.eye(4)) for index in _children(scene, "nodes")]
    while waiting:
        index, outer = waiting.pop()
        node = document.entry("nodes", index)
        if index in seen:
            raise ValueError(f"its node {index} hangs in two places: it is damaged, so save it again")
        seen.add(index)
        if len(seen) > NODES_MOST:
            raise ValueError(f"it has more than {NODES_MOST} nodes: save the splats alone")
        matrix = _times(outer, _matrix(node))
        if "mesh" in node:
            placed.append((document.entry("meshes", node["mesh"]), matrix))
        waiting += [(child, matrix) for child in _children(node, "children")]
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
