"""Reading glTF 2.0 for the build: a document's buffers, accessors, images and nodes as arrays.

Only what a still picture needs: the default scene in its default pose. No compression.

Shapes: V vertices, J joints.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_COMPONENTS: dict[int, type[np.generic]] = {
    5120: np.int8,
    5121: np.uint8,
    5122: np.int16,
    5123: np.uint16,
    5125: np.uint32,
    5126: np.float32,
}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_COMPRESSED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")


class GltfError(ValueError):
    """A file that is no glTF, damaged, or uses what is not read here; the message says which."""


@dataclass(frozen=True)
class Document:
    """A glTF document with the bytes of its buffers."""

    path: Path
    json: Mapping[str, Any]
    binary: bytes  # the chunk of a .glb

    @cached_property
    def buffers(self) -> list[bytes]:
        return [self._bytes(b["uri"]) if "uri" in b else self.binary for b in self.json.get("buffers", [])]

    def _bytes(self, uri: str) -> bytes:
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        name = unquote(uri)
        beside = (self.path.parent / name).resolve()
        if not beside.is_relative_to(self.path.parent.resolve().parent):
            raise GltfError(f"{self.path.name} reaches for {name[:60]!r}: put its files beside it")
        return beside.read_bytes()

    def view(self, index: int) -> tuple[bytes, int | None]:
        """The bytes of a buffer view, and its stride where it has one."""
        v = self.json["bufferViews"][index]
        start = v.get("byteOffset", 0)
        return self.buffers[v["buffer"]][start : start + v["byteLength"]], v.get("byteStride")

    def accessor(self, index: int) -> NDArray[Any]:
        """The elements of an accessor, [count, width]; normalised integers as floats."""
        a = self.json["accessors"][index]
        kind, width, count = np.dtype(_COMPONENTS[a["componentType"]]), _WIDTHS[a["type"]], a["count"]
        if "bufferView" not in a:
            return np.zeros((count, width), np.float32)
        raw, stride = self.view(a["bufferView"])
        found: NDArray[Any] = np.ndarray(
            (count, width),
            kind,
            raw,
            a.get("byteOffset", 0),
            (stride or kind.itemsize * width, kind.itemsize),
        )
        if a.get("normalized"):
            found = np.maximum(found / np.iinfo(kind).max, -1.0)
        return found.copy()

    def image(self, index: int) -> NDArray[np.float32]:
        """An image, [H, W, 4] in 0..1."""
        from PIL import Image

        entry = self.json["images"][index]
        raw = self.view(entry["bufferView"])[0] if "bufferView" in entry else self._bytes(entry["uri"])
        with Image.open(io.BytesIO(raw), formats=("PNG", "JPEG", "WEBP")) as file:
            return np.asarray(file.convert("RGBA"), np.float32) / np.float32(255)


def read(path: Path) -> Document:
    """A .gltf or .glb file; GltfError for what is no such file or is compressed, OSError when unreadable."""
    raw = path.read_bytes()
    try:
        text, binary = _chunks(raw) if raw[:4] == b"glTF" else (raw, b"")
        data = json.loads(text)
        used = data.get("extensionsRequired", [])
    except (ValueError, struct.error, AttributeError, RecursionError) as error:
        raise GltfError(f"{path.name} is no glTF ({str(error)[:80]}): fetch it again") from error
    for name in _COMPRESSED:
        if name in used:
            raise GltfError(f"{path.name} is compressed ({name}): decode it with `gltf-transform copy` first")
    return Document(path, data, binary)


def _chunks(raw: bytes) -> tuple[bytes, bytes]:
    """JSON and binary chunk of a .glb."""
    found: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(raw):
        length, kind = struct.unpack("<I4s", raw[at : at + 8])
        found.setdefault(kind, raw[at + 8 : at + 8 + length])
        at += 8 + length
    return found.get(b"JSON", b""), found.get(b"BIN\0", b"")


def placed_nodes(document: Document) -> dict[int, Doubles]:
    """Nodes of the default scene in their order, each with its matrix [4, 4] to the world."""
    nodes = document.json.get("nodes", [])
    found: dict[int, Doubles] = {}
    waiting = [
        (k, np.eye(4)) for k in document.json["scenes"][document.json.get("scene", 0)].get("nodes", [])
    ]
    while waiting:
        index, above = waiting.pop(0)
        if index in found:
            raise GltfError(f"{document.path.name}: node {index} is there twice: its tree is damaged")
        found[index] = above @ _local(nodes[index])
        waiting[:0] = [(child, found[index]) for child in nodes[index].get("children", [])]
    return found


def _local(node: Mapping[str, Any]) -> Doubles:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.array(node.get("scale", (1, 1, 1)))
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def vertex_matrices(
    document: Document, index: int, placed: Mapping[int, Doubles], attributes: Mapping[str, int], count: int
) -> Doubles:
    """What takes each vertex of a node's mesh to the world, [V, 4, 4]: the node, or its skin's joints.

    Weights that are not finite count as none, and a vertex without any follows the first joint.
    """
    node = document.json["nodes"][index]
    if "skin" not in node or "JOINTS_0" not in attributes:
        return np.broadcast_to(placed[index], (count, 4, 4))
    skin = document.json["skins"][node["skin"]]
    bones = np.stack([placed.get(joint, np.eye(4)) for joint in skin["joints"]])  # [J, 4, 4]
    if "inverseBindMatrices" in skin:
        bones = bones @ document.accessor(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
    weights = np.nan_to_num(document.accessor(attributes["WEIGHTS_0"]).astype(np.float64))
    weights[weights.sum(1) < 1e-6, 0] = 1.0
    weights /= weights.sum(1, keepdims=True)
    chosen = bones[document.accessor(attributes["JOINTS_0"]).astype(int)]  # [V, 4, 4, 4]
    found: Doubles = np.einsum("vk,vkij->vij", weights, chosen)
    return found
