"""Where a scene ends up in the bytes of every format, read without the code that reads them.

Red sits at +X, green at +Y, blue at +Z, at different distances; a long white splat points along +X +Y. That
is enough to tell every turn and every mirror image apart.
"""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
from clouds import covariances

from splatgen import formats
from splatgen.scene.splats import SH_C0, Splats

RED, GREEN, BLUE, WHITE = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)
# what a half turn does to x, y, z: about Z for a .ply, about X for COLMAP's axes
TURNS = {"rub": (1, 1, 1), "ply": (-1, -1, 1), "rdf": (1, -1, -1)}
USUAL = {".ply": "ply", ".splat": "ply", ".spz": "rub", ".glb": "rub"}


@dataclass(frozen=True, kw_only=True)
class Raw:
    """What a file says, in its own axes."""

    means: np.ndarray  # [N, 3]
    quats: np.ndarray  # [N, 4] wxyz
    scales: np.ndarray  # [N, 3] logs
    colors: np.ndarray  # [N, 3] 0..1
    sh: np.ndarray  # [N, K - 1, 3] beyond degree 0


def scene() -> Splats:
    """Axes; the harmonics of degree 1 make red brighter from +X, green from +Y and blue from +Z."""
    sh = torch.zeros(4, 4, 3)
    sh[:, 0] = (torch.tensor([RED, GREEN, BLUE, WHITE]) - 0.5) / SH_C0
    # the basis functions of degree 1 are -y, z and -x
    sh[:, 3, 0], sh[:, 1, 1], sh[:, 2, 2] = -0.5, -0.5, 0.5
    eighth = np.pi / 8
    return Splats(
        means=torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [0.5, 0.5, 0]]),
        quats=torch.tensor([[1.0, 0, 0, 0]] * 3 + [[np.cos(eighth), 0, 0, np.sin(eighth)]]).float(),
        scales=torch.tensor([[-3.0, -3, -3]] * 3 + [[-1.0, -3, -3]]),
        opacities=torch.tensor([2.0, 2.0, 2.0, 2.0]),
        sh=sh,
    )


def read_ply(path: Path) -> Raw:
    rows = plyfile.PlyData.read(str(path), mmap=False)["vertex"]

    def stacked(*names: str) -> np.ndarray:
        return np.stack([rows[name] for name in names], -1)

    rest = stacked(*(f"f_rest_{i}" for i in range(9)))
    return Raw(
        means=stacked("x", "y", "z"),
        quats=stacked("rot_0", "rot_1", "rot_2", "rot_3"),
        scales=stacked("scale_0", "scale_1", "scale_2"),
        colors=0.5 + SH_C0 * stacked("f_dc_0", "f_dc_1", "f_dc_2"),
        sh=rest.reshape(-1, 3, 3).transpose(0, 2, 1),
    )


def read_splat(path: Path) -> Raw:
    rows = np.array(list(struct.iter_unpack("<6f8B", path.read_bytes())))
    return Raw(
        means=rows[:, :3],
        quats=(rows[:, 10:] - 128) / 128,
        scales=np.log(rows[:, 3:6]),
        colors=rows[:, 6:9] / 255,
        sh=np.zeros((len(rows), 3, 3)),
    )


def read_spz(path: Path) -> Raw:
    data = gzip.decompress(path.read_bytes())
    (n,) = struct.unpack_from("<I", data, 8)
    at = 16
    parts = []
    for width in (9, 1, 3, 3, 4, 9):
        parts.append([data[at + i * width : at + (i + 1) * width] for i in range(n)])
        at += n * width
    positions = [[int.from_bytes(p[i : i + 3], "little", signed=True) for i in (0, 3, 6)] for p in parts[0]]
    quats = []
    for (word,) in (struct.unpack("<I", part) for part in parts[4]):
        largest, fields = word >> 30, [word >> shift & 1023 for shift in (20, 10, 0)]
        small = [(1 - 2 * (f >> 9)) * (f & 511) / 511 * 0.5**0.5 for f in fields]
        xyzw = [*small[:largest], (1 - sum(v * v for v in small)) ** 0.5, *small[largest:]]
        quats.append([xyzw[3], *xyzw[:3]])
    colors = np.array([list(part) for part in parts[2]])
    return Raw(
        means=np.array(positions) / 4096,
        quats=np.array(quats),
        scales=np.array([list(part) for part in parts[3]]) / 16 - 10,
        colors=0.5 + SH_C0 * (colors / 255 - 0.5) / 0.15,
        sh=(np.array([list(part) for part in parts[5]]).reshape(n, 3, 3) - 128) / 128,
    )


def read_glb(path: Path) -> Raw:
    data = path.read_bytes()
    (size,) = struct.unpack_from("<I", data, 12)
    document, binary = json.loads(data[20 : 20 + size]), data[28 + size :]
    attributes = document["meshes"][0]["primitives"][0]["attributes"]

    def floats(name: str) -> np.ndarray:
        accessor = document["accessors"][attributes[name]]
        start = document["bufferViews"][accessor["bufferView"]]["byteOffset"]
        width = {"VEC3": 3, "VEC4": 4}[accessor["type"]]
        return np.frombuffer(binary, "<f4", accessor["count"] * width, start).reshape(-1, width)

    def own(name: str) -> np.ndarray:
        return floats(f"KHR_gaussian_splatting:{name}")

    return Raw(
        means=floats("POSITION"),
        quats=own("ROTATION")[:, [3, 0, 1, 2]],
        scales=np.log(own("SCALE")),
        colors=0.5 + SH_C0 * own("SH_DEGREE_0_COEF_0"),
        sh=np.stack([own(f"SH_DEGREE_1_COEF_{n}") for n in range(3)], 1),
    )


READERS = {".ply": read_ply, ".splat": read_splat, ".spz": read_spz, ".glb": read_glb}
CASES = [
    (suffix, frame) for suffix in READERS for frame in (None, *TURNS) if suffix != ".glb" or frame is None
]


def by_color(raw: Raw, color: tuple[int, int, int]) -> int:
    """The splat of a color, to the steps of the coarsest format."""
    near = np.abs(raw.colors - color).max(1)
    assert near.min() < 0.05
    return int(near.argmin())


@pytest.mark.parametrize(("suffix", "frame"), CASES)
def test_corners(tmp_path, suffix, frame):
    path = tmp_path / f"axes{suffix}"
    assert formats.save(scene(), path, frame=frame) == 0
    raw = READERS[suffix](path)
    x, y, z = TURNS[frame or USUAL[suffix]]
    assert raw.means[by_color(raw, RED)].tolist() == [x, 0, 0]
    assert raw.means[by_color(raw, GREEN)].tolist() == [0, 2 * y, 0]
    assert raw.means[by_color(raw, BLUE)].tolist() == [0, 0, 3 * z]
    white = by_color(raw, WHITE)
    assert raw.means[white].tolist() == [0.5 * x, 0.5 * y, 0]
    covariance = covariances(raw.quats, raw.scales)[white]
    long = np.linalg.eigh(covariance)[1][:, -1]
    assert abs(long @ [x, y, 0]) == pytest.approx(2**0.5, abs=1e-3)
    assert np.linalg.eigvalsh(covariance)[-1] == pytest.approx(np.exp(-2.0), rel=1e-3)


@pytest.mark.parametrize(("suffix", "frame"), [case for case in CASES if case[0] != ".splat"])
def test_colours_turn_along(tmp_path, suffix, frame):
    """Seen from what was +X, +Y and +Z, red, green and blue are brighter than from the other side."""
    formats.save(scene(), tmp_path / f"axes{suffix}", frame=frame)
    raw = READERS[suffix](tmp_path / f"axes{suffix}")
    for axis, sign in enumerate(TURNS[frame or USUAL[suffix]]):
        seen_from = np.zeros(3)
        seen_from[axis] = sign
        basis = 0.4886 * np.array([-seen_from[1], seen_from[2], -seen_from[0]])
        brighter = np.einsum("k,nkc->nc", basis, raw.sh)
        expected = np.zeros(3)
        expected[axis] = 0.2443
        np.testing.assert_allclose(brighter, np.broadcast_to(expected, (4, 3)), atol=1e-3)


@pytest.mark.parametrize(("suffix", "frame"), CASES)
def test_our_reader_takes_them_back(tmp_path, suffix, frame):
    formats.save(scene(), tmp_path / f"axes{suffix}", frame=frame)
    splats = formats.load(tmp_path / f"axes{suffix}", frame=frame)
    found = {tuple(mean) for mean in splats.means.tolist()}
    assert found == {tuple(mean) for mean in scene().means.tolist()}


@pytest.mark.parametrize("first", READERS)
@pytest.mark.parametrize("second", READERS)
def test_any_way_between_formats_keeps_the_corners(tmp_path, first, second):
    formats.save(scene(), tmp_path / f"a{first}")
    degree = 0 if second == ".splat" else 1  # what came through a .splat is padded for the reader above
    formats.save(formats.load(tmp_path / f"a{first}"), tmp_path / f"b{second}", sh_degree=degree)
    raw = READERS[second](tmp_path / f"b{second}")
    x, y, z = TURNS[USUAL[second]]
    assert raw.means[by_color(raw, RED)].tolist() == [x, 0, 0]
    assert raw.means[by_color(raw, GREEN)].tolist() == [0, 2 * y, 0]
    assert raw.means[by_color(raw, BLUE)].tolist() == [0, 0, 3 * z]
