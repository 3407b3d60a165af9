"""The .glb container and JSON, what others may write, and what the reader refuses."""

import copy
import json
import logging
import math
import struct

import numpy as np
import pytest
import torch
from clouds import COUNTS, cloud, covariances, directions, seen
from hypothesis import given
from hypothesis import strategies as st

from splatgen import __version__, formats
from splatgen.scene.splats import Splats

NAME = "KHR_gaussian_splatting"
COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def taken_apart(data: bytes) -> tuple[dict, bytes]:
    """JSON and binary chunk, by the book."""
    magic, version, length, text, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
    assert text % 4 == 0
    if 20 + text == length:
        return json.loads(data[20:]), b""
    size, kind = struct.unpack("<I4s", data[20 + text : 28 + text])
    assert (28 + text + size, kind) == (length, b"BIN\0")
    return json.loads(data[20 : 20 + text]), data[28 + text :]


def put_together(document: dict | bytes, binary: bytes) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text
    if binary:
        body += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body


def numbers(document: dict, binary: bytes, name: str) -> np.ndarray:
    primitive = document["meshes"][0]["primitives"][0]
    accessor = document["accessors"][primitive["attributes"][name]]
    view = document["bufferViews"][accessor["bufferView"]]
    part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    return np.frombuffer(part, COMPONENTS[accessor["componentType"]]).reshape(accessor["count"], -1)


@pytest.fixture
def glb(tmp_path):
    """JSON and binary chunk of three splats of degree 1."""
    formats.save(cloud(3, 1), tmp_path / "a.glb")
    return taken_apart((tmp_path / "a.glb").read_bytes())


def load(tmp_path, document, binary, **options) -> Splats:
    (tmp_path / "b.glb").write_bytes(put_together(document, binary))
    return formats.load(tmp_path / "b.glb", **options)


def primitive(document: dict) -> dict:
    return document["meshes"][0]["primitives"][0]


def replaced(document: dict, binary: bytes, name: str, array: np.ndarray, **accessor) -> tuple[dict, bytes]:
    """The file with other numbers under an attribute, at the end of the binary chunk."""
    document = copy.deepcopy(document)
    kinds = {np.dtype(code): number for number, code in COMPONENTS.items()}
    view = {"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes}
    document["bufferViews"].append(view)
    document["accessors"].append(
        {
            "bufferView": len(document["bufferViews"]) - 1,
            "componentType": kinds[array.dtype],
            "count": len(array),
            "type": {width: kind for kind, width in WIDTHS.items()}[array.shape[1]],
            **accessor,
        }
    )
    primitive(document)["attributes"][name] = len(document["accessors"]) - 1
    document["buffers"][0]["byteLength"] = len(binary) + array.nbytes
    return document, binary + array.tobytes()


def test_the_file_to_the_byte(tmp_path):
    """One splat with known numbers, written out here in full."""
    splats = Splats(
        means=torch.tensor([[1.0, -2.0, 3.0]]),
        quats=torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        scales=torch.tensor([[0.0, 0.0, 0.0]]),
        opacities=torch.tensor([0.0]),
        sh=torch.tensor([[[0.0, 10.0, -10.0]]]),
    )
    formats.save(splats, tmp_path / "a.glb", comments=["a \ud800 line\n"])
    names = ["POSITION", f"{NAME}:ROTATION", f"{NAME}:SCALE", f"{NAME}:OPACITY", f"{NAME}:SH_DEGREE_0_COEF_0"]
    names.append("COLOR_0")
    grey = round(((0.5 + 0.055) / 1.055) ** 2.4 * 65535)  # of sRGB's 0.5, as light
    binary = struct.pack(
        "<3f4f3ff3f4H", 1, -2, 3, 0, 0, 0, 1, 1, 1, 1, 0.5, 0, 10, -10, grey, 65535, 0, 32768
    )
    sizes, starts = [12, 16, 12, 4, 12, 8], [0, 12, 28, 40, 44, 56]
    types = ["VEC3", "VEC4", "VEC3", "SCALAR", "VEC3", "VEC4"]
    accessors = [
        {"bufferView": i, "componentType": 5126, "count": 1, "type": kind} for i, kind in enumerate(types)
    ]
    accessors[0] |= {"min": [1, -2, 3], "max": [1, -2, 3]}
    accessors[5] |= {"componentType": 5123, "normalized": True}
    extension = {
        "kernel": "ellipse", "colorSpace": "srgb_rec709_display", "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }  # fmt: skip
    document, chunk = taken_apart((tmp_path / "a.glb").read_bytes())
    assert chunk == binary
    assert document == {
        "asset": {
            "version": "2.0",
            "generator": f"splatgen {__version__}",
            "extras": {"comments": ["a ? line\n"]},
        },
        "extensionsUsed": [NAME],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [
            {
                "primitives": [
                    {
                        "mode": 0,
                        "attributes": {name: i for i, name in enumerate(names)},
                        "extensions": {NAME: extension},
                    }
                ]
            }
        ],
        "accessors": accessors,
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": size, "target": 34962}
            for start, size in zip(starts, sizes, strict=True)
        ],
        "buffers": [{"byteLength": 64}],
    }


def test_harmonics_are_coefficient_by_coefficient(tmp_path):
    splats = cloud(2, 3)
    formats.save(splats, tmp_path / "a.glb")
    document, binary = taken_apart((tmp_path / "a.glb").read_bytes())
    at = 0
    for degree in range(4):
        for n in range(2 * degree + 1):
            found = numbers(document, binary, f"{NAME}:SH_DEGREE_{degree}_COEF_{n}")
            assert np.array_equal(found, splats.sh[:, at].numpy())
            at += 1
    assert f"{NAME}:SH_DEGREE_4_COEF_0" not in primitive(document)["attributes"]


@given(count=st.sampled_from(COUNTS), degree=st.integers(0, 3), seed=st.integers(0, 2**31))
def test_round_trip(tmp_path_factory, count, degree, seed):
    """Exact, but for a float32 of rounding where scales and opacities are turned into linear numbers."""
    path = tmp_path_factory.mktemp("glb") / "a.glb"
    splats = cloud(count, degree, seed)
    dropped = formats.save(splats, path)
    splats = splats.select(splats.opacities >= math.log(1 / 254))
    found = formats.load(path)
    assert dropped + len(found) == count
    assert torch.equal(found.means, splats.means)
    torch.testing.assert_close(found.quats, splats.quats, rtol=0, atol=1.2e-7)
    torch.testing.assert_close(found.scales, splats.scales, rtol=2e-7, atol=1e-7)
    torch.testing.assert_close(found.opacities.sigmoid(), splats.opacities.sigmoid(), rtol=0, atol=1.2e-7)
    if len(found):
        assert torch.equal(found.sh, splats.sh)


def test_no_splats_are_a_valid_scene_of_nothing(tmp_path):
    """glTF has no accessor of count 0."""
    formats.save(cloud(0), tmp_path / "a.glb")
    document, binary = taken_apart((tmp_path / "a.glb").read_bytes())
    assert document["scenes"] == [{}]
    assert not binary
    assert len(formats.load(tmp_path / "a.glb")) == 0


def test_padding_and_cutting(tmp_path):
    splats = cloud(5, 1)
    formats.save(splats, tmp_path / "a.glb", sh_degree=3)
    assert torch.equal(formats.load(tmp_path / "a.glb").sh[:, :4], splats.sh)
    assert not formats.load(tmp_path / "a.glb").sh[:, 4:].any()
    formats.save(splats, tmp_path / "a.glb", sh_degree=0)
    assert torch.equal(formats.load(tmp_path / "a.glb").sh, splats.sh[:, :1])


def test_opacities_of_exactly_0_and_1_are_finite(tmp_path, glb):
    opacities = np.array([[0.0], [1.0], [0.5]], "<f4")
    found = load(tmp_path, *replaced(*glb, f"{NAME}:OPACITY", opacities)).opacities
    assert found.sigmoid().tolist() == pytest.approx([0, 1, 0.5], abs=1e-7)
    assert found.isfinite().all()


def test_the_frame_is_gltfs(tmp_path):
    for frame in ("ply", "rdf"):
        with pytest.raises(ValueError, match=f"not the axes '{frame}'"):
            formats.save(cloud(1), tmp_path / "a.glb", frame=frame)
        with pytest.raises(ValueError, match=f"not the axes '{frame}'"):
            formats.load(tmp_path / "a.glb", frame=frame)


# Files of others


@pytest.mark.parametrize("code", ["i1", "<i2"])
def test_quantised_rotations(tmp_path, glb, code):
    most = np.iinfo(code).max
    quats = np.array([[0, 0, 0, most], [most, 0, 0, 0], [0, -most, 0, 0]], code)
    found = load(tmp_path, *replaced(*glb, f"{NAME}:ROTATION", quats, normalized=True)).quats
    assert found.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]
    lowest = np.full((3, 4), -most - 1, code)  # one below what means -1, and read as that
    found = load(tmp_path, *replaced(*glb, f"{NAME}:ROTATION", lowest, normalized=True)).quats
    assert found.tolist() == [[-1] * 4] * 3


@pytest.mark.parametrize(("code", "normalized"), [("u1", True), ("u1", False), ("<u2", True), ("<u2", False)])
def test_quantised_scales_and_opacities(tmp_path, glb, code, normalized):
    most = np.iinfo(code).max
    scales = np.array([[1, 2, 3], [most, 1, 1], [5, 5, 5]], code)
    document, binary = replaced(*glb, f"{NAME}:SCALE", scales, normalized=normalized)
    opacities = np.array([[0], [most], [most // 3]], code)
    document, binary = replaced(document, binary, f"{NAME}:OPACITY", opacities, normalized=True)
    found = load(tmp_path, document, binary)
    expected = scales.astype(float) / (most if normalized else 1)
    np.testing.assert_allclose(found.scales.exp().numpy(), expected, rtol=1e-5)
    assert found.opacities.sigmoid().tolist() == pytest.approx([0, 1, 1 / 3], abs=1e-6)


def test_interleaved_numbers(tmp_path, glb):
    """One bufferView for positions and scales, with a stride."""
    document, binary = glb
    both = np.concatenate([numbers(*glb, "POSITION"), numbers(*glb, f"{NAME}:SCALE")], 1)
    view = {"buffer": 0, "byteOffset": len(binary), "byteLength": both.nbytes, "byteStride": 24}
    document["bufferViews"].append(view)
    for name, offset in (("POSITION", 0), (f"{NAME}:SCALE", 12)):
        accessor = document["accessors"][primitive(document)["attributes"][name]]
        accessor |= {"bufferView": len(document["bufferViews"]) - 1, "byteOffset": offset}
    before = formats.load(tmp_path / "a.glb")
    found = load(tmp_path, document, binary + both.tobytes())
    assert torch.equal(found.means, before.means)
    assert torch.equal(found.scales, before.scales)


def test_primitives_and_meshes_are_joined_and_others_left(tmp_path, glb):
    document, binary = glb
    less = copy.deepcopy(primitive(document))
    for n in range(3):
        del less["attributes"][f"{NAME}:SH_DEGREE_1_COEF_{n}"]
    triangles = {"attributes": {"POSITION": 0}, "mode": 4}
    document["meshes"] = [{"primitives": [primitive(document), triangles]}, {"primitives": [less]}]
    document["nodes"] = [{"mesh": 0}, {"mesh": 1, "translation": [1, 2, 3]}, {}]
    document["scenes"] = [{"nodes": [2]}, {"nodes": [0, 1]}]
    document["scene"] = 1
    # a file may hold as many splats as positions fit into it
    found = load(tmp_path, document, binary)
    before = formats.load(tmp_path / "a.glb")
    shifted = before.means + torch.tensor([1.0, 2.0, 3.0])
    assert {tuple(m) for m in found.means.tolist()} == {
        tuple(m) for m in torch.cat([before.means, shifted]).tolist()
    }
    assert found.sh_degree == 1
    assert (found.sh[:, 1:] == 0).flatten(1).all(1).sum() == 3
    del document["scenes"], document["scene"]  # a library
    assert len(load(tmp_path, document, binary)) == 6


TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("how", ["matrix", "parts", "two nodes"])
def test_nodes_move_their_splats(tmp_path, degree, how):
    """x -> 2 R x + t: covariances and the colours seen from everywhere turn along."""
    formats.save(cloud(4, degree), tmp_path / "a.glb")
    document, binary = taken_apart((tmp_path / "a.glb").read_bytes())
    w = math.sqrt(1 + np.trace(TURN)) / 2
    xyz = [
        (TURN[2, 1] - TURN[1, 2]) / 4 / w,
        (TURN[0, 2] - TURN[2, 0]) / 4 / w,
        (TURN[1, 0] - TURN[0, 1]) / 4 / w,
    ]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 2 * TURN, [1, -2, 3]
    document["nodes"] = {
        "matrix": [{"mesh": 0, "matrix": matrix.T.flatten().tolist()}],
        "parts": [{"mesh": 0, "translation": [1, -2, 3], "rotation": [*xyz, w], "scale": [2, 2, 2]}],
        "two nodes": [
            {"children": [1], "translation": [1, -2, 3], "scale": [4, 4, 4]},
            {"mesh": 0, "rotation": [*xyz, w], "scale": [0.5, 0.5, 0.5]},
        ],
    }[how]
    before, found = formats.load(tmp_path / "a.glb"), load(tmp_path, document, binary)
    np.testing.assert_allclose(found.means, before.means.numpy() @ (2 * TURN).T + [1, -2, 3], atol=2e-6)
    turned = (2 * TURN) @ covariances(before.quats, before.scales) @ (2 * TURN).T
    np.testing.assert_allclose(covariances(found.quats, found.scales), turned, rtol=1e-5, atol=1e-9)
    d = directions()
    np.testing.assert_allclose(seen(found, d @ TURN.T), seen(before, d), atol=1e-6)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"scale": [1, 1, 2]}, "stretches its splats unevenly"),
        ({"scale": [1, 1, -1]}, "mirrors"),
        ({"scale": [0, 0, 0]}, "unevenly"),
        ({"matrix": [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]}, "unevenly|shears"),
        ({"matrix": [1, 0, 0, 0, 0.6, 0.8, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]}, "shears"),
        ({"matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]}, "expected 16 numbers"),
        ({"matrix": "I"}, "expected 16 numbers"),
        ({"translation": [0, 0, None]}, "expected 3 numbers"),
        ({"translation": [0, 0, True]}, "expected 3 numbers"),
        ({"translation": [0, 0, 1e31]}, "expected 3 numbers"),
        ({"translation": [0, 0, 10**400]}, "expected 3 numbers"),
        ({"rotation": [0, 0, 0, 0]}, "rotation is zero"),
        ({"children": [0]}, "hangs in two places"),
        ({"children": [7]}, "names 7 of its nodes"),
        ({"children": 7}, "expected a list"),
        ({"mesh": 1}, "names 1 of its meshes"),
        ({"mesh": "0"}, "names '0' of its meshes"),
    ],
)
def test_refusals_of_nodes(tmp_path, glb, node, words):
    document, binary = glb
    document["nodes"][0] |= node
    with pytest.raises(ValueError, match=words):
        load(tmp_path, document, binary)


def test_logs_of_scales_in_old_drafts_are_told_apart(tmp_path, glb, caplog):
    before = formats.load(tmp_path / "a.glb")
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path, *replaced(*glb, f"{NAME}:SCALE", before.scales.numpy()))
    assert torch.equal(found.scales, before.scales)
    assert "read as logs" in caplog.text
    few = before.scales.exp().numpy()
    few[1, 1] *= -1
    with pytest.raises(ValueError, match="1 negative scales"):
        load(tmp_path, *replaced(*glb, f"{NAME}:SCALE", few))
    assert load(tmp_path, *replaced(*glb, f"{NAME}:SCALE", few), broken=True).scales.isnan().sum() == 1


def changed(document: dict, path: str, value: object) -> dict:
    """The document with the value at a path like accessors/0/count replaced, or removed when it is None."""
    document = copy.deepcopy(document)
    *way, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    place = document
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


PRIMITIVE = "meshes/0/primitives/0"
EXTENSION = f"{PRIMITIVE}/extensions/{NAME}"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (f"{EXTENSION}/kernel", "cube", "kernel 'cube', this reads 'ellipse'"),
        (f"{EXTENSION}/colorSpace", "lin_rec709_display", "this reads 'srgb_rec709_display'"),
        (f"{EXTENSION}/projection", [], r"projection \[\]"),
        (f"{EXTENSION}/extensions", {f"{NAME}_compression_spz_2": {}}, "compressed or extended by 'KHR"),
        (EXTENSION, 5, f"5 as {NAME}, expected an object"),
        (f"{PRIMITIVE}/mode", None, r"the mode 4, expected 0 \(points\)"),
        (f"{PRIMITIVE}/attributes/{NAME}:SCALE", None, "lack SCALE: it follows an old draft"),
        (f"{PRIMITIVE}/attributes/{NAME}:SH_DEGREE_1_COEF_2", None, "lack SH_DEGREE_1_COEF_2"),
        (
            f"{PRIMITIVE}/attributes/{NAME}:SH_DEGREE_3_COEF_0",
            0,
            "lack SH_DEGREE_2_COEF_0, SH_DEGREE_2_COEF_1",
        ),
        (f"{PRIMITIVE}/attributes/POSITION", None, "names None of its accessors"),
        (f"{PRIMITIVE}/attributes", [], "expected an object"),
        (f"{PRIMITIVE}/extensions", None, "no Gaussian splats: it looks like a mesh"),
        ("meshes/0/primitives", {}, "no list of primitives"),
        ("meshes/0/primitives", [3], "no list of primitives"),
        ("meshes", {}, "names 0 of its meshes"),
        ("extensionsRequired", NAME, "as extensionsRequired, expected a list"),
        ("extensionsRequired", [{}], "as extensionsRequired, expected a list"),
        ("scene", 4, "names 4 of its scenes"),
        ("scene", -1, "a scene of -1"),
        ("scene", True, "a scene of True"),
        ("accessors/0/count", 0, "a count of 0, expected a whole number from 1 on"),
        ("accessors/0/count", 3.0, "a count of 3.0"),
        ("accessors/0/count", 4, "ends outside"),
        ("accessors/0/count", 10**31, "shows over 1e30 splats"),
        ("accessors/0/bufferView", None, "sparse"),
        ("accessors/0/sparse", {}, "sparse"),
        ("accessors/0/bufferView", 99, "names 99 of its bufferViews"),
        ("accessors/0/componentType", 5125, "numbers of the kind"),
        ("accessors/0/componentType", [], "numbers of the kind"),
        ("accessors/0/normalized", 1, "numbers of the kind"),
        ("accessors/0/type", "VEC2", "numbers of the kind"),
        ("accessors/0/type", "VEC4", "numbers of the kind"),
        ("accessors/0/byteOffset", 4, "ends outside of the file's"),
        ("accessors/0/byteOffset", -4, "byteOffset of -4"),
        ("accessors/0/byteOffset", 2**63, "ends outside"),
        ("accessors/3/count", 2, "has 3 splats and 2 of KHR_gaussian_splatting:OPACITY"),
        ("accessors/6/count", 1, "has 3 splats and 1 of KHR_gaussian_splatting:SH_DEGREE_1_COEF_1"),
        ("bufferViews/0/byteStride", 8, "overlap"),
        ("bufferViews/0/byteStride", 2**40, "ends outside"),
        ("bufferViews/0/byteLength", 35, "ends outside"),
        ("bufferViews/0/byteLength", 2**60, "ends outside"),
        ("bufferViews/0/byteOffset", 2**60, "ends outside"),
        ("bufferViews/0/buffer", 1, "names 1 of its buffers"),
        ("bufferViews/0/buffer", False, "names False of its buffers"),
        ("buffers/0/uri", "../secret.bin", "not inside of the file"),
        ("buffers/0/uri", "data:application/octet-stream;base64,AAAA", "not inside of the file"),
    ],
)
def test_refusals_of_content(tmp_path, glb, path, value, words):
    document, binary = glb
    with pytest.raises(ValueError, match=words) as caught:
        load(tmp_path, changed(document, path, value), binary)
    assert "\n" not in str(caught.value)


def test_another_buffer_is_not_opened(tmp_path, glb):
    document, binary = glb
    (tmp_path / "other.bin").write_bytes(binary)
    document["buffers"].append({"byteLength": len(binary), "uri": "other.bin"})
    document["bufferViews"][0]["buffer"] = 1
    with pytest.raises(ValueError, match="POSITION is not inside of the file"):
        load(tmp_path, document, binary)


def test_meshes_without_splats_are_named(tmp_path, glb):
    document, binary = glb
    del primitive(document)["extensions"], document["extensionsUsed"]
    with pytest.raises(ValueError, match="a mesh or a plain point cloud"):
        load(tmp_path, document, binary)


def test_numbers_that_are_not_finite(tmp_path, glb):
    means = np.array([[0, math.nan, 0], [0, 0, 0], [math.inf, 0, 0]], "<f4")
    document, binary = replaced(*glb, "POSITION", means)
    with pytest.raises(ValueError, match="2 numbers in its means that are not finite"):
        load(tmp_path, document, binary)
    assert load(tmp_path, document, binary, broken=True).means.isfinite().all(-1).tolist() == [
        False,
        True,
        False,
    ]
    document, binary = replaced(*glb, f"{NAME}:OPACITY", np.array([[1.5], [0], [-0.1]], "<f4"))
    with pytest.raises(ValueError, match=r"2 opacities outside of 0\.\.1"):
        load(tmp_path, document, binary)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "begins with b''"),
        (b"glTX" + b"\0" * 40, "begins with b'glTX'"),
        (b"glTF\2\0\0\0", "ends within its header"),
        (b"glTF" + struct.pack("<II", 1, 12), "version 1 of glTF"),
        (b"glTF" + struct.pack("<II", 2, 999), "says 999 bytes and has 12"),
        (b"glTF" + struct.pack("<II", 2, 12), "chunk JSON is missing"),
        (b"glTF" + struct.pack("<II", 2, 3), "chunk JSON is missing"),
        (b"glTF" + struct.pack("<III4s", 2, 20, 4, b"JSON"), "chunk JSON says 4 bytes of 0"),
        (b"glTF" + struct.pack("<III4s", 2, 20, 0, b"BIN\0"), "chunk JSON is missing"),
        (b"glTF" + struct.pack("<III4s", 2, 20, 2**32 - 1, b"JSON"), "says 4294967295 bytes"),
        (put_together(b"{}", b"")[:-4] + b"\xff\xfe {", "JSON is damaged"),
        (put_together(b"[]", b""), "JSON is no object"),
        (put_together(b"{", b""), "JSON is damaged"),
        (put_together(b'{"a": NaN}', b""), "NaN is no number"),
        (put_together(b'{"a": -Infinity}', b""), "-Infinity is no number"),
        (put_together(b'{"a": ' + b"9" * 5000 + b"}", b""), "JSON is damaged"),
        (put_together(b"[" * 100_000, b""), "nested too deeply"),
        (put_together(b'{"a":' * 100_000, b""), "nested too deeply"),
        (put_together(b"[" + b" " * 1024**2 + b"]", b""), "1048576 are read at most"),
        (put_together(b"{}", b""), "no Gaussian splats"),
        (put_together(b'{"extensionsUsed": 5}', b""), "no Gaussian splats"),
        (put_together(b'{"scenes": 3}', b""), "names 0 of its scenes"),
        (put_together(b'{"meshes": 3}', b""), "3 as meshes"),
        (put_together(b'{"scenes": [{"nodes": {}}]}', b""), "expected a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals_of_containers(tmp_path, data, words):
    (tmp_path / "a.glb").write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        formats.load(tmp_path / "a.glb")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(repr(str(tmp_path / "a.glb")))


def test_many_groups_and_many_nodes_are_refused(tmp_path, glb):
    document, binary = glb
    more = copy.deepcopy(document)
    more["meshes"][0]["primitives"] *= 257
    with pytest.raises(ValueError, match="more than 256 groups"):
        load(tmp_path, more, binary)
    more = copy.deepcopy(document)
    more["nodes"] = [{"mesh": 0}] * 10_001
    more["scenes"] = [{"nodes": list(range(10_001))}]
    with pytest.raises(ValueError, match="more than 10000 nodes"):
        load(tmp_path, more, binary)


def test_the_same_splats_again_and_again_are_refused(tmp_path):
    formats.save(cloud(500), tmp_path / "a.glb")
    document, binary = taken_apart((tmp_path / "a.glb").read_bytes())
    document["meshes"][0]["primitives"] *= 20
    with pytest.raises(ValueError, match=r"shows 9\d+ splats out of \d\d,\d+ bytes: it repeats them"):
        load(tmp_path, document, binary)


# Extensions, scenes and nodes of others


@pytest.mark.parametrize("name", ["KHR_materials_unlit", "KHR_texture_transform", "EXT_meshopt_compression"])
def test_required_extensions_of_other_objects_are_no_reason_to_refuse(tmp_path, glb, name):
    document, binary = glb
    document["extensionsRequired"] = [NAME, name, "KHR_lights_punctual"]
    document["materials"] = [{"extensions": {name: {}}}]
    document["nodes"] += [{"extensions": {"KHR_lights_punctual": {"light": 0}, name: {}}}]
    document["nodes"][0]["extensions"] = {"KHR_lights_punctual": {"light": 0}}
    document["scenes"][0]["nodes"] = [0, 1]
    assert len(load(tmp_path, document, binary)) == 3


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("bufferViews/0", "EXT_meshopt_compression"),
        ("accessors/0", "EXT_of_somebody"),
        ("meshes/0", "EXT_of_somebody"),
        (PRIMITIVE, "KHR_draco_mesh_compression"),
        ("nodes/0", "EXT_mesh_gpu_instancing"),
    ],
)
def test_required_extensions_on_the_way_to_the_splats_are(tmp_path, glb, place, name):
    document, binary = glb
    old = document
    for step in place.split("/"):
        old = old[int(step) if step.isdigit() else step]
    old["extensions"] = {**old.get("extensions", {}), name: {}}
    assert len(load(tmp_path, document, binary)) == 3  # one that may be passed over
    document["extensionsRequired"] = [name]
    with pytest.raises(ValueError, match=rf"its splats need the extensions \['{name}'\]"):
        load(tmp_path, document, binary)


def test_a_node_above_counts_too(tmp_path, glb):
    document, binary = glb
    above = {"children": [1], "extensions": {"EXT_of_somebody": {}}}
    document["nodes"] = [above, {"children": [2]}, {"mesh": 0}]
    document["extensionsRequired"] = ["EXT_of_somebody"]
    with pytest.raises(ValueError, match="EXT_of_somebody"):
        load(tmp_path, document, binary)


HIDDEN = {"KHR_node_visibility": {"visible": False}}


def test_hidden_nodes_are_left_out_with_all_below(tmp_path, glb, caplog):
    document, binary = glb
    document["extensionsRequired"] = ["KHR_node_visibility"]
    document["meshes"].append(copy.deepcopy(document["meshes"][0]))
    document["nodes"] = [
        {"mesh": 0, "extensions": {"KHR_node_visibility": {"visible": True}}},
        {"children": [2], "extensions": HIDDEN},
        {"mesh": 1},
    ]
    document["scenes"] = [{"nodes": [0, 1]}]
    with caplog.at_level(logging.WARNING):
        assert len(load(tmp_path, document, binary)) == 3
    assert "1 groups of splats are hidden or in other scenes, and not read" in caplog.text
    document["nodes"][0]["extensions"] = HIDDEN
    with pytest.raises(ValueError, match="its splats are hidden or in no scene"):
        load(tmp_path, document, binary)


def test_splats_of_another_scene_are_found(tmp_path, glb, caplog):
    document, binary = glb
    document["nodes"] = [{"mesh": 0}, {}]
    document["scenes"] = [{"nodes": [1]}, {}, {"nodes": [0]}]
    with caplog.at_level(logging.WARNING):
        assert len(load(tmp_path, document, binary)) == 3
    assert "scene 0, shown first, holds no splats: read from scene 2" in caplog.text
    document["scene"] = 1
    assert len(load(tmp_path, document, binary)) == 3


@pytest.mark.parametrize("code", ["i1", "u1", "<i2", "<u2"])
@pytest.mark.parametrize("normalized", [False, True])
def test_quantised_positions_are_made_large_by_their_node(tmp_path, glb, code, normalized):
    """KHR_mesh_quantization, as gltfpack writes it."""
    most = np.iinfo(code).max
    raw = np.array([[0, 1, 2], [most, most // 2, 7], [3, 2, 1]], code)
    document, binary = replaced(*glb, "POSITION", raw, normalized=normalized)
    document["extensionsRequired"] = ["KHR_mesh_quantization"]
    document["nodes"][0] |= {"scale": [3, 3, 3], "translation": [10, 20, 30]}
    found = load(tmp_path, document, binary).means
    expected = 3 * raw.astype(float) / (most if normalized else 1) + [10, 20, 30]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_nodes_far_away_do_not_round_what_is_moved_back(tmp_path, glb):
    document, binary = glb
    near = formats.read(tmp_path / "a.glb").means
    document["nodes"][0]["translation"] = [500_000, 4_000_000, 100]
    load(tmp_path, document, binary)
    found = formats.read(tmp_path / "b.glb").means - [500_000, 4_000_000, 100]
    np.testing.assert_allclose(found, near, atol=1e-9)


@given(seed=st.integers(0, 99), logs=st.booleans())
def test_scales_are_logs_for_a_whole_file_or_not_at_all(tmp_path_factory, seed, logs):
    """A group of large splats beside one of small ones: each alone would be read in another way."""
    folder = tmp_path_factory.mktemp("logs")
    small, large = cloud(30, seed=seed), cloud(4, seed=seed)
    small.scales[:], large.scales[:] = small.scales - 2, large.scales.abs() + 0.1
    formats.save(small, folder / "a.glb", clean=False)
    formats.save(large, folder / "b.glb", clean=False)
    (first, one), (second, two) = (taken_apart((folder / f"{n}.glb").read_bytes()) for n in "ab")
    if logs:
        first, one = replaced(first, one, f"{NAME}:SCALE", small.scales.numpy())
        second, two = replaced(second, two, f"{NAME}:SCALE", large.scales.numpy())
    both, count = copy.deepcopy(first), len(first["accessors"])
    for view in second["bufferViews"]:
        both["bufferViews"].append({**view, "byteOffset": view["byteOffset"] + len(one)})
    before = len(first["bufferViews"])
    for accessor in second["accessors"]:
        both["accessors"].append({**accessor, "bufferView": accessor["bufferView"] + before})
    other = copy.deepcopy(primitive(second))
    other["attributes"] = {name: index + count for name, index in other["attributes"].items()}
    both["meshes"][0]["primitives"].append(other)
    both["buffers"][0]["byteLength"] = len(one) + len(two)
    (folder / "c.glb").write_bytes(put_together(both, one + two))
    found = formats.load(folder / "c.glb").scales
    expected = torch.cat([small.scales, large.scales])
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
