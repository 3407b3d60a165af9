"""The gzip stream of a .spz that nobody vouches for.

A gzip stream may grow a thousandfold. The header, its first 16 bytes, says how many splats follow: their
bytes are counted, and compared with what a file of this size may hold, before more is unpacked.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = 0x5053474E  # "NGSP"
HEADER = struct.Struct("<IIIBBBB")
# Bytes after decompression for each in the file: real splats shrink two- to tenfold. What is small may be
# anything.
RATIO, SMALL = 64, 16 * 1024**2
EXTENSIONS, EXTENSION_BYTES = 2, 64 * 1024  # a flag, and what may follow the splats under it
COORDINATE_SYSTEM, USUAL = (
    0xADBE0003,
    (0, 4),
)  # an extension's number, and its values that mean right, up, back


@dataclass(frozen=True, kw_only=True)
class Header:
    version: int
    count: int
    degree: int
    fractional_bits: int
    flags: int

    @property
    def quat_bytes(self) -> int:
        return 4 if self.version == 3 else 3

    @property
    def size(self) -> int:
        """Of all splats, before compression."""
        return self.count * (16 + self.quat_bytes + 3 * ((self.degree + 1) ** 2 - 1))

    def pack(self) -> bytes:
        fields = (MAGIC, self.version, self.count, self.degree, self.fractional_bits, self.flags, 0)
        return HEADER.pack(*fields)


def read(file: BinaryIO, size: int) -> tuple[Header, bytes]:
    """The header of a file of `size` bytes, and all splats' bytes. Raises ValueError saying what is wrong."""
    data = file.read(size)
    if data.startswith(b"NGSP"):
        raise ValueError(
            "it is version 4, this reads 2 and 3: write it again with `splat-transform --spz-version 3`"
        )
    if not data.startswith(b"\x1f\x8b"):
        raise ValueError(f"it begins with {data[:4]!r} and not as gzip does: is it another format?")
    stream = zlib.decompressobj(wbits=31)  # gzip
    header = _header(_inflated(stream, data, HEADER.size))
    if header.size > max(SMALL, RATIO * size):
        raise ValueError(
            f"its {header.count:,} splats take {header.size:,} bytes, which a file of {size:,} hardly holds: "
            "it is damaged, or meant to fill memory"
        )
    most = header.size + EXTENSION_BYTES + 1
    splats = _inflated(stream, stream.unconsumed_tail, most)
    if len(splats) < header.size or (not stream.eof and len(splats) < most):
        raise ValueError(f"it ends within its {header.count:,} splats: it is truncated, so copy it again")
    _check_rest(splats[header.size :], header.flags & EXTENSIONS != 0)
    return header, splats[: header.size]


def _inflated(stream: zlib._Decompress, data: bytes, most: int) -> bytes:
    try:
        return stream.decompress(data, most)
    except zlib.error as error:
        raise ValueError(f"its gzip stream is damaged ({error}): copy it again") from error


def _header(data: bytes) -> Header:
    if len(data) < HEADER.size:
        raise ValueError("it ends within its header: it is truncated, so copy it again")
    magic, version, count, degree, bits, flags, _ = HEADER.unpack(data)
    if magic != MAGIC:
        raise ValueError(f"it holds {data[:4]!r} where 'NGSP' is expected: is it another format?")
    if version not in (2, 3):
        raise ValueError(f"it is version {version}, this reads 2 and 3: save it again")
    if degree > 4:
        raise ValueError(f"its spherical harmonics have degree {degree}, expected 0 to 4: it is damaged")
    if bits > 24:
        raise ValueError(f"its positions have {bits} fractional bits, expected 0 to 24: it is damaged")
    return Header(version=version, count=count, degree=degree, fractional_bits=bits, flags=flags)


def _check_rest(rest: bytes, extended: bool) -> None:
    """Refuse what follows the splats, but extensions: records of a number, a length and so many bytes."""
    if len(rest) > (EXTENSION_BYTES if extended else 0):
        raise ValueError("it goes on after its last splat: its header is wrong, so save it again")
    while len(rest) >= 8:
        kind, length = struct.unpack_from("<II", rest)
        value = rest[8 : 8 + length]
        if kind == COORDINATE_SYSTEM and int.from_bytes(value[:4], "little") not in USUAL:
            raise ValueError("its axes are not the usual ones (right, up, back): write it again with those")
        rest = rest[8 + length :]
