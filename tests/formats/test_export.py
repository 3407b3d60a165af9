"""`splatgen export` between all formats: what it writes, what it says, and what it leaves alone."""

import math
import os
from pathlib import Path

import pytest
import torch
from clouds import cloud

from splatgen import formats
from splatgen.rasterizer import fusion
from splatgen.scene.splats import Splats

SUFFIXES = [".ply", ".splat", ".spz", ".glb"]


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    formats.save(some(), tmp_path / "a.ply", sh_degree=2)
    return tmp_path / "a.ply"


def some() -> Splats:
    splats = cloud(20, 2, seed=5)
    return Splats(**{**splats.tensors(), "opacities": splats.opacities.abs()})


def sorted_means(splats: Splats) -> torch.Tensor:
    return splats.means[splats.means[:, 0].argsort()]


@pytest.mark.parametrize("first", SUFFIXES)
@pytest.mark.parametrize("second", SUFFIXES)
def test_every_way(cli, tmp_path, ply, first, second):
    assert cli("export", ply, tmp_path / f"b{first}").code == 0
    done = cli("export", tmp_path / f"b{first}", tmp_path / f"c{second}")
    assert (done.code, done.out) == (0, f"{tmp_path / f'c{second}'}\n")
    found = formats.load(tmp_path / f"c{second}")
    torch.testing.assert_close(sorted_means(found), sorted_means(some()), rtol=0, atol=0.5 / 4096 + 1e-6)
    assert found.sh_degree == (0 if ".splat" in (first, second) else 2)


def test_what_is_lost_is_one_line(cli, tmp_path, ply):
    lossless = cli("export", ply, tmp_path / "b.glb")
    assert lossless.err == "splatgen: 20 splats\n"
    lossy = cli("export", ply, tmp_path / "b.splat").err.splitlines()
    assert lossy[0] == "splatgen: 20 splats"
    assert lossy[1].startswith("splatgen: lost in .splat: spherical harmonics beyond degree 0, colours")
    assert len(lossy) == 2
    assert "lost in .spz: positions beyond 1/4096" in cli("export", ply, tmp_path / "b.spz").err
    cut = cli("export", ply, tmp_path / "c.ply", "--sh", "1").err
    assert cut == "splatgen: 20 splats\nsplatgen: lost in .ply: spherical harmonics beyond degree 1\n"
    assert cli("export", ply, tmp_path / "d.ply", "--sh", "3").err == "splatgen: 20 splats\n"


@pytest.mark.parametrize("suffix", [".ply", ".spz", ".glb"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_are_cut_or_padded(cli, tmp_path, ply, suffix, degree):
    assert cli("export", ply, tmp_path / f"b{suffix}", "--sh", degree).code == 0
    found = formats.load(tmp_path / f"b{suffix}").sh
    assert found.shape[1] == (degree + 1) ** 2
    assert not found[:, 9:].any()
    both = min(found.shape[1], 9)
    torch.testing.assert_close(found[:, :both], some().sh[:, :both], rtol=0, atol=8 / 128 + 1e-6)


def test_frames_out_and_in(cli, tmp_path, ply):
    for frame, signs in (("ply", (-1, -1, 1)), ("rub", (1, 1, 1)), ("rdf", (1, -1, -1))):
        out = tmp_path / f"{frame}.spz"
        assert cli("export", ply, out, "--frame", frame).code == 0
        turned = formats.load(out, frame="rub")
        expected = some().means * torch.tensor(signs)
        torch.testing.assert_close(turned.means, expected, rtol=0, atol=0.5 / 4096 + 1e-6)
        back = tmp_path / f"{frame}.ply"
        assert cli("export", out, back, "--input-frame", frame).code == 0
        torch.testing.assert_close(formats.load(back).means, some().means, rtol=0, atol=0.5 / 4096 + 1e-6)


def test_what_a_format_does_not_have_is_two(cli, tmp_path, ply):
    for words, message in (
        (["b.glb", "--frame", "rdf"], "not the axes 'rdf'"),
        (["b.splat", "--sh", "1"], "this format has 0"),
        (["b.splat", "--sh", "4"], "--sh"),
        (["b.sog"], "no suffix of a splat format"),
    ):
        done = cli("export", ply, tmp_path / words[0], *words[1:])
        assert (done.code, done.out) == (2, "")
        assert message in done.err
    assert os.listdir(tmp_path) == ["a.ply"]


def with_bad_ones(path: Path) -> None:
    """20 splats: two without a number, one invisible."""
    import plyfile

    splats = some()
    splats.opacities[7] = -8.0
    formats.save(splats, path, clean=False)
    rows = plyfile.PlyData.read(str(path), mmap=False)["vertex"].data
    rows["x"][3], rows["scale_1"][5] = math.nan, math.inf
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")]).write(str(path))


def test_broken_and_invisible_splats_are_left_out_and_counted(cli, tmp_path):
    with_bad_ones(tmp_path / "bad.ply")
    done = cli("export", tmp_path / "bad.ply", tmp_path / "b.ply")
    assert done.err == "splatgen: 17 splats, 1 invisible and 2 broken ones left out\n"
    assert len(formats.load(tmp_path / "b.ply")) == 17
    done = cli("export", tmp_path / "bad.ply", tmp_path / "c.ply", "--keep-invisible")
    assert done.err == "splatgen: 18 splats, 2 broken ones left out\n"
    assert len(formats.load(tmp_path / "c.ply")) == 18


def test_nothing_worth_writing_is_two(cli, tmp_path):
    splats = some()
    formats.save(
        Splats(**{**splats.tensors(), "opacities": torch.full((20,), -9.0)}), tmp_path / "a.ply", clean=False
    )
    done = cli("export", tmp_path / "a.ply", tmp_path / "b.ply")
    assert (done.code, done.out) == (2, "")
    assert "holds nothing to write, 20 invisible ones left out" in done.err
    assert os.listdir(tmp_path) == ["a.ply"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_splats_stay_none(cli, tmp_path, suffix):
    formats.save(cloud(0), tmp_path / "a.ply")
    assert cli("export", tmp_path / "a.ply", tmp_path / f"b{suffix}", "--recentre").code == 0
    assert len(formats.load(tmp_path / f"b{suffix}")) == 0


def test_recentred_on_what_is_seen(cli, tmp_path):
    """A box of 5 x 3 x 1 around (10, 20, -30), and a few faint floaters far away that count for nothing."""
    splats = cloud(1000)
    splats.means[:] = torch.rand(1000, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    splats.means[:] = splats.means * torch.tensor([5.0, 3, 1]) + torch.tensor([10.0, 20, -30])
    splats.opacities[:] = 3.0
    splats.means[:20], splats.opacities[:20] = torch.tensor([900.0, -900, 900]), -4.0
    formats.save(splats, tmp_path / "a.ply")
    assert cli("export", tmp_path / "a.ply", tmp_path / "b.ply", "--recentre").code == 0
    found = formats.load(tmp_path / "b.ply").means
    shift = splats.means - found
    torch.testing.assert_close(shift.mean(0), torch.tensor([10.0, 20, -30]), rtol=0, atol=0.2)
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_onto_itself_needs_overwrite_and_then_is_whole(cli, tmp_path, ply, suffix):
    path = tmp_path / f"b{suffix}"
    cli("export", ply, path)
    before = path.read_bytes()
    assert cli("export", path, path).code == 2
    assert path.read_bytes() == before
    assert cli("export", path, path, "--overwrite").code == 0
    assert len(formats.load(path)) == 20
    assert sorted(os.listdir(tmp_path)) == sorted({"a.ply", path.name})


def test_a_failed_export_leaves_the_old_file(cli, tmp_path, ply):
    (tmp_path / "b.spz").write_bytes(b"old")
    far = Splats(**{**some().tensors(), "means": some().means + 1e8})
    formats.save(far, tmp_path / "far.ply")
    done = cli("export", tmp_path / "far.ply", tmp_path / "b.spz", "--overwrite")
    assert (done.code, done.out) == (2, "")
    assert "scale the cloud down" in done.err
    assert (tmp_path / "b.spz").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["a.ply", "b.spz", "far.ply"]


def test_suffixes_in_capitals(cli, tmp_path, ply):
    assert cli("export", ply, tmp_path / "B.GLB").code == 0
    assert (tmp_path / "B.GLB").read_bytes().startswith(b"glTF")


def test_comments_reach_formats_that_have_room(cli, tmp_path, ply):
    cli("export", ply, tmp_path / "b.glb")
    assert b'"comments":["splatgen ' in (tmp_path / "b.glb").read_bytes()


# Meshes


@pytest.fixture
def solid(tmp_path: Path) -> Path:
    """A ball of opaque splats."""
    splats = cloud(1500)
    splats.means[:] = 0.5 * torch.nn.functional.normalize(splats.means, dim=-1)
    splats.scales[:], splats.opacities[:] = -2.7, 4.0
    formats.save(splats, tmp_path / "ball.ply")
    return tmp_path / "ball.ply"


@pytest.fixture(scope="module")
def _one_surface():
    """Of the ball, for all formats: to fuse it takes seconds."""
    made = []

    def surface_of(splats, **options):
        made[:] = made or [inside(splats, **options)]
        return made[0]

    inside = fusion.surface_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "surface_of", surface_of)
        yield


@pytest.mark.usefixtures("_one_surface")
@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_a_mesh_is_closed_and_as_small_as_asked_for(cli, tmp_path, solid, suffix):
    import trimesh

    out = tmp_path / f"b{suffix}"
    done = cli("export", solid, out, "--mesh", "--faces", 2000)
    assert (done.code, done.out) == (0, f"{out}\n")
    mesh = trimesh.load(out, process=False, force="mesh")
    assert f"{len(mesh.faces):,} triangles of 1,500 splats" in done.err
    assert mesh.is_watertight
    assert 500 < len(mesh.faces) <= 2000
    assert 0.4 < mesh.volume < 1.0


def test_what_does_not_go_together_is_two(cli, tmp_path, ply):
    for words, message in (
        (["b.obj"], "is a mesh: add --mesh"),
        (["b.glb", "--faces", 900], "--faces is of a mesh: add --mesh"),
        (["b.spz", "--mesh"], "no suffix of a mesh: give .glb, .obj, .ply"),
        (["b.glb", "--mesh", "--faces", 10], "--faces 10: give 500 or more"),
        (["b.glb", "--mesh", "--sh", 0], "--sh is of splats"),
    ):
        done = cli("export", ply, tmp_path / words[0], *words[1:])
        assert (done.code, done.out) == (2, "")
        assert message in done.err
    assert os.listdir(tmp_path) == ["a.ply"]
