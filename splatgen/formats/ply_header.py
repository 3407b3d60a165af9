"""Reading the vertices of a .ply that nobody vouches for.

The header is parsed from a bounded read, and every count is checked against the file's size before
anything is allocated, so that a small file can't ask for much memory.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

HEADER_LIMIT = 64 * 1024  # bytes; a splat file of degree 3 has about 2000

Column = NDArray[Any]

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True, kw_only=True)
class Element:
    """One element of the header: a name, a number of rows, and numpy's type of each property.

    A list property, whose length varies by row, has the type "".
    """

    name: str
    count: int
    properties: dict[str, str]

    @property
    def has_lists(self) -> bool:
        return "" in self.properties.values()

    @property
    def stride(self) -> int:
        """Bytes a row takes in a binary file without lists."""
        return sum(int(code[1]) for code in self.properties.values())


@dataclass(frozen=True, kw_only=True)
class Header:
    order: str  # "" for ascii, else "<" or ">"
    elements: tuple[Element, ...]
    comments: tuple[str, ...]
    size: int  # bytes up to the data


@dataclass(frozen=True, kw_only=True)
class Vertices:
    columns: dict[str, Column]  # [N] each, as read: those of ascii are float64
    types: dict[str, str]  # numpy's type of each, as the header says
    comments: tuple[str, ...]


def read_vertices(file: BinaryIO, size: int) -> Vertices:
    """The columns of the element `vertex`.

    Raises ValueError for what is not a .ply of `size` bytes or not a whole one; OSError passes through.
    """
    if size == 0:
        raise ValueError("it is empty, so save it again")
    header = parse(file.read(HEADER_LIMIT))
    names = [element.name for element in header.elements]
    if names.count("vertex") != 1:
        raise ValueError(f"it has {names.count('vertex')} elements 'vertex', expected one: give a splat file")
    index = names.index("vertex")
    before, vertex = header.elements[:index], header.elements[index]
    if vertex.has_lists:
        raise ValueError("its element 'vertex' has list properties: save it again without them")
    if not vertex.properties:
        raise ValueError("its element 'vertex' has no properties: save it again as splats")
    reader = _read_binary if header.order else _read_ascii
    columns = reader(file, size, header, before, vertex)
    return Vertices(columns=columns, types=vertex.properties, comments=header.comments)


def _read_binary(
    file: BinaryIO, size: int, header: Header, before: tuple[Element, ...], vertex: Element
) -> dict[str, Column]:
    before = tuple(element for element in before if element.count)  # faces of a mesh that has none
    if any(element.has_lists for element in before):
        raise ValueError("lists come before its element 'vertex': save it again with the vertices first")
    start = header.size + sum(element.count * element.stride for element in before)
    needed = start + vertex.count * vertex.stride
    if needed > size:
        raise ValueError(
            f"{vertex.count} vertices of {vertex.stride} bytes end at byte {needed}, the file has {size}: "
            "it is truncated or its header is wrong, so copy it again"
        )
    file.seek(start)
    layout = np.dtype([(name, header.order + code) for name, code in vertex.properties.items()])
    rows = np.fromfile(file, layout, vertex.count)
    if len(rows) != vertex.count:
        raise ValueError("it became shorter while it was read: wait until it is written")
    return {name: rows[name] for name in vertex.properties}


def _read_ascii(
    file: BinaryIO, size: int, header: Header, before: tuple[Element, ...], vertex: Element
) -> dict[str, Column]:
    names = list(vertex.properties)
    skipped = sum(element.count for element in before)
    # a number and its separator take two bytes at least, the last separator may be missing
    least = 2 * vertex.count * len(names) + skipped - 1
    if header.size + least > size:
        raise ValueError(
            f"{vertex.count} vertices of {len(names)} numbers need {least} bytes or more, the file has "
            f"{size - header.size}: it is truncated or its header is wrong, so copy it again"
        )
    if vertex.count == 0:
        return {name: np.zeros(0) for name in names}
    file.seek(header.size)
    for _ in range(skipped):
        file.readline()
    table = _table(file, vertex.count)
    if table.shape != (vertex.count, len(names)):
        raise ValueError(
            f"it holds {table.shape[0]} rows of {table.shape[1]} numbers, its header says "
            f"{vertex.count} of {len(names)}: it is truncated, so copy it again"
        )
    return {name: table[:, i] for i, name in enumerate(names)}


def _table(file: BinaryIO, rows: int) -> Column:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "input contained no data": the caller compares the shape
        try:
            return np.loadtxt(file, ndmin=2, max_rows=rows, comments=None, encoding="latin-1")
        except ValueError as error:
            raise ValueError(f"its rows are not numbers ({str(error)[:80]}): save it again") from error


def parse(head: bytes) -> Header:
    """Parse a header out of a file's first bytes. Raises ValueError saying what is wrong."""
    if not head.startswith((b"ply\n", b"ply\r\n")):
        raise ValueError(f"it begins with {head[:8]!r} instead of a line 'ply': is it another format?")
    order: str | None = None
    elements: list[Element] = []
    comments: list[str] = []
    position = head.index(b"\n") + 1
    while True:
        end = head.find(b"\n", position)
        if end < 0:
            reason = f"exceeds {HEADER_LIMIT} bytes" if len(head) == HEADER_LIMIT else "breaks off"
            raise ValueError(f"its header {reason} before 'end_header': copy or save the file again")
        line, position = head[position:end], end + 1
        words = line.decode("latin-1").split()
        match words:
            case ["end_header"]:
                break
            case ["format", name, _] if name in _ORDERS and order is None:
                order = _ORDERS[name]
            case ["element", name, count]:
                elements.append(Element(name=name, count=_count(name, count), properties={}))
            case ["property", *rest] if elements:
                _add_property(elements[-1], rest)
            case ["comment" | "obj_info", _, *_]:
                comments.append(line.decode("utf-8", "replace").partition(words[0])[2].strip())
            case [] | ["comment" | "obj_info"]:
                pass
            case _:
                raise ValueError(f"its header has the line {' '.join(words)[:60]!r}: save the file again")
    if order is None:
        raise ValueError("its header has no 'format' line: save the file again")
    return Header(order=order, elements=tuple(elements), comments=tuple(comments), size=position)


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):  # also refuses signs and huge numbers
        raise ValueError(f"its element {name[:40]!r} has the count {text[:40]!r}, expected 0 or more")
    return int(text)


def _add_property(element: Element, words: list[str]) -> None:
    match words:
        case ["list", length, kind, name] if length in _TYPES and kind in _TYPES:
            code = ""
        case [kind, name] if kind in _TYPES:
            code = _TYPES[kind]
        case _:
            raise ValueError(f"its header has the property {' '.join(words)[:60]!r}, expected type and name")
    if name in element.properties:
        raise ValueError(f"its element {element.name[:40]!r} has the property {name[:40]!r} twice")
    element.properties[name] = code
