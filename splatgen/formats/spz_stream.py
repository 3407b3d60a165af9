"""The streams of a .spz that nobody vouches for: one, mostly of gzip (versions 1 to 3), or six of ZSTD (4).

A compressed stream may grow a thousandfold. The header says how many splats follow: their bytes are counted,
and compared with what a file of this size may hold, before more is unpacked.

Source: github.com/nianticlabs/spz, README.md, src/cc/load-spz.cc and extensions/.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

MAGIC = 0x5053474E  # "NGSP"
HEADER = struct.Struct("<IIIBBBB")
HEADER_4 = struct.Struct("<IIIBBBBI12x")  # the last two: how many streams, and where their table is
# Bytes after decompression for each in the file: real splats shrink two- to tenfold. What is small may be
# anything.
ZSTD_LEVEL = 12
RATIO, SMALL = 64, 16 * 1024**2
ANTIALIASED, EXTENSIONS = 1, 2  # flags
EXTENSION_BYTES = 64 * 1024  # at most, of what follows the splats
COORDINATE_SYSTEM = 0xADBE0003  # an extension's number
# Its values, by the directions of x, y and z (see frames). 0 is for nothing said.
AXES = (
    "rub", "ldb", "rdb", "lub", "rub", "ldf", "rdf", "luf", "ruf",
    "lfd", "rfd", "lfu", "rfu", "lbd", "rbd", "lbu", "rbu",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Header:
    version: int
    count: int
    degree: int
    fractional_bits: int
    flags: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes a splat of positions, opacities, colours, scales, rotations and harmonics."""
        harmonics = 3 * ((self.degree + 1) ** 2 - 1)
        return 6 if self.version == 1 else 9, 1, 3, 3, 4 if self.version >= 3 else 3, harmonics

    @property
    def size(self) -> int:
        """Of all splats, before compression."""
        return self.count * sum(self.widths)

    def pack(self) -> bytes:
        fields = (MAGIC, self.version, self.count, self.degree, self.fractional_bits, self.flags, 0)
        return HEADER.pack(*fields)


@dataclass(frozen=True, kw_only=True)
class Stream:
    header: Header
    data: bytes  # all splats, property by property
    axes: int  # what the extension says, an index of AXES or unknown; 0 without


def read(file: BinaryIO, size: int) -> Stream:
    """What a file of `size` bytes holds. Raises ValueError saying what is wrong."""
    data = file.read(size)
    if data.startswith(b"\x1f\x8b"):
        return _of_gzip(data)
    if not data.startswith(b"NGSP"):
        raise ValueError(
            f"it begins with {data[:4]!r}, and not as gzip or 'NGSP' does: is it another format?"
        )
    if len(data) < HEADER.size:
        raise ValueError("it ends within its header: it is truncated, so copy it again")
    if HEADER.unpack_from(data)[1] == 4:
        return _of_zstd(data)
    header = _header(data)
    if len(data) < HEADER.size + header.size:
        raise ValueError(f"it ends within its {header.count:,} splats: it is truncated, so copy it again")
    return _whole(header, data[HEADER.size :])


def _of_gzip(data: bytes) -> Stream:
    stream = zlib.decompressobj(wbits=31)  # gzip
    header = _header(_inflated(stream, data, HEADER.size))
    _check_growth(header, len(data))
    most = header.size + EXTENSION_BYTES + 1
    splats = _inflated(stream, stream.unconsumed_tail, most)
    if len(splats) < header.size or (not stream.eof and len(splats) < most):
        raise ValueError(f"it ends within its {header.count:,} splats: it is truncated, so copy it again")
    return _whole(header, splats)


def _whole(header: Header, splats: bytes) -> Stream:
    """Of an older version, whose extensions follow the splats."""
    rest = splats[header.size :]
    if len(rest) > (EXTENSION_BYTES if header.flags & EXTENSIONS else 0):
        raise ValueError("it goes on after its last splat: its header is wrong, so save it again")
    return Stream(header=header, data=splats[: header.size], axes=_axes(rest))


def _inflated(stream: zlib._Decompress, data: bytes, most: int) -> bytes:
    try:
        return stream.decompress(data, most)
    except zlib.error as error:
        raise ValueError(f"its gzip stream is damaged ({error}): copy it again") from error


def _of_zstd(data: bytes) -> Stream:
    """Version 4: header, extensions and a table of sizes as they are, then a stream for each property."""
    if len(data) < HEADER_4.size:
        raise ValueError("it ends within its header: it is truncated, so copy it again")
    header = _header(data, version_4=True)
    streams, table = HEADER_4.unpack_from(data)[6:8]
    _check_growth(header, len(data))
    end = table + 16 * streams
    if table < HEADER_4.size or end > len(data):
        raise ValueError(f"its table of {streams} streams is not within {len(data):,} bytes: copy it again")
    sizes = list(struct.iter_unpack("<QQ", data[table:end]))  # compressed and not
    wanted = [n for width in header.widths if (n := header.count * width)]
    given = [plain for _, plain in sizes]
    if given[: len(wanted)] != wanted or any(given[len(wanted) :]):
        raise ValueError(f"its streams have {given[:7]} bytes, expected {wanted}: it is damaged")
    ends = list(accumulate((packed for packed, _ in sizes), initial=end))
    if ends[-1] != len(data):
        raise ValueError(f"its streams end at byte {ends[-1]:,} of {len(data):,}: copy it again")
    starts = zip(ends, ends[1:], wanted, strict=False)
    parts = [_unzipped(data[start:stop], plain) for start, stop, plain in starts]
    axes = _axes(data[HEADER_4.size : table]) if header.flags & EXTENSIONS else 0
    return Stream(header=header, data=b"".join(parts), axes=axes)


def of_parts(header: Header, parts: Sequence[bytes]) -> bytes:
    """A file of version 4: header, the table of sizes, a ZSTD stream for each property that has any bytes."""
    import zstandard

    plain = [part for part in parts if part]
    packed = [zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(part) for part in plain]
    fields = (MAGIC, 4, header.count, header.degree, header.fractional_bits, header.flags)
    table = [struct.pack("<QQ", len(small), len(part)) for small, part in zip(packed, plain, strict=True)]
    return b"".join([HEADER_4.pack(*fields, len(plain), HEADER_4.size), *table, *packed])


def _unzipped(data: bytes, size: int) -> bytes:
    """A ZSTD frame that says, or turns out, to hold so many bytes."""
    import zstandard

    try:
        said = zstandard.frame_content_size(data)
        found = zstandard.ZstdDecompressor().decompress(data, size) if said in (-1, size) else b""
    except zstandard.ZstdError as error:
        raise ValueError(f"a ZSTD stream is damaged ({error}): copy it again") from error
    if len(found) != size:
        raise ValueError(f"a ZSTD stream holds not {size:,} bytes: it is damaged, so copy it again")
    return found


def _header(data: bytes, *, version_4: bool = False) -> Header:
    if len(data) < HEADER.size:
        raise ValueError("it ends within its header: it is truncated, so copy it again")
    magic, version, count, degree, bits, flags, _ = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"it holds {data[:4]!r} where 'NGSP' is expected: is it another format?")
    if version not in ((4,) if version_4 else (1, 2, 3)):
        raise ValueError(f"it is version {version} here, this reads 1 to 3, and 4 in ZSTD: save it again")
    if degree > 4:
        raise ValueError(f"its spherical harmonics have degree {degree}, expected 0 to 4: it is damaged")
    if bits > 24:
        raise ValueError(f"its positions have {bits} fractional bits, expected 0 to 24: it is damaged")
    return Header(version=version, count=count, degree=degree, fractional_bits=bits, flags=flags)


def _check_growth(header: Header, size: int) -> None:
    if header.size > max(SMALL, RATIO * size):
        raise ValueError(
            f"its {header.count:,} splats take {header.size:,} bytes, which a file of {size:,} hardly holds: "
            "it is damaged, or meant to fill memory"
        )


def _axes(rest: bytes) -> int:
    """The coordinate system among extensions, records of a number, a length and so many bytes; 0 without."""
    while len(rest) >= 8:
        kind, length = struct.unpack_from("<II", rest)
        if kind == COORDINATE_SYSTEM and length >= 4:
            return int.from_bytes(rest[8:12], "little")
        rest = rest[8 + length :]
    return 0
