"""Nested state, such as an optimiser's, as tensors and JSON, and back, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def pack(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts, lists and tuples, such as an optimiser's state_dict, into tensors and JSON.

    `unpack` puts them together again, exactly: tuples, keys that are no text, and infinities come
    back as they were. Tensors are not copied; they are named by their place, as "state/0/exp_avg".
    Raises ValueError for objects that are neither JSON nor tensors, saying where they are.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(tree, "", tensors)


def unpack(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """Undo `pack`. Raises ValueError when a tensor is missing."""
    result = rest
    match rest:
        case {"$tensor": name}:
            if name not in tensors:
                raise ValueError(f"no tensor is called {name!r}: the checkpoint is of another version")
            result = tensors[name]
        case {"$tuple": items}:
            result = tuple(unpack(tensors, item) for item in items)
        case {"$dict": items}:
            result = {unpack(tensors, key): unpack(tensors, value) for key, value in items}
        case {"$float": text}:
            result = float(text)
        case dict():
            result = {key: unpack(tensors, value) for key, value in rest.items()}
        case list():
            result = [unpack(tensors, item) for item in rest]
    return result


def pack_each(trees: Mapping[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """`pack` every tree: tensors and the rest, both by the trees' names."""
    packed = {name: pack(tree) for name, tree in trees.items()}
    return {name: p[0] for name, p in packed.items()}, {name: p[1] for name, p in packed.items()}


def unpack_each(tensors: Mapping[str, Mapping[str, Tensor]], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `pack_each`; tensors may hold more than the names in rest."""
    return {name: unpack(tensors[name], tree) for name, tree in rest.items()}


def _pack(node: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    def inside(key: object, child: Any) -> Any:
        return _pack(child, f"{place}/{key}" if place else str(key), tensors)

    if isinstance(node, Tensor):
        name = place or "tensor"
        while name in tensors:  # keys such as 1 and "1" give the same place
            name += "'"
        tensors[name] = node
        return {"$tensor": name}
    if isinstance(node, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in node):
            return {key: inside(key, value) for key, value in node.items()}
        return {"$dict": [[inside("key", key), inside(key, value)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        items = [inside(i, item) for i, item in enumerate(node)]
        return items if isinstance(node, list) else {"$tuple": items}
    if isinstance(node, float) and not math.isfinite(node):
        return {"$float": str(node)}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise ValueError(f"{place or 'the tree'} is a {type(node).__name__}: pack tensors and JSON types only")
