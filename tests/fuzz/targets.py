"""What every reader of splat files must keep to, whatever bytes it gets, and files to start from.

Used by run.py, which is guided by coverage, and by the tests, which throw dice.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import plyfile
import torch

from splatgen import formats
from splatgen.scene.splats import Splats, check

SECONDS = 1.0  # of this process: other load does not count
HUGE = 64 * 1024**2
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 3, 3.5, 1e308, -1e-320, 2**31, 2**32, 2**63, 10**40, "", "0", "\ud800", [],
    {}, [[]], [0], [0, 0, 0], {"a": 1}, "KHR_gaussian_splatting", 5120, 5121, 5126, "VEC3", "SCALAR",
]  # fmt: skip


def attempt(path: Path, data: bytes) -> str | None:
    """Load these bytes; the error's text, or None for sound splats. AssertionError for the rest."""
    path.write_bytes(data)
    broken = zlib.crc32(data) % 2 == 0  # the way of `splatgen export`, for half of all inputs
    start = time.process_time()
    try:
        splats = formats.load(path, broken=broken)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text, text
        assert len(text) < 1000, text
        assert text.startswith(repr(str(path))), text
        return text
    finally:
        assert time.process_time() - start < SECONDS
    check(splats)
    assert len(splats) * 12 <= max(len(data) * 64, 16 * 1024**2)
    if not broken:
        assert all(value.isfinite().all() for value in splats.tensors().values())
        assert len(splats) == 0 or bool((splats.quats != 0).any(-1).all())
    return None


def seeds(suffix: str, folder: Path) -> list[bytes]:
    """Sound files of a format: small, and with all that its reader has branches for."""
    path = folder / f"seed{suffix}"
    found = []
    for count, degree in ((3, 0), (2, 1), (1, 3)):
        formats.save(_cloud(count, degree), path, clean=False)
        found.append(path.read_bytes())
    more = {".ply": _plys, ".spz": _spzs, ".glb": _of_others}.get(suffix, lambda _: [])
    return found + more(path)


def _cloud(count: int, degree: int) -> Splats:
    g = torch.Generator().manual_seed(count)
    return Splats(
        means=torch.randn(count, 3, generator=g),
        quats=torch.randn(count, 4, generator=g),
        scales=torch.randn(count, 3, generator=g) - 3,
        opacities=torch.randn(count, generator=g),
        sh=0.2 * torch.randn(count, (degree + 1) ** 2, 3, generator=g),
    )


def _plys(path: Path) -> list[bytes]:
    """In text; and discs with red green blue, Z up, and a property of their own."""
    data = plyfile.PlyData.read(str(path), mmap=False)
    data.text = True
    data.write(str(path))
    names = [*"xyz", "opacity", "scale_0", "scale_1", "rot_0", "rot_1", "rot_2", "rot_3"]
    names += ["nx", "ny", "nz", "own"]
    head = "ply\nformat ascii 1.0\ncomment Vertical axis: z\ncomment SplatRenderMode: mip\nelement vertex 1\n"
    head += "".join(f"property float {name}\n" for name in names)
    head += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue")) + "end_header\n"
    return [path.read_bytes(), (head + "1 2 3 0.5 -1 -2 1 0 0 0 0 0 1 7 200 100 0\n").encode()]


def _spzs(_: Path) -> list[bytes]:
    """Version 2 with an extension after the splats; version 4 with one before them; and without gzip."""
    import zstandard

    splats = bytes(range(9)) + bytes([100] * 7) + bytes([130, 20, 200])
    extension = struct.pack("<III", 0xADBE0003, 4, 4)
    old = b"NGSP" + struct.pack("<IIBBBB", 2, 1, 0, 12, 2, 0) + splats + extension
    parts = [splats[:9], splats[9:10], splats[10:13], splats[13:16], bytes([1, 2, 3, 0xC0])]
    packed = [zstandard.ZstdCompressor().compress(part) for part in parts]
    new = b"NGSP" + struct.pack("<IIBBBBI12x", 4, 1, 0, 12, 3, len(parts), 32 + len(extension)) + extension
    new += b"".join(struct.pack("<QQ", len(p), len(s)) for p, s in zip(packed, parts, strict=True))
    raw = b"NGSP" + struct.pack("<IIBBBB", 2, 1, 0, 12, 0, 0) + splats
    return [gzip.compress(old), new + b"".join(packed), raw]


def _of_others(path: Path) -> list[bytes]:
    """A tree of nodes, and numbers in bytes."""
    text, binary = taken_apart(".glb", path.read_bytes())
    document = json.loads(text)
    document["nodes"] = [
        {"children": [1], "translation": [1, 2, 3], "rotation": [0, 0.6, 0, 0.8], "scale": [2, 2, 2]},
        {"mesh": 0, "matrix": [0, 1, 0, 0, -1, 0, 0, 0, 0, 0, 1, 0, 5, 6, 7, 1]},
    ]
    opacity = document["meshes"][0]["primitives"][0]["attributes"]["KHR_gaussian_splatting:OPACITY"]
    document["accessors"][opacity] |= {"componentType": 5121, "normalized": True}
    document["bufferViews"][0]["byteStride"] = 12
    return [put_together(".glb", [json.dumps(document).encode(), binary])]


# Inside of checksums and lengths, where bytes that are changed blindly hardly ever come


def taken_apart(suffix: str, data: bytes) -> list[bytes]:
    """The parts of a file that may be changed each for itself; the file as a whole when it has none."""
    if suffix == ".spz":
        try:
            return [zlib.decompressobj(31).decompress(data, HUGE)]
        except zlib.error:
            return [data]
    if suffix == ".glb" and len(data) >= 20:
        size = struct.unpack_from("<I", data, 12)[0]
        return [data[20 : 20 + size], data[28 + size :]]
    return [data]


def put_together(suffix: str, parts: list[bytes]) -> bytes:
    """The file of these parts, with the lengths and checksums that they need."""
    if suffix == ".spz" and parts[0][4:5] == b"\4":  # it compresses its parts
        return parts[0]
    if suffix == ".spz":
        return gzip.compress(parts[0], 1, mtime=0)
    if suffix == ".glb" and len(parts) == 2:
        text, binary = parts
        text += b" " * (-len(text) % 4)
        body = (
            struct.pack("<I4s", len(text), b"JSON")
            + text
            + struct.pack("<I4s", len(binary), b"BIN\0")
            + binary
        )
        return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body
    return parts[0]


def odd_json(text: bytes, dice: random.Random) -> bytes:
    """JSON with one value somewhere replaced by an odd one, removed, or doubled."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    places = list(_places(document))
    if not places:
        return text
    holder, key = dice.choice(places)
    match dice.randrange(6):
        case 0:
            del holder[key]
        case 1:
            other, name = dice.choice(places)
            holder[key] = other[name]
        case 2 if isinstance(holder[key], list):
            holder[key] = holder[key] * 2
        case _:
            holder[key] = dice.choice([*ODD, dice.randrange(70), dice.uniform(-2, 2)])
    try:
        return json.dumps(document).encode()
    except (ValueError, RecursionError):  # it was put into itself
        return text


def _places(value: Any) -> Any:
    """Every holder and key below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
