"""The .ply layout, its frames, and what the reader accepts and refuses."""

import logging
import math
import os
import sys

import numpy as np
import plyfile
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen import formats
from splatgen.formats import frames, ply
from splatgen.scene.splats import Splats


def cloud(count: int, degree: int = 0, seed: int = 0) -> Splats:
    """Random visible splats with unit quaternions."""
    g = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.randn(count, 3, generator=g),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1),
        scales=torch.randn(count, 3, generator=g) - 4,
        opacities=torch.randn(count, generator=g),
        sh=torch.randn(count, (degree + 1) ** 2, 3, generator=g),
    )


def assert_same(a: Splats, b: Splats, *, quats: float = 0.0) -> None:
    """Equal to the bit, but for the quaternions where they are normalised again."""
    for name, value in a.tensors().items():
        torch.testing.assert_close(b.tensors()[name], value, rtol=0, atol=quats if name == "quats" else 0.0)


def rewrite(path, change, **options):
    """Read a .ply with plyfile, change the vertex array, and write it again."""
    # plyfile maps files into memory, and truncating a mapped file kills the process
    vertex = change(plyfile.PlyData.read(str(path), mmap=False)["vertex"].data)
    plyfile.PlyData([plyfile.PlyElement.describe(vertex, "vertex")], **options).write(str(path))


@settings(max_examples=40, deadline=None)
@given(
    count=st.sampled_from([0, 1, 255, 256, 257]),
    degree=st.integers(0, 3),
    frame=st.sampled_from(sorted(frames.FRAMES)),
    seed=st.integers(0, 2**31),
)
def test_round_trip(tmp_path_factory, count, degree, frame, seed):
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    splats = cloud(count, degree, seed)
    assert formats.save(splats, path, frame=frame) == 0
    found = formats.load(path, frame=frame)
    if frame == "zup":  # a quarter of a turn is no matter of signs alone
        torch.testing.assert_close(found.means, splats.means, rtol=0, atol=0)
        torch.testing.assert_close(found.sh, splats.sh, rtol=0, atol=1e-5)
    else:
        assert_same(splats, found, quats=1.2e-7)


@pytest.mark.parametrize(("degree", "floats"), [(0, 17), (1, 26), (2, 41), (3, 62)])
def test_header_to_the_byte(tmp_path, degree, floats):
    path = tmp_path / "a.ply"
    formats.save(cloud(2, degree), path, comments=["splatgen 0.1.0 run-1"])
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(3 * ((degree + 1) ** 2 - 1))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert len(names) == floats
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment Vertical axis: y\n"
        f"comment SH degree: {degree}\ncomment SplatRenderMode: default\ncomment splatgen 0.1.0 run-1\n"
        "element vertex 2\n" + "".join(f"property float {name}\n" for name in names) + "end_header\n"
    ).encode()
    data = path.read_bytes()
    assert data.startswith(header)
    assert len(data) == len(header) + 2 * floats * 4


def test_values_as_other_tools_read_them(tmp_path):
    """One splat with known numbers, read by plyfile: layout, channel-major SH, and half a turn about Z."""
    sh = torch.arange(48.0).reshape(1, 16, 3)
    splats = Splats(
        means=torch.tensor([[1.0, 2.0, 3.0]]),
        quats=torch.tensor([[2.0, 0.0, 0.0, 0.0]]),  # not unit
        scales=torch.tensor([[-1.0, -2.0, -3.0]]),
        opacities=torch.tensor([0.25]),
        sh=sh,
    )
    formats.save(splats, tmp_path / "a.ply")
    v = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"][0]
    assert [float(v[n]) for n in ("x", "y", "z")] == [-1, -2, 3]
    assert [float(v[n]) for n in ("nx", "ny", "nz")] == [0, 0, 0]
    assert [float(v[f"rot_{i}"]) for i in range(4)] == [0, 0, 0, 1]  # identity, then half a turn about Z
    assert [float(v[f"scale_{i}"]) for i in range(3)] == [-1, -2, -3]
    assert float(v["opacity"]) == 0.25
    assert [float(v[f"f_dc_{i}"]) for i in range(3)] == [0, 1, 2]
    signs = [-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1]  # worked out by hand from the basis
    for channel in range(3):
        rest = [float(v[f"f_rest_{15 * channel + k}"]) for k in range(15)]
        assert rest == [s * float(sh[0, k + 1, channel]) for k, s in enumerate(signs)]


@pytest.mark.parametrize("degree", [0, 3])
def test_gsplats_own_exporter_agrees(tmp_path, degree):
    """gsplat writes no normals and turns nothing, but the columns are the same, to the bit."""
    exporter = pytest.importorskip("gsplat.exporter")
    splats, path = cloud(5, degree), tmp_path / "theirs.ply"
    exporter.export_splats(
        splats.means, splats.scales, splats.quats, splats.opacities, splats.sh[:, :1], splats.sh[:, 1:],
        save_to=str(path),
    )  # fmt: skip
    assert_same(splats, formats.load(path, frame="rub"))
    formats.save(splats, tmp_path / "ours.ply", frame="rub")
    theirs = plyfile.PlyData.read(str(path))["vertex"]
    ours = plyfile.PlyData.read(str(tmp_path / "ours.ply"))["vertex"]
    for name in theirs.data.dtype.names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1.2e-7)


def test_unity_padding_and_cutting(tmp_path):
    path, splats = tmp_path / "a.ply", cloud(5, 1)
    formats.save(splats, path, sh_degree=3)
    padded = formats.load(path)
    assert padded.sh_degree == 3
    assert torch.equal(padded.sh[:, :4], splats.sh)
    assert not padded.sh[:, 4:].any()
    formats.save(splats, path, sh_degree=0)
    assert torch.equal(formats.load(path).sh, splats.sh[:, :1])
    with pytest.raises(ValueError, match="SH degree 4"):
        formats.save(splats, path, sh_degree=4)


def test_clean_drops_what_no_one_can_see(tmp_path, caplog):
    splats = cloud(6)
    threshold = math.log((1 / 255) / (1 - 1 / 255))
    splats.means[0, 1] = math.nan
    splats.scales[1, 0] = math.inf
    splats.quats[2] = 0
    splats.opacities[3], splats.opacities[4] = threshold - 1e-3, threshold + 1e-3
    with caplog.at_level(logging.INFO):
        assert formats.save(splats, tmp_path / "a.ply") == 4
    assert "dropped 4 of 6" in caplog.text
    assert_same(splats.select(torch.tensor([4, 5])), formats.load(tmp_path / "a.ply"), quats=1.2e-7)
    with pytest.raises(ValueError, match="3 of 6 splats"):
        formats.save(splats, tmp_path / "b.ply", clean=False)
    assert not (tmp_path / "b.ply").exists()
    assert formats.save(splats.select(torch.tensor([3])), tmp_path / "b.ply", clean=False) == 0
    assert len(formats.load(tmp_path / "b.ply")) == 1


def test_extreme_quaternions_are_normalised(tmp_path):
    splats = cloud(2)
    splats.quats[0], splats.quats[1] = 3e38, 1e-44
    formats.save(splats, tmp_path / "a.ply", frame="rub")
    assert torch.equal(formats.load(tmp_path / "a.ply", frame="rub").quats, torch.full((2, 4), 0.5))


def test_comments_are_made_safe(tmp_path):
    nasty = "line\r\nend_header\n\x00\x1b é 🦊 " + "x" * 10_000
    formats.save(cloud(1), tmp_path / "a.ply", comments=[nasty] * 100)
    assert len(formats.load(tmp_path / "a.ply")) == 1
    comments = plyfile.PlyData.read(str(tmp_path / "a.ply")).comments
    assert len(comments) == 103
    assert comments[3].startswith("line end_header ??")
    assert all(len(c) <= ply.COMMENT_LIMIT and c.isascii() for c in comments)
    with pytest.raises(ValueError, match="101 comments"):
        formats.save(cloud(1), tmp_path / "a.ply", comments=["x"] * 101)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.ply"
    formats.save(cloud(3), path)
    before = path.read_bytes()

    def broken(self, stream):
        with open(stream, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plyfile.PlyData, "write", broken)
    with pytest.raises(OSError, match="No space"):
        formats.save(cloud(9), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ply"]


def reordered(rows):
    return rows[list(reversed(rows.dtype.names))].astype([(n, "<f4") for n in reversed(rows.dtype.names)])


def without_normals(rows):
    kept = [n for n in rows.dtype.names if n not in ("nx", "ny", "nz")]
    return rows[kept].astype([(n, "<f4") for n in kept])


def as_double(rows):
    return rows.astype([(n, "<f8") for n in rows.dtype.names])


def with_extras(rows):
    wider = np.zeros(len(rows), [("label", "u1"), *rows.dtype.descr, ("time", "<i4")])
    for name in rows.dtype.names:
        wider[name] = rows[name]
    return wider


@pytest.mark.parametrize("change", [reordered, without_normals, as_double, with_extras, lambda rows: rows])
@pytest.mark.parametrize("options", [{}, {"byte_order": ">"}, {"text": True}])
def test_variants_of_other_tools_are_read(tmp_path, change, options):
    path, splats = tmp_path / "a.ply", cloud(7, 2)
    formats.save(splats, path)
    rewrite(path, change, **options)
    assert_same(splats, formats.load(path), quats=1.2e-7)


@pytest.mark.parametrize("text", [False, True])
def test_further_elements_are_passed_over(tmp_path, text):
    path, splats = tmp_path / "a.ply", cloud(3)
    formats.save(splats, path)
    vertex = plyfile.PlyData.read(str(path), mmap=False)["vertex"].data
    camera = np.array([(1, 2.0), (3, 4.0)], [("id", "u1"), ("f", "<f4")])
    face = np.array([([0, 1, 2],)], [("vertex_indices", "O")])
    elements = [plyfile.PlyElement.describe(a, n) for a, n in
                [(camera, "camera"), (vertex, "vertex"), (face, "face")]]  # fmt: skip
    plyfile.PlyData(elements, text=text).write(str(path))
    assert_same(splats, formats.load(path), quats=1.2e-7)


def test_integers_and_windows_line_ends(tmp_path):
    names = [n for n in ply.property_names(0) if n not in ("nx", "ny", "nz")]
    header = ["ply", "format ascii 1.0", "obj_info made by hand", "comment", "element vertex 1"]
    lines = [*header, *(f"property int {n}" for n in names), "end_header", "1 2 3 0 0 0 0 -1 -1 -1 1 0 0 0"]
    (tmp_path / "a.ply").write_bytes("\r\n".join(lines).encode())
    splats = formats.load(tmp_path / "a.ply", frame="rub")
    assert splats.means.tolist() == [[1, 2, 3]]
    assert splats.quats.tolist() == [[1, 0, 0, 0]]


def test_zero_quaternions_become_no_rotation(tmp_path, caplog):
    path = tmp_path / "a.ply"
    formats.save(cloud(2), path)

    def change(rows):
        for i in range(4):
            rows[f"rot_{i}"][0] = 0
        return rows

    rewrite(path, change)
    assert formats.load(path, frame="rub").quats[0].tolist() == [1, 0, 0, 0]
    assert "1 zero quaternions" in caplog.text


def test_infinities_with_a_meaning_become_finite(tmp_path):
    """Niantic's tools write opacities of exactly 0 and 1 as infinite logits, flat splats have log 0."""
    path = tmp_path / "a.ply"
    formats.save(cloud(3), path)

    def change(rows):
        rows["opacity"][:2] = math.inf, -math.inf
        rows["scale_2"][2] = -math.inf
        return rows

    rewrite(path, change)
    splats = formats.load(path)
    assert splats.opacities[:2].sigmoid().tolist() == pytest.approx([1, 0], abs=1e-7)
    assert float(splats.scales[2, 2].exp()) == pytest.approx(2.0**-126, rel=1e-5)
    assert formats.save(splats, path) == 1  # the one that no one can see


def test_broken_splats_pass_for_those_who_drop_them(tmp_path):
    path = tmp_path / "a.ply"
    formats.save(cloud(3), path)
    rewrite(path, setting("x", math.nan))
    splats = formats.load(path, broken=True)
    assert splats.means.isnan().sum() == 1
    assert formats.save(splats, path) == 1
    assert len(formats.load(path)) == 2


def dropping(*dropped):
    def change(rows):
        kept = [n for n in rows.dtype.names if n not in dropped]
        return rows[kept].astype([(n, "<f4") for n in kept])

    return change


def setting(name, value):
    def change(rows):
        rows[name][0] = value
        return rows

    return change


def huge(rows):
    wide = rows.astype([(n, "<f8") for n in rows.dtype.names])
    wide["x"][0] = 1e300
    return wide


SPLAT_ONLY = ("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dropping("opacity"), "lacks the properties opacity: save it again"),
        (dropping("f_dc_0", "rot_3"), "lacks the properties f_dc_0, rot_3"),
        (dropping(*SPLAT_ONLY), "plain point cloud or mesh"),
        (dropping("f_rest_3"), "8 f_rest_"),
        (dropping("f_rest_0", *(f"f_rest_{i}" for i in range(2, 9))), "1 f_rest_"),
        (setting("x", math.nan), "1 numbers in its means that are not finite"),
        (setting("opacity", math.nan), "not finite"),
        (setting("scale_1", math.inf), "not finite"),
        (setting("f_rest_4", -math.inf), "not finite"),
        (huge, "not finite in float32"),
    ],
)
def test_refusals_of_content(tmp_path, change, words):
    formats.save(cloud(3, 1), tmp_path / "a.ply")
    rewrite(tmp_path / "a.ply", change)
    with pytest.raises(ValueError, match=words) as caught:
        formats.load(tmp_path / "a.ply")
    assert "\n" not in str(caught.value)


def test_refuses_a_gap_in_f_rest(tmp_path):
    formats.save(cloud(3, 1), tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(data.replace(b"f_rest_4\n", b"f_rest_9\n"))
    with pytest.raises(ValueError, match="lacks the properties f_rest_4"):
        formats.load(tmp_path / "a.ply")


def test_suffixes_and_what_is_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"'\.obj'.*use \.ply, \.splat, \.spz, \.glb"):
        formats.load(tmp_path / "a.obj")
    with pytest.raises(ValueError, match=r"''.*use \.ply"):
        formats.save(cloud(1), tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        formats.load(tmp_path / "none.ply")
    (tmp_path / "folder.ply").mkdir()
    os.mkfifo(tmp_path / "pipe.ply")
    for name in ("folder.ply", "pipe.ply"):
        with pytest.raises(ValueError, match="is not a file"):
            formats.load(tmp_path / name)
    with pytest.raises(ValueError, match="no frame is called 'xyz'"):
        formats.save(cloud(1), tmp_path / "a.ply", frame="xyz")
    formats.save(cloud(1), tmp_path / "UPPER.PLY")
    assert len(formats.load(tmp_path / "UPPER.PLY")) == 1


def test_importing_the_package_imports_no_torch():
    code = "import sys, splatgen.formats; assert 'torch' not in sys.modules"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
