"""What other programs write into a .ply: it comes out whole, or a line says what does not."""

import logging
import math

import numpy as np
import plyfile
import pytest
import torch
from foreign import NAMES, columns, write
from hypothesis import given
from hypothesis import strategies as st

from splatgen import formats
from splatgen.scene.splats import SH_C0


def comments_of(path) -> list[str]:
    return plyfile.PlyData.read(str(path), mmap=False).comments


def vertices_of(path) -> np.ndarray:
    return plyfile.PlyData.read(str(path), mmap=False)["vertex"].data


# Two scales


def test_discs_are_read_as_flat_splats(tmp_path, caplog):
    rows = columns()
    del rows["scale_2"]
    with caplog.at_level(logging.WARNING):
        splats = formats.load(write(tmp_path / "a.ply", rows))
    assert caplog.text.count("2D Gaussian splatting") == 1
    np.testing.assert_allclose(splats.scales[:, 0], rows["scale_0"], rtol=1e-6)
    assert (splats.scales[:, 2].exp() < 1e-30).all()


@pytest.mark.parametrize("missing", ["scale_1", "opacity", "rot_2"])
def test_what_is_no_disc_is_refused(tmp_path, missing):
    rows = columns()
    del rows["scale_2"], rows[missing]
    with pytest.raises(ValueError, match=f"lacks the properties .*{missing}"):
        formats.load(write(tmp_path / "a.ply", rows))


# Colours


@pytest.mark.parametrize(
    ("kind", "most"), [("uchar", 255), ("ushort", 65535), ("float", 1), ("double", 1), ("float", 255)]
)
@pytest.mark.parametrize("start", ["", "diffuse_"])
def test_colours_as_red_green_blue(tmp_path, kind, most, start):
    rows = columns()
    rgb = np.stack([0.5 + SH_C0 * rows.pop(f"f_dc_{i}") for i in range(3)], -1) * most
    if kind.startswith("u"):
        rgb = np.rint(rgb).astype(int)
    names = [f"{start}{name}" for name in ("red", "green", "blue")]
    path = write(
        tmp_path / "a.ply",
        {**rows, **dict(zip(names, rgb.T, strict=True))},
        types=dict.fromkeys(names, kind),
    )
    file = formats.read(path)
    np.testing.assert_allclose(0.5 + SH_C0 * file.sh[:, 0], rgb / most, atol=1e-6)
    assert not file.extras


def test_colours_beside_coefficients_are_only_kept(tmp_path):
    rows = {**columns(), **{name: np.full(40, 7) for name in ("red", "green", "blue")}}
    path = write(tmp_path / "a.ply", rows, types=dict.fromkeys(("red", "green", "blue"), "uchar"))
    file = formats.read(path)
    np.testing.assert_allclose(file.sh[:, 0, 0], rows["f_dc_0"], rtol=1e-6)
    assert list(file.extras) == ["red", "green", "blue"]


# Far away

FAR = {"x": 500_000.0, "y": 4_000_000.0, "z": 100.0}


def far(tmp_path, kind="double"):
    rows = columns()
    moved = {**rows, **{axis: rows[axis] + shift for axis, shift in FAR.items()}}
    return rows, write(tmp_path / "far.ply", moved, types=dict.fromkeys(FAR, kind))


@pytest.mark.parametrize("suffix", [".ply", ".splat", ".glb", ".spz"])
def test_positions_are_moved_before_they_are_rounded(cli, tmp_path, suffix):
    rows, path = far(tmp_path)
    out = tmp_path / f"b{suffix}"
    done = cli("export", path, out, "--recentre")
    assert done.code == 0
    assert "of the object's width" not in done.err
    x = np.sort(formats.load(out).means[:, 0].numpy() * -1)  # in the axes of a .ply
    expected = np.sort(rows["x"])
    atol = 2e-4 if suffix == ".spz" else 1e-6
    np.testing.assert_allclose(x - x.mean(), expected - expected.mean(), atol=atol)


@pytest.mark.parametrize("suffix", [".ply", ".splat", ".glb", ".spz"])
def test_positions_that_stay_far_away_are_told(cli, tmp_path, suffix):
    _, path = far(tmp_path)
    done = cli("export", path, tmp_path / f"b{suffix}")
    assert done.code == 0
    assert "positions" in done.err
    assert "% of the object's width: --recentre" in done.err


def test_the_python_reader_warns_and_the_exact_one_does_not_round(tmp_path, caplog):
    rows, path = far(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert formats.load(path).means.dtype == torch.float32
    assert "rounded to steps of" in caplog.text
    file = formats.read(path)
    np.testing.assert_allclose(file.means[:, 1], -(rows["y"] + FAR["y"]), atol=1e-9)
    assert file.splats(exact=True).means.dtype == torch.float64


def test_what_float32_had_already_lost_is_not_lost_again(cli, tmp_path):
    _, path = far(tmp_path)
    cli("export", path, tmp_path / "b.ply")
    assert "lost" not in cli("export", tmp_path / "b.ply", tmp_path / "c.ply").err


# Axes


def test_z_up_is_read_from_the_comment(cli, tmp_path):
    """Blender's and nerfstudio's axes: x right, y away from the front, z up."""
    rows = columns()
    path = write(tmp_path / "a.ply", rows, comments=["Vertical Axis: z"])
    file = formats.read(path)
    expected = np.stack([rows["x"], rows["z"], -rows["y"]], -1)
    np.testing.assert_allclose(file.means, expected, atol=1e-12)
    cli("export", path, tmp_path / "b.ply")
    assert "Vertical axis: y" in comments_of(tmp_path / "b.ply")
    np.testing.assert_allclose(formats.read(tmp_path / "b.ply").means, expected, atol=1e-6)
    cli("export", path, tmp_path / "c.ply", "--frame", "zup")
    assert "Vertical axis: z" in comments_of(tmp_path / "c.ply")
    np.testing.assert_allclose(formats.read(tmp_path / "c.ply").means, expected, atol=1e-6)


def test_the_option_overrides_the_comment(cli, tmp_path):
    rows = columns()
    path = write(tmp_path / "a.ply", rows, comments=["Vertical axis: z"])
    np.testing.assert_allclose(formats.read(path, frame="rub").means[:, 1], rows["y"], atol=1e-12)
    plain = write(tmp_path / "b.ply", rows)
    assert cli("export", plain, tmp_path / "c.ply", "--input-frame", "zup").code == 0
    np.testing.assert_allclose(formats.load(tmp_path / "c.ply").means[:, 1], rows["z"], atol=1e-6)


def test_no_axis_is_stated_that_nobody_said(cli, tmp_path):
    path = write(tmp_path / "a.ply", columns())
    cli("export", path, tmp_path / "b.ply")
    assert not any(text.startswith("Vertical") for text in comments_of(tmp_path / "b.ply"))
    cli("export", path, tmp_path / "c.ply", "--input-frame", "rub")
    assert "Vertical axis: y" in comments_of(tmp_path / "c.ply")


def test_an_axis_that_is_not_known_is_told(tmp_path, caplog):
    write(tmp_path / "a.ply", columns(), comments=["vertical axis: X"])
    with caplog.at_level(logging.WARNING):
        assert not formats.read(tmp_path / "a.ply").upright
    assert "Vertical axis: X is not read" in caplog.text


# Antialiasing


@pytest.mark.parametrize(("first", "second"), [(".ply", ".ply"), (".ply", ".spz"), (".spz", ".ply")])
def test_the_tag_of_antialiased_splats_is_carried(cli, tmp_path, first, second):
    path = write(tmp_path / "a.ply", columns(), comments=["SplatRenderMode: mip"])
    cli("export", path, tmp_path / f"b{first}")
    done = cli("export", tmp_path / f"b{first}", tmp_path / f"c{second}")
    assert formats.read(tmp_path / f"c{second}").antialiased
    assert "antialiased" not in done.err
    plain = write(tmp_path / "d.ply", columns(), comments=["SplatRenderMode: default"])
    cli("export", plain, tmp_path / f"e{second}")
    assert not formats.read(tmp_path / f"e{second}").antialiased


@pytest.mark.parametrize("suffix", [".splat", ".glb"])
def test_a_format_without_the_tag_says_so(cli, tmp_path, suffix):
    path = write(tmp_path / "a.ply", columns(), comments=["SplatRenderMode: mip"])
    assert "antialiased (mip)" in cli("export", path, tmp_path / f"b{suffix}").err


# Further properties and comments

KINDS = ("uchar", "char", "ushort", "short", "int", "uint", "float", "double")
CODES = dict(zip(KINDS, ("u1", "i1", "u2", "i2", "i4", "u4", "f4", "f8"), strict=True))


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    binary=st.booleans(),
    order=st.sampled_from("<>"),
    seed=st.integers(0, 99),
)
def test_further_properties_go_with_their_splats(tmp_path_factory, kinds, binary, order, seed):
    """From .ply to .ply, in their own types, without the rows of splats that are left out."""
    folder = tmp_path_factory.mktemp("extras")
    rows, g = columns(20, seed), np.random.default_rng(seed)
    rows["opacity"][g.integers(0, 20, 5)] = -9.0
    codes = {f"own_{i}": CODES[kind] for i, kind in enumerate(kinds)}
    for name, code in codes.items():
        whole = np.iinfo(code) if code[0] != "f" else np.iinfo("i2")
        rows[name] = g.integers(whole.min, whole.max, 20, endpoint=True).astype(code)
    path = write(folder / "a.ply", rows, types={f"own_{i}": kind for i, kind in enumerate(kinds)})
    if binary:
        data = plyfile.PlyData.read(str(path), mmap=False)
        data.text, data.byte_order = False, order
        data.write(str(path))
    file = formats.read(path)
    kept = file.select(file.opacities > -5)
    formats.save(kept, folder / "b.ply", clean=False)
    found = vertices_of(folder / "b.ply")
    for name, code in codes.items():
        assert found[name].dtype == np.dtype(code)
        assert np.array_equal(found[name], rows[name][rows["opacity"] > -5])


def test_normals_are_kept_and_turned(cli, tmp_path):
    rows = {**columns(), "nx": np.zeros(40), "ny": np.full(40, 0.6), "nz": np.full(40, 0.8)}
    path = write(tmp_path / "a.ply", rows)
    cli("export", path, tmp_path / "b.ply")
    found = vertices_of(tmp_path / "b.ply")
    assert np.allclose(found["ny"], 0.6)
    assert np.allclose(found["nz"], 0.8)
    cli("export", path, tmp_path / "c.ply", "--frame", "rub")
    found = vertices_of(tmp_path / "c.ply")
    assert np.allclose(found["ny"], -0.6)
    assert np.allclose(found["nz"], 0.8)


def test_comments_are_kept_and_ours_are_not_doubled(cli, tmp_path):
    given = ["licence: CC-BY 4.0", "Exported from Brush", "SH degree: 3"]
    path = write(tmp_path / "a.ply", columns(), comments=given)
    for first, second in (("a", "b"), ("b", "c")):
        cli("export", tmp_path / f"{first}.ply", tmp_path / f"{second}.ply")
    found = comments_of(tmp_path / "c.ply")
    assert [text for text in found if "licence" in text or "Brush" in text] == given[:2]
    assert found.count("SH degree: 0") == 1
    assert sum(text.startswith("SH degree") for text in found) == 1
    assert sum(text.startswith("splatgen") for text in found) == 1
    cli("export", path, tmp_path / "d.glb")
    cli("export", tmp_path / "d.glb", tmp_path / "e.ply")
    assert given[0] in comments_of(tmp_path / "e.ply")


@pytest.mark.parametrize("suffix", [".splat", ".spz", ".glb"])
def test_what_has_no_room_is_named(cli, tmp_path, suffix):
    rows = {**columns(), "label": np.arange(40), "nz": np.ones(40), "nx": np.zeros(40), "ny": np.zeros(40)}
    path = write(tmp_path / "a.ply", rows, types={"label": "uchar"}, comments=["licence: CC-BY 4.0"])
    told = cli("export", path, tmp_path / f"b{suffix}").err
    assert "the properties label nz nx ny" in told
    assert ("1 comment ('licence: CC-BY 4.0')" in told) == (suffix != ".glb")


# Hints


def test_activated_values_get_a_hint(tmp_path, caplog):
    rows = columns()
    raw = write(tmp_path / "raw.ply", rows)
    rows["opacity"] = 1 / (1 + np.exp(-rows["opacity"]))
    for i in range(3):
        rows[f"scale_{i}"] = np.exp(rows[f"scale_{i}"])
    activated = write(tmp_path / "activated.ply", rows)
    with caplog.at_level(logging.WARNING):
        formats.read(raw)
        assert not caplog.text
        formats.read(activated)
    assert "as if they were activated" in caplog.text


@pytest.mark.parametrize("name", ["b.compressed.ply", "B.Compressed.PLY", "b.sog", "b.ksplat", "b.splatv"])
def test_names_of_packed_layouts_are_refused(cli, tmp_path, name):
    path = write(tmp_path / "a.ply", columns())
    done = cli("export", path, tmp_path / name)
    assert (done.code, done.out) == (2, "")
    assert "packed layout of others, which splat-transform turns" in done.err
    assert not (tmp_path / name).exists()
    with pytest.raises(ValueError, match="splat"):
        formats.save(formats.load(path), tmp_path / name)


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_faces_that_are_none_may_come_first(tmp_path, kind):
    path = write(tmp_path / "a.ply", columns())
    data = plyfile.PlyData.read(str(path), mmap=False)
    data.text, data.byte_order = kind == "ascii", ">" if "big" in kind else "<"
    data.write(str(path))
    start, rest = path.read_bytes().split(b"element vertex", 1)
    faces = b"element face 0\nproperty list uchar int vertex_indices\n"
    path.write_bytes(start + faces + b"element vertex" + rest)
    assert len(formats.load(path)) == 40
    path.write_bytes(start + faces.replace(b"face 0", b"face 1") + b"element vertex" + rest)
    if kind != "ascii":
        with pytest.raises(ValueError, match="lists come before"):
            formats.load(path)


def test_every_name_of_a_splat_is_known(tmp_path):
    """Guards the tests above: what they take away is all that there is."""
    for name in NAMES:
        rows = columns()
        del rows[name]
        if name == "scale_2":
            continue
        with pytest.raises(ValueError, match=f"lacks the properties {name}"):
            formats.load(write(tmp_path / "a.ply", rows))
    assert math.isclose(SH_C0, 0.5 / math.sqrt(math.pi))


def test_export_imports_no_torch(tmp_path):
    """Which alone takes longer than all the rest."""
    import subprocess
    import sys

    path = write(tmp_path / "a.ply", columns(), comments=["Vertical axis: z"])
    for suffix in formats.FORMATS:
        code = (
            "import sys; from splatgen.cli import main; code = main(sys.argv[1:])\n"
            "sys.exit(code or 'torch' in sys.modules)"
        )
        out = tmp_path / f"b{suffix}"
        words = [sys.executable, "-c", code, "export", str(path), str(out), "--recentre", "--sh", "0"]
        assert subprocess.run(words, check=False).returncode == 0
        assert out.is_file()
