"""glTF files written here come back as what they say; a pack that is not whole leaves nothing."""

import io
import json
import math
import struct
from dataclasses import replace
from types import MappingProxyType

import boxes
import numpy as np
import pytest
from PIL import Image

from splatgen.worlds.shelf import PACKED, build, gltf, surfaces
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.folder import ShelfError, read_models
from splatgen.worlds.shelf.gltf import GltfError

BOX = boxes.box((1, 2, 3), (1, 0, 0))
FLOAT, USHORT = 5126, 5123


class Writer:
    """A glTF document in the making, its arrays in one buffer."""

    def __init__(self):
        self.binary = b""
        self.json = {
            "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "bufferViews": [],
            "accessors": [], "nodes": [{"mesh": 0}], "meshes": [{"primitives": []}], "materials": [],
        }  # fmt: skip

    def view(self, raw):
        self.binary += b"\0" * (-len(self.binary) % 4)
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(raw)})
        self.binary += raw
        return len(self.json["bufferViews"]) - 1

    def accessor(self, values, kind, shape, **more):
        values = np.asarray(values)
        entry = {
            "componentType": kind,
            "type": shape,
            "count": len(values),
            "bufferView": self.view(values.tobytes()),
        }
        self.json["accessors"].append({**entry, **more})
        return len(self.json["accessors"]) - 1

    def primitive(self, mesh=BOX, material=None, **attributes):
        given = {"POSITION": self.accessor(mesh.positions, FLOAT, "VEC3")}
        given["NORMAL"] = self.accessor(mesh.normals, FLOAT, "VEC3")
        found = {"attributes": {**given, **attributes}}
        found["indices"] = self.accessor(mesh.faces.astype(np.uint16).reshape(-1), USHORT, "SCALAR")
        if material is not None:
            self.json["materials"].append(material)
            found["material"] = len(self.json["materials"]) - 1
        self.json["meshes"][0]["primitives"].append(found)
        return found

    def write(self, path):
        self.json["buffers"] = [{"byteLength": len(self.binary)}]
        text = json.dumps(self.json).encode()
        text += b" " * (-len(text) % 4)
        binary = self.binary + b"\0" * (-len(self.binary) % 4)
        chunks = (
            struct.pack("<I4s", len(text), b"JSON")
            + text
            + struct.pack("<I4s", len(binary), b"BIN\0")
            + binary
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path


def plain(**change):
    writer = Writer()
    writer.primitive()
    writer.json.update(change)
    return writer


def loaded(writer, tmp_path, without=()):
    return surfaces.mesh(gltf.read(writer.write(tmp_path / "model.glb")), without)


def size(mesh):
    return np.ptp(mesh.positions, axis=0)


def outward(mesh):
    """Whether faces and normals look away from the middle."""
    corner = mesh.positions[mesh.faces]
    across = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    middle = (mesh.positions.min(0) + mesh.positions.max(0)) / 2
    faces = (across * (corner.mean(1) - middle)).sum(-1)
    normals = (mesh.normals * (mesh.positions - middle)).sum(-1)
    return (faces > 0).all() and (normals > 0).all()


def test_a_box_comes_back(tmp_path):
    found = loaded(plain(), tmp_path)
    np.testing.assert_allclose(size(found), [1, 2, 3], atol=1e-6)
    assert len(found.positions) == 24
    assert len(found.faces) == 12
    assert outward(found)
    np.testing.assert_allclose(found.colors, 1.0)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"mesh": 0, "scale": [2, 1, 1]}], [2, 2, 3]),
        ([{"mesh": 0, "scale": [-1, 1, 1]}], [1, 2, 3]),  # mirrored: faces turn with it
        ([{"mesh": 0, "rotation": [0, math.sin(math.pi / 4), 0, math.cos(math.pi / 4)]}], [3, 2, 1]),
        ([{"children": [1], "scale": [3, 3, 3]}, {"mesh": 0, "translation": [1, 0, 0]}], [3, 6, 9]),
        ([{"mesh": 0, "matrix": [0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 5, 0, 0, 1]}], [2, 1, 3]),
        ([{"mesh": 0, "children": [1]}, {"mesh": 0, "translation": [1, 0, 0]}], [2, 2, 3]),
    ],
)
def test_nodes_place_what_they_hold(tmp_path, nodes, expected):
    found = loaded(plain(nodes=nodes), tmp_path)
    np.testing.assert_allclose(size(found), expected, atol=1e-5)
    if len(found.positions) == 24:
        assert outward(found)
        np.testing.assert_allclose(np.linalg.norm(found.normals, axis=1), 1.0, atol=1e-5)


def test_parts_that_are_named_are_left_out(tmp_path):
    nodes = [{"mesh": 0, "children": [1]}, {"mesh": 0, "name": "2H_Sword", "translation": [9, 0, 0]}]
    assert size(loaded(plain(nodes=nodes), tmp_path))[0] == pytest.approx(10)
    assert size(loaded(plain(nodes=nodes), tmp_path, ("sword",)))[0] == pytest.approx(1)


def test_faces_without_normals_get_their_own(tmp_path):
    writer = Writer()
    del writer.primitive()["attributes"]["NORMAL"]
    assert outward(loaded(writer, tmp_path))


def test_a_skin_moves_its_vertices_and_weights_that_are_no_numbers_do_not(tmp_path):
    writer = Writer()
    count = len(BOX.positions)
    weights = np.zeros((count, 4), np.float32)
    weights[:, 0] = np.nan
    weights[BOX.positions[:, 1] > 0, 1] = 0.5  # not normalised either
    joints = np.tile(np.array([0, 1, 0, 0], np.uint16), (count, 1))
    writer.primitive(
        JOINTS_0=writer.accessor(joints, USHORT, "VEC4"), WEIGHTS_0=writer.accessor(weights, FLOAT, "VEC4")
    )
    back = np.stack([np.eye(4), np.eye(4)]).astype(np.float32)
    back[1, 3, 1] = -1.0  # column-major: the second joint stands at height 1
    writer.json["nodes"] = [
        {"children": [1, 2, 3]}, {"mesh": 0, "skin": 0, "translation": [50, 0, 0]}, {},
        {"translation": [0, 4, 0]},
    ]  # fmt: skip
    writer.json["skins"] = [
        {"joints": [2, 3], "inverseBindMatrices": writer.accessor(back.reshape(2, 16), FLOAT, "MAT4")}
    ]
    found = loaded(writer, tmp_path)
    assert found.positions[:, 1].min() == pytest.approx(-1)
    assert found.positions[:, 1].max() == pytest.approx(1 + 3)  # 4 - 1 up; a skinned node's place is nothing
    assert found.positions[:, 0].max() == pytest.approx(0.5)


def textured(writer, image, uv, **info):
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, format="PNG")
        writer.json["images"] = [{"bufferView": writer.view(file.getvalue())}]
    writer.json["textures"] = [{"source": 0}]
    coordinates = writer.accessor(np.asarray(uv, np.float32), FLOAT, "VEC2")
    return {"baseColorTexture": {"index": 0, **info}}, coordinates


PALETTE = np.zeros((4, 4, 3), np.uint8)
PALETTE[0, 0], PALETTE[2, 3] = (255, 0, 0), (0, 128, 255)


@pytest.mark.parametrize(
    ("uv", "change", "expected"),
    [
        ((0.1, 0.1), {}, (1, 0, 0)),
        ((0.9, 0.6), {}, (0, 128 / 255, 1)),
        ((1.1, -0.9), {}, (1, 0, 0)),  # it repeats
        ((0.1, 0.1), {"offset": [0.8, 0.5]}, (0, 128 / 255, 1)),
        ((0.45, 0.3), {"scale": [2, 2]}, (0, 128 / 255, 1)),
    ],
)
def test_a_palette_colours_its_faces_whole(tmp_path, uv, change, expected):
    writer = Writer()
    info = {"extensions": {"KHR_texture_transform": change}} if change else {}
    surface, coordinates = textured(writer, PALETTE, np.tile(uv, (24, 1)), **info)
    writer.primitive(material={"pbrMetallicRoughness": surface}, TEXCOORD_0=coordinates)
    found = loaded(writer, tmp_path)
    np.testing.assert_allclose(found.colors, np.tile(expected, (24, 1)), atol=1e-6)
    assert len(found.faces) == 12


def test_a_picture_on_a_face_cuts_it_finer(tmp_path):
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[4:12, 4:12] = 255
    writer = Writer()
    surface, coordinates = textured(writer, picture, np.tile([(0, 0), (1, 0), (1, 1), (0, 1)], (6, 1)))
    writer.primitive(material={"pbrMetallicRoughness": surface}, TEXCOORD_0=coordinates)
    found = loaded(writer, tmp_path)
    assert len(found.faces) > 100
    corner = found.positions[found.faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    white = found.colors[found.faces].mean((1, 2))
    assert (area * white).sum() / area.sum() == pytest.approx(0.25, abs=0.08)
    assert area.sum() == pytest.approx(2 * 2 * (2 + 3 + 6))


def test_vertex_colours_and_factors_are_linear_light(tmp_path):
    writer = Writer()
    colors = np.tile(np.array([32768, 65535, 0, 65535], np.uint16), (24, 1))
    given = writer.accessor(colors, USHORT, "VEC4", normalized=True)
    writer.primitive(material={"pbrMetallicRoughness": {"baseColorFactor": [1, 0.5, 1, 1]}}, COLOR_0=given)
    expected = surfaces.to_display(np.array([32768 / 65535, 0.5, 0]))
    np.testing.assert_allclose(loaded(writer, tmp_path).colors, np.tile(expected, (24, 1)), atol=1e-5)
    assert expected[0] == pytest.approx(0.7354, abs=1e-3)  # of IEC 61966-2-1


def test_glass_is_left_out_unless_it_is_all_there_is(tmp_path):
    glass = {"alphaMode": "BLEND", "pbrMetallicRoughness": {"baseColorFactor": [0, 1, 0, 0.2]}}
    writer = Writer()
    writer.primitive(material=glass)
    assert loaded(writer, tmp_path).colors[0, 1] == pytest.approx(1)
    writer.primitive(boxes.box((0.1, 0.1, 0.1), (1, 0, 0)))
    assert size(loaded(writer, tmp_path)).max() == pytest.approx(0.1, abs=1e-5)


def test_a_glow_is_a_colour(tmp_path):
    writer = Writer()
    black = {"baseColorFactor": [0, 0, 0, 1]}
    writer.primitive(material={"emissiveFactor": [1, 0, 0], "pbrMetallicRoughness": black})
    np.testing.assert_allclose(loaded(writer, tmp_path).colors, np.tile([1, 0, 0], (24, 1)), atol=1e-6)


def lines():
    writer = Writer()
    writer.primitive()["mode"] = 1
    return writer


def beyond():
    writer = plain()
    writer.json["accessors"][0]["count"] = 10_000
    return writer


@pytest.mark.parametrize(
    ("writer", "said"),
    [
        (lines(), "no triangles"),
        (plain(nodes=[{}]), "no triangles"),
        (plain(extensionsRequired=["KHR_draco_mesh_compression"]), "compressed"),
        (plain(extensionsRequired=["EXT_meshopt_compression"]), "compressed"),
        (plain(nodes=[{"mesh": 7}]), "damaged"),
        (plain(nodes=[{"children": [0]}]), "there twice"),
        (plain(accessors=[]), "damaged"),
        (beyond(), "damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_line(tmp_path, writer, said):
    with pytest.raises(GltfError, match=said) as raised:
        loaded(writer, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("raw", [b"", b"glTF", b"{", b"\xff\xfe", b"[]", b"glTF\2\0\0\0\xff\xff\xff\xff"])
def test_bytes_that_are_no_gltf_are_refused(tmp_path, raw):
    path = tmp_path / "model.gltf"
    path.write_bytes(raw)
    with pytest.raises(GltfError, match="is no glTF"):
        gltf.read(path)


def test_a_file_reaches_for_nothing_outside_its_pack(tmp_path):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 9999)
    path = tmp_path / "a" / "b" / "c" / "model.gltf"
    path.parent.mkdir(parents=True)
    writer = plain()
    writer.json["buffers"] = [{"byteLength": 9999, "uri": "../../../secret.bin"}]
    path.write_text(json.dumps(writer.json))
    with pytest.raises(GltfError, match="reaches for"):
        surfaces.mesh(gltf.read(path))


# Building

TWO = replace(
    catalogue(), nouns=MappingProxyType({name: catalogue().nouns[name] for name in ("cow", "taxi")})
)


def packs(folder, nouns=("cow", "taxi")):
    for noun in nouns:
        plain().write(build.source(folder, TWO.nouns[noun]))
    return folder


def test_a_build_packs_what_the_folder_reader_reads(tmp_path):
    path = build.build(packs(tmp_path), TWO)
    assert path == tmp_path / PACKED
    found = read_models(tmp_path, TWO)
    assert list(found) == ["cow", "taxi"]
    assert len(found["cow"].faces) == 12
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [PACKED]


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(ShelfError, match=r"'taxi' is missing: clone github.com/KayKit-Game-Assets/"):
        build.build(packs(tmp_path, ["cow"]), TWO)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ShelfError, match="and 1 other models"):
        build.build(empty, TWO)
    with pytest.raises(ShelfError, match="is no folder"):
        build.build(tmp_path / "nowhere", TWO)


def test_a_model_that_cannot_be_packed_leaves_the_old_shelf(tmp_path, capsys):
    before = build.build(packs(tmp_path), TWO).read_bytes()
    lines().write(build.source(tmp_path, TWO.nouns["taxi"]))
    with pytest.raises(ShelfError, match=r"the model of 'taxi' can't be packed: .* has no triangles"):
        build.build(tmp_path, TWO)
    assert (tmp_path / PACKED).read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    assert build.main([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("shelf: error: ")
    assert error.count("\n") == 1
