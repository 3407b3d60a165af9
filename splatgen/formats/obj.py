"""Wavefront .obj files: the triangles of a mesh, with the colours of its vertices.

By hand, though trimesh reads them too: in silence it misreads faces that count backwards, and drops a
face with a comment behind it; and it does not name the line that is broken.

Shapes: V vertices, F triangles.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from splatgen.scene.surface import Mesh

MESH_BYTES = 200_000_000
MESH_MOST = 4_000_000  # vertices, and triangles
LINES_MOST, LINE_BYTES = 20_000_000, 100_000
FAR = 1e30  # coordinates beyond are broken, and their squares might overflow


def load(path: Path) -> Mesh:
    """The triangles of a Wavefront .obj file, whose axes are the internal ones: +Y up, +Z to the front.

    Reads the lines `v x y z [r g b]` and `f ...`, polygons as fans; all others, those that name materials and
    textures above all, are skipped, and no other file is opened. Vertices without a colour are grey.
    Raises ValueError in one line for anything that is no such file or too large; OSError passes through.
    """
    check_size(path)
    vertices, faces = array("d"), array("q")  # six and three numbers each
    with path.open("rb") as file:
        for number, words in _lines(file, path):
            try:
                if words[0] == b"v":
                    vertices.extend(_vertex(words))
                elif words[0] == b"f":
                    faces.extend(_fan(words, len(vertices) // 6))
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {_reason(error)}") from error
            if max(len(vertices) // 6, len(faces) // 3) > MESH_MOST:
                raise ValueError(
                    f"{path} has more than {MESH_MOST:,} vertices or triangles: simplify it first"
                )
    return _checked(vertices, faces, path)


def check_size(path: Path) -> None:
    """ValueError for what is no file or too large to read as a mesh; OSError for what isn't there."""
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a mesh file")
    if size > MESH_BYTES:
        raise ValueError(f"{path} is larger than {MESH_BYTES // 10**6} MB: simplify the mesh first")


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """The words of each line that has any, with its number; a backslash at the end joins two lines."""
    number, start = 0, b""
    while line := file.readline(LINE_BYTES):
        number += 1
        line = start + (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        if len(line) >= LINE_BYTES:
            raise ValueError(f"{path} line {number}: it is longer than {LINE_BYTES:,} bytes: is that a mesh?")
        if number > LINES_MOST:
            raise ValueError(f"{path} has more than {LINES_MOST:,} lines: simplify the mesh first")
        start = b""
        if line.rstrip().endswith(b"\\"):
            start = line.rstrip()[:-1]
            continue
        if words := line.partition(b"#")[0].split():
            yield number, words
    if words := start.partition(b"#")[0].split():  # the last line ends in a backslash
        yield number, words


def _vertex(words: list[bytes]) -> list[float]:
    """x y z r g b of `v x y z`, `v x y z w` or `v x y z r g b`; no colour is NaN."""
    numbers = [float(word) for word in words[1:8]]
    if len(numbers) < 3:
        raise ValueError("a vertex has three coordinates")
    if not all(-FAR < value < FAR for value in numbers):  # false for NaN too
        raise ValueError("a number is not finite, or beyond 1e30")
    return numbers[:6] if len(numbers) >= 6 else [*numbers[:3], math.nan, math.nan, math.nan]


def _fan(words: list[bytes], count: int) -> list[int]:
    """Corners, three a triangle, of `f v v v ...` with v, v/vt, v//vn or v/vt/vn, from 0.

    v is the number of a vertex from 1, or counted from the last of the `count` ones so far, which is -1.
    """
    corners = []
    for word in words[1:]:
        index = int(word.partition(b"/")[0])
        index = index - 1 if index > 0 else count + index if index < 0 else -1
        if not 0 <= index < MESH_MOST:
            raise ValueError("a face uses a vertex that is not there")
        corners.append(index)
    if len(corners) < 3:
        raise ValueError("a face has three corners or more")
    return [c for a, b in itertools.pairwise(corners[1:]) for c in (corners[0], a, b)]


def _reason(error: ValueError) -> str:
    """What is wrong with a line, without quoting what may be binary."""
    words = str(error)
    numbers = ("could not convert", "invalid literal", "Exceeds the limit")
    return "it has something that is not a number" if words.startswith(numbers) else words


def _checked(vertices: array[float], faces: array[int], path: Path) -> Mesh:
    rows = torch.from_numpy(np.array(vertices).reshape(-1, 6))
    corners = torch.from_numpy(np.array(faces).reshape(-1, 3))
    if len(corners) == 0:
        what = f"{len(rows)} vertices and no faces" if len(rows) else "no vertices"
        raise ValueError(f"{path} holds {what}: give a mesh of triangles or polygons")
    if int(corners.max()) >= len(rows):
        raise ValueError(
            f"{path} has a face that uses vertex {int(corners.max()) + 1} of {len(rows)}: export it again"
        )
    colors = rows[:, 3:].clone()
    if float(colors.nan_to_num(0.0).max()) > 1.0:  # some programs write 0 to 255
        colors = colors / 255.0
    return Mesh(vertices=rows[:, :3], faces=corners, colors=colors.nan_to_num(0.5).clamp(0.0, 1.0))
