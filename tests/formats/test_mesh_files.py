"""Meshes as other programs read them: closed, in their places, with their colours."""

import json
import struct

import numpy as np
import pytest
import trimesh

from splatgen.formats import mesh_files
from splatgen.scene.surface_nets import Surface


def tetrahedron() -> Surface:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    colors = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5] * 3])
    return Surface(vertices=vertices, faces=faces, colors=colors)


@pytest.mark.parametrize("suffix", mesh_files.SUFFIXES)
def test_it_is_read_as_it_was_written(tmp_path, suffix):
    surface, path = tetrahedron(), tmp_path / f"a{suffix}"
    mesh_files.write_surface(surface, path, comments=["splatgen\nrun é"])
    found = trimesh.load(path, process=False, force="mesh")
    assert found.is_watertight
    assert found.volume == pytest.approx(1.0)  # positive: the triangles look outward
    assert np.array_equal(found.faces, surface.faces)
    np.testing.assert_allclose(found.vertices, surface.vertices)
    if suffix != ".glb":
        colors = found.visual.vertex_colors[:, :3]
        assert colors.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [128] * 3]


def test_a_glb_has_light_and_is_not_lit_again(tmp_path):
    mesh_files.write_surface(tetrahedron(), tmp_path / "a.glb")
    data = (tmp_path / "a.glb").read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + size])
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    view = document["bufferViews"][accessor["bufferView"]]
    colors = np.frombuffer(data, "<u2", 16, 28 + size + view["byteOffset"]).reshape(4, 4)
    grey = round(65535 * ((0.5 + 0.055) / 1.055) ** 2.4)
    assert colors.tolist()[0] == [65535, 0, 0, 65535]
    assert colors.tolist()[3] == [grey] * 3 + [65535]
    assert document["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}
    assert all(view["byteOffset"] % 4 == 0 for view in document["bufferViews"])


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
def test_axes_can_be_others(tmp_path, suffix):
    mesh_files.write_surface(tetrahedron(), tmp_path / f"a{suffix}", frame="zup")
    found = trimesh.load(tmp_path / f"a{suffix}", process=False)
    np.testing.assert_allclose(found.vertices[2], [0, 0, 2])
    np.testing.assert_allclose(found.vertices[3], [0, -3, 0])
    assert found.volume == pytest.approx(1.0)


def test_what_there_is_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no mesh format has the suffix '\.stl': use \.glb, \.obj, \.ply"):
        mesh_files.write_surface(tetrahedron(), tmp_path / "a.stl")
    with pytest.raises(ValueError, match="not the axes 'zup'"):
        mesh_files.write_surface(tetrahedron(), tmp_path / "a.glb", frame="zup")
