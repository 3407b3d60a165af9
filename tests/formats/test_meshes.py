"""Meshes that trimesh reads: .stl, .ply with faces, .glb; and how they are told from splats."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splatgen import formats
from splatgen.formats import meshes
from splatgen.runs.rng import rng
from splatgen.scene.colors import linear_to_srgb, srgb_to_linear
from splatgen.scene.splats import random_ball

OPENED: list[str] = []
WATCH = [False]


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCH[0] and event in ("open", "socket.connect", "subprocess.Popen"):
        OPENED.append(str(arguments[0]))


sys.addaudithook(_audit)


def box(**visual: Any) -> trimesh.Trimesh:
    made = trimesh.creation.box(extents=(1.0, 2.0, 3.0))
    if "colors" in visual:
        made.visual.vertex_colors = visual["colors"]
    return made


def written(mesh: Any, path: Path) -> Path:
    data = mesh.export(file_type=path.suffix[1:])
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def textured(factor: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> trimesh.Trimesh:
    """A square of two triangles; its texture is red below and blue above."""
    picture = Image.new("RGB", (2, 2), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 1, 2, 2))  # rows of a picture go down
    corners = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture, baseColorFactor=factor)
    return trimesh.Trimesh(
        vertices=[[*c, 0.0] for c in corners],
        faces=[[0, 1, 2], [0, 2, 3]],
        visual=trimesh.visual.TextureVisuals(uv=np.array(corners), material=material),
        process=False,
    )


@pytest.mark.parametrize("suffix", [".stl", ".ply", ".glb", ".obj"])
def test_every_format_gives_the_same_box(tmp_path: Path, suffix: str) -> None:
    found = meshes.load(written(box(), tmp_path / f"box{suffix}"))
    corners = found.vertices[found.faces].flatten(0, 1)
    assert len(found.faces) == 12
    torch.testing.assert_close(corners.amax(0) - corners.amin(0), torch.tensor([1.0, 2.0, 3.0]).double())


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_colours_of_vertices(tmp_path: Path, suffix: str) -> None:
    """In a .glb they are linear light, in a .ply as displayed."""
    colors = np.random.default_rng(0).integers(0, 256, (8, 4)).astype(np.uint8)
    found = meshes.load(written(box(colors=colors), tmp_path / f"box{suffix}"))
    expected = torch.tensor(colors[:, :3].astype(np.float64) / 255.0)
    torch.testing.assert_close(found.colors, linear_to_srgb(expected) if suffix == ".glb" else expected)


def test_a_texture_is_read_where_a_point_is(tmp_path: Path) -> None:
    found = meshes.load(written(trimesh.Scene([textured()]), tmp_path / "square.glb"))
    low, high = torch.tensor([[0.45, 0.45, 0.10]]).double(), torch.tensor([[0.1, 0.1, 0.8]]).double()
    first, second = torch.tensor([0]), torch.tensor([1])  # lower right half; upper left half
    assert found.colors_at(first, low)[0].tolist() == [1.0, 0.0, 0.0]
    assert found.colors_at(second, high)[0].tolist() == [0.0, 0.0, 1.0]


def test_a_factor_darkens_the_light_of_a_texture(tmp_path: Path) -> None:
    scene = trimesh.Scene([textured((0.5, 1.0, 1.0, 1.0))])
    found = meshes.load(written(scene, tmp_path / "square.glb"))
    red = found.colors_at(torch.tensor([0]), torch.tensor([[0.45, 0.45, 0.10]]).double())[0, 0]
    assert float(red) == pytest.approx(float(linear_to_srgb(torch.tensor(128 / 255))), abs=1e-6)


def test_parts_keep_their_places_and_textures(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    scene.add_geometry(box(colors=[255, 255, 255, 255]))
    scene.add_geometry(textured(), transform=trimesh.transformations.translation_matrix([10.0, 0.0, 0.0]))
    found = meshes.load(written(scene, tmp_path / "two.glb"))
    assert found.texture is not None
    assert sorted(found.texture.tolist()) == [-1] * 12 + [0] * 2
    square = found.vertices[found.faces[found.texture == 0]].flatten(0, 1)
    assert square.amin(0).tolist() == [10.0, 0.0, 0.0]


def test_splats_are_told_from_meshes(tmp_path: Path) -> None:
    splats = random_ball(
        rng(0, 0, "x"), count=20, radius=0.5, scale=0.1, opacity=0.5, sh_degree=0, color_spread=1.0
    )
    for suffix in formats.FORMATS:
        formats.save(splats, tmp_path / f"splats{suffix}")
        assert not meshes.is_mesh(tmp_path / f"splats{suffix}")
    for suffix in (".ply", ".glb", ".stl", ".obj"):
        assert meshes.is_mesh(written(box(), tmp_path / f"mesh{suffix}"))
    assert not meshes.is_mesh(tmp_path / "missing.ply")


def test_no_file_that_a_mesh_names_is_opened(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"x")
    lines = written(box(), tmp_path / "box.ply").read_bytes().split(b"\n", 2)
    named = tmp_path / "named.ply"
    named.write_bytes(b"\n".join([*lines[:2], b"comment TextureFile there.png", lines[2]]))
    scene = written(trimesh.Scene([textured()]), tmp_path / "square.glb").read_bytes()
    size = struct.unpack_from("<I", scene, 12)[0]
    text = scene[20 : 20 + size].replace(b'"bufferView"', b'"uri":"there.png","bufferView"', 1)
    text += b" " * (-len(text) % 4)
    rest = scene[20 + size :]
    head = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A)
    (tmp_path / "named.glb").write_bytes(head + text + rest)
    meshes.load(named)  # what is imported on the first use is not watched
    for path in (named, tmp_path / "named.glb"):
        OPENED.clear()
        WATCH[0] = True
        try:
            meshes.load(path)
        except ValueError:
            pass
        finally:
            WATCH[0] = False
        assert [name for name in OPENED if "there" in name or not name.endswith((".py", ".pyc"))] == [
            str(path)
        ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.stl", b"", "."),
        ("a.stl", b"solid nothing\nendsolid\n", "no faces"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nelement face 2\nend_header\n", "."),
        ("a.glb", b"glTF\x02\0\0\0\x14\0\0\0", "."),
    ],
)
def test_what_is_no_mesh_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        meshes.load(path)
    assert name in str(caught.value)
    assert str(caught.value).isprintable()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([".stl", ".ply", ".glb"]), st.integers(0, 5000), st.binary(max_size=6))
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: Any, suffix: str, place: int, extra: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    data = box().export(file_type=suffix[1:])
    at = place % (len(data) + 1)
    path.write_bytes(data[:at] + extra + data[at + len(extra) :] if extra else data[:at])
    try:
        found = meshes.load(path)
    except ValueError as error:
        assert str(error).isprintable()
        assert str(path) in str(error)
    else:
        assert bool(found.vertices.isfinite().all())


def test_light_and_display_values_are_inverses() -> None:
    values = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-6, rtol=0.0)
    light = srgb_to_linear(values.numpy())  # arrays of NumPy are taken too, by the same formula
    assert isinstance(light, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(light), srgb_to_linear(values))


@pytest.mark.parametrize("faces", [0, 2])
def test_splats_with_faces_beside_them_are_splats(tmp_path, faces):
    """Some programs write an element of faces into every .ply, with none in it or some."""
    import plyfile

    path = tmp_path / "a.ply"
    formats.save(random_ball(rng(0, 0, "x"), count=20, radius=0.5, scale=0.1, opacity=0.5), path)
    vertex = plyfile.PlyData.read(str(path), mmap=False)["vertex"].data
    face = np.zeros(faces, [("vertex_indices", "<i4", (3,))])
    elements = [plyfile.PlyElement.describe(a, n) for a, n in ((vertex, "vertex"), (face, "face"))]
    plyfile.PlyData(elements).write(str(path))
    assert not meshes.is_mesh(path)
    assert len(formats.load(path)) == 20
