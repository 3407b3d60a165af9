"""The container, the JSON and the numbers of a .glb that nobody vouches for.

Every length, index and range is checked against what the file really holds before it is used. Only the
bytes inside of the file are read: its text can't name another file.

Shapes: N elements of an accessor, W numbers in each.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

MAGIC, VERSION = b"glTF", 2
JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942
# Python's objects take up to forty times the text's size; splats need some thousand characters.
JSON_MOST = 1024**2
FAR = 1e30  # numbers beyond are broken, and their squares might overflow

# glTF's componentType to numpy's, and the integer that means 1 when normalised
_COMPONENTS = {
    5120: ("<i1", 127),
    5121: ("<u1", 255),
    5122: ("<i2", 32767),
    5123: ("<u2", 65535),
    5126: ("<f4", 1),
}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}

# What a file may require of a reader, but what does not change splats, whoever has it
HARMLESS = frozenset({
    "KHR_gaussian_splatting", "KHR_mesh_quantization", "KHR_node_visibility", "KHR_node_hoverability",
    "KHR_node_selectability", "KHR_lights_punctual", "KHR_materials_variants", "KHR_physics_rigid_bodies",
})  # fmt: skip

Kinds = frozenset[tuple[int, bool]]  # of componentType, and whether it is normalised
FLOATS: Kinds = frozenset({(5126, False)})
SIGNED: Kinds = frozenset({(5120, True), (5122, True)})
UNSIGNED: Kinds = frozenset({(5121, True), (5123, True)})
WHOLE: Kinds = frozenset({(5120, False), (5121, False), (5122, False), (5123, False)})


@dataclass(frozen=True, kw_only=True)
class Document:
    json: dict[str, Any]
    binary: bytes

    def entry(self, array: str, index: Any) -> dict[str, Any]:
        """The object at an index of an array at the top. Raises ValueError when there is none."""
        entries = self.json.get(array)
        known = isinstance(entries, list) and type(index) is int and 0 <= index < len(entries)
        entry = entries[index] if entries is not None and known else None
        if not isinstance(entry, dict):
            raise ValueError(f"it names {short(index)} of its {array} and lacks it: it is damaged")
        return entry


def read(file: BinaryIO, size: int) -> Document:
    """The two chunks of a file of `size` bytes. Raises ValueError saying what is wrong."""
    head = file.read(12)
    if not head.startswith(MAGIC):
        raise ValueError(f"it begins with {head[:4]!r} instead of 'glTF': is it another format?")
    if len(head) < 12:
        raise ValueError("it ends within its header: it is truncated, so copy it again")
    version, length = struct.unpack("<II", head[4:])
    if version != VERSION:
        raise ValueError(f"it is version {version} of glTF, this reads 2: save it again")
    if length > size:
        raise ValueError(f"it says {length} bytes and has {size}: it is truncated, so copy it again")
    text = _chunk(file, length - 12, JSON_CHUNK, most=JSON_MOST)
    rest = length - 20 - len(text)
    binary = _chunk(file, rest, BINARY_CHUNK, most=rest) if rest >= 8 else b""
    return Document(json=_parsed(text), binary=binary)


def _chunk(file: BinaryIO, room: int, kind: int, *, most: int) -> bytes:
    """The next chunk's bytes, which must fit into the room that is left for it."""
    head = file.read(8) if room >= 8 else b""
    length, found = struct.unpack("<II", head) if len(head) == 8 else (0, None)
    name = kind.to_bytes(4, "little").decode().strip("\0")
    if found != kind:
        raise ValueError(f"its chunk {name} is missing: it is damaged, so copy it again")
    if length > room - 8:
        raise ValueError(
            f"its chunk {name} says {length} bytes of {room - 8}: it is damaged, so copy it again"
        )
    if length > most:
        raise ValueError(
            f"its chunk {name} has {length} bytes, {most} are read at most: save the splats alone"
        )
    data = file.read(length)
    if len(data) < length:
        raise ValueError("it became shorter while it was read: wait until it is written")
    return data


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply: it is damaged, or meant to fill memory") from error
    except ValueError as error:
        raise ValueError(f"its JSON is damaged ({str(error)[:80]}): save it again") from error
    if not isinstance(parsed, dict):
        raise ValueError("its JSON is no object: save it again")
    return parsed


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def required(document: Document) -> frozenset[str]:
    """The names of extensions that a reader must know. Raises ValueError for what is no list of names."""
    names = document.json.get("extensionsRequired", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its JSON has {short(names)} as extensionsRequired, expected a list: it is damaged")
    return frozenset(names)


def check_extensions(entry: dict[str, Any], needed: frozenset[str]) -> None:
    """Refuse an object on the way to the splats whose extension the file requires and nobody here knows."""
    unknown = sorted((objects(entry, "extensions").keys() & needed) - HARMLESS)
    if unknown:
        raise ValueError(f"its splats need the extensions {short(unknown)}: save it again without them")


def values(document: Document, index: Any, width: str, kinds: Kinds, name: str) -> NDArray[np.float32]:
    """The numbers of an accessor, [N, W], normalised ones as what they stand for.

    width is glTF's type, such as VEC3. Raises ValueError in the words of `name` for other kinds of numbers
    and for what lies outside of the file.
    """
    accessor = document.entry("accessors", index)
    component: Any = accessor.get("componentType")
    normalized = accessor.get("normalized", False)
    plain = type(component) is int and type(normalized) is bool
    if not plain or (component, normalized) not in kinds or accessor.get("type") != width:
        given = (accessor.get("type"), component, normalized)
        raise ValueError(f"its {name} has numbers of the kind {short(given)}: save it again as floats")
    check_extensions(accessor, required(document))
    if "sparse" in accessor or "bufferView" not in accessor:
        raise ValueError(f"its {name} is sparse: save it again with all numbers in a row")
    code, one = _COMPONENTS[component]
    size, numbers = np.dtype(code).itemsize, _WIDTHS[width]
    count = whole(accessor, "count", least=1)
    start, stride = _place(document, accessor, count, size * numbers, name)
    raw = np.ndarray((count, numbers), code, document.binary, start, (stride, size))
    found: NDArray[np.float32] = raw.astype(np.float32)
    return np.maximum(found / np.float32(one), np.float32(-1)) if normalized else found


def _place(document: Document, accessor: dict[str, Any], count: int, size: int, name: str) -> tuple[int, int]:
    """Where an accessor of `count` elements of `size` bytes begins, and the bytes from one to the next."""
    view = document.entry("bufferViews", accessor["bufferView"])
    check_extensions(view, required(document))
    buffer = document.entry("buffers", view.get("buffer"))
    if view["buffer"] != 0 or "uri" in buffer:
        raise ValueError(f"its {name} is not inside of the file: save it again as one .glb")
    stride = whole(view, "byteStride", default=size)
    first, length = whole(view, "byteOffset"), whole(view, "byteLength", least=1)
    offset = whole(accessor, "byteOffset")
    if stride < size:
        raise ValueError(f"the elements of its {name} overlap: it is damaged")
    if offset + (count - 1) * stride + size > length or first + length > len(document.binary):
        raise ValueError(
            f"its {name} ends outside of the file's {len(document.binary)} bytes of numbers: it is damaged, "
            "so copy it again"
        )
    return first + offset, stride


def whole(entry: dict[str, Any], key: str, *, least: int = 0, default: int = 0) -> int:
    """A whole number of the JSON. Raises ValueError for anything else and for less than `least`."""
    value = entry.get(key, default)
    if type(value) is not int or value < least:
        raise ValueError(f"its JSON has a {key} of {short(value)}, expected a whole number from {least} on")
    return value


def numbers(entry: dict[str, Any], key: str, default: list[float]) -> NDArray[np.float64]:
    """A list of as many finite numbers as the default has. Raises ValueError for anything else."""
    value = entry.get(key, default)
    right = isinstance(value, list) and len(value) == len(default)
    if not right or not all(type(v) in (int, float) and abs(v) < FAR for v in value):
        raise ValueError(f"its JSON has a {key} of {short(value)}, expected {len(default)} numbers")
    return np.array(value, np.float64)


def objects(entry: dict[str, Any], key: str) -> dict[str, Any]:
    """An object of the JSON by its name, empty when it is not there. Raises ValueError for anything else."""
    value = entry.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"its JSON has {short(value)} as {key}, expected an object: it is damaged")
    return value


def dicts(value: Any) -> list[dict[str, Any]]:
    """The objects in a list of the JSON; none for what is no list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def short(value: Any) -> str:
    """What the JSON holds, in a few characters."""
    text = repr(value) if not isinstance(value, int) or abs(value) < FAR else "over 1e30"
    return text if len(text) <= 60 else text[:57] + "..."
