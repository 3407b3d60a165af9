"""Files read and written by programs of others: Niantic's own .spz library, PlayCanvas' splat-transform and
Khronos' glTF validator.

They run under node. `make interop` installs them beside the tests; SPLATGEN_NODE_MODULES names another folder
of packages. Without them these tests are skipped.
"""

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
from clouds import cloud, covariances
from test_glb import numbers, primitive, put_together, taken_apart

from splatgen import formats
from splatgen.scene.splats import Splats

HERE = Path(__file__).resolve().parent
MODULES = Path(os.environ.get("SPLATGEN_NODE_MODULES", HERE.parent / ".node_modules" / "node_modules"))
TRANSFORM = MODULES / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
PACKAGES = [TRANSFORM, MODULES / "@adobe" / "spz", MODULES / "gltf-validator"]
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None or not all(path.exists() for path in PACKAGES),
    reason="needs node and its packages: make interop, or SPLATGEN_NODE_MODULES=FOLDER",
)
NAME = "KHR_gaussian_splatting"


def run(*words: object) -> str:
    done = subprocess.run(
        [str(NODE), *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def others(verb: str, *words: object) -> dict:
    return json.loads(run(HERE / "others.mjs", MODULES, verb, *words))


def transform(*words: object) -> None:
    run(TRANSFORM, "--quiet", "--overwrite", *words)


def some(degree: int = 3) -> Splats:
    splats = cloud(50, degree, seed=3)
    return splats.select(splats.opacities > -4.0)


def assert_near(found: Splats, expected: Splats, *, atol: float = 1e-6) -> None:
    """The same splats, whatever sign or axes their quaternions have."""
    for name in ("means", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=atol)
    theirs, ours = (covariances(s.quats, s.scales) for s in (found, expected))
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-7)


# splat-transform turns what it reads into PlayCanvas' axes, +Y up, when it writes a .glb: where splats stand
# there is where SuperSplat shows them.


def in_playcanvas(path: Path) -> Splats:
    """What splat-transform makes of a file, in PlayCanvas' axes, by the book of glTF."""
    out = path.with_name("theirs.glb")
    transform(path, out)
    document, binary = taken_apart(out.read_bytes())

    def own(name: str) -> torch.Tensor:
        return torch.from_numpy(numbers(document, binary, f"{NAME}:{name}").copy())

    names = sorted(n.split(":")[1] for n in primitive(document)["attributes"] if ":SH_DEGREE_" in n)
    return Splats(
        means=torch.from_numpy(numbers(document, binary, "POSITION").copy()),
        quats=own("ROTATION")[:, [3, 0, 1, 2]],
        scales=own("SCALE").log(),
        opacities=own("OPACITY")[:, 0].logit(),
        sh=torch.stack([own(name) for name in names], 1),
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_playcanvas_reads_our_ply_upright(tmp_path, degree):
    formats.save(some(degree), tmp_path / "a.ply")
    assert_near(in_playcanvas(tmp_path / "a.ply"), some(degree), atol=2e-6)


def test_playcanvas_reads_our_splat_upright(tmp_path):
    """It takes the bytes of a rotation to be rounded down, the original viewer to the nearest."""
    formats.save(some(0), tmp_path / "a.splat")
    found, ours = in_playcanvas(tmp_path / "a.splat"), formats.load(tmp_path / "a.splat")
    for name in ("means", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(found, name), getattr(ours, name), rtol=0, atol=1e-5)
    angle = 2 * (found.quats * ours.quats).sum(-1).abs().clamp(max=1).acos().rad2deg()
    assert angle.max() < 2 * np.degrees(2 * 0.5 / 128)


def test_playcanvas_reads_our_spz_upright_in_the_axes_of_a_ply(tmp_path):
    """It takes the numbers of a .spz as those of a .ply: in the standard's axes they would be upside down."""
    formats.save(some(), tmp_path / "a.spz", frame="ply")
    ours = formats.load(tmp_path / "a.spz", frame="ply")
    assert_near(in_playcanvas(tmp_path / "a.spz"), ours, atol=1e-5)
    formats.save(some(), tmp_path / "b.spz")
    turned = in_playcanvas(tmp_path / "b.spz").means
    torch.testing.assert_close(turned, ours.means * torch.tensor([-1.0, -1, 1]), rtol=0, atol=1 / 4096)


def test_playcanvas_keeps_every_number_of_our_ply(tmp_path):
    formats.save(some(), tmp_path / "a.ply")
    transform(tmp_path / "a.ply", tmp_path / "b.ply")
    ours, theirs = (plyfile.PlyData.read(str(tmp_path / f"{n}.ply"), mmap=False)["vertex"] for n in "ab")
    names = [n for n in ours.data.dtype.names if n not in ("nx", "ny", "nz")]
    assert set(names) <= set(theirs.data.dtype.names)
    for name in names:
        assert np.array_equal(ours[name], theirs[name])


def test_we_read_the_ply_and_the_glb_of_playcanvas(tmp_path):
    formats.save(some(), tmp_path / "a.ply")
    for suffix in (".ply", ".glb"):
        transform(tmp_path / "a.ply", tmp_path / f"b{suffix}")
        assert_near(formats.load(tmp_path / f"b{suffix}"), some(), atol=2e-6)


def test_we_read_the_spz_of_playcanvas(tmp_path):
    formats.save(some(), tmp_path / "a.ply")
    transform(tmp_path / "a.ply", "--spz-version", "3", tmp_path / "b.spz")
    found = formats.load(tmp_path / "b.spz", frame="ply")
    torch.testing.assert_close(found.means, some().means, rtol=0, atol=0.5 / 4096 + 1e-6)
    torch.testing.assert_close(found.scales, some().scales, rtol=0, atol=0.5 / 16 + 1e-6)


# Niantic's library


def as_cloud(splats: Splats) -> dict:
    """Splats in its words: quaternions xyzw, harmonics coefficient by coefficient."""
    flat = {
        "positions": splats.means,
        "scales": splats.scales,
        "rotations": splats.quats[:, [1, 2, 3, 0]],
        "alphas": splats.opacities,
        "colors": splats.sh[:, 0],
        "sh": splats.sh[:, 1:],
    }
    numbers = {name: value.flatten().tolist() for name, value in flat.items()}
    return {"numPoints": len(splats), "shDegree": splats.sh_degree, **numbers}


def from_cloud(cloud: dict) -> Splats:
    n, k = cloud["numPoints"], (cloud["shDegree"] + 1) ** 2

    def tensor(name: str, *shape: int) -> torch.Tensor:
        return torch.tensor(cloud[name], dtype=torch.float32).reshape(n, *shape)

    return Splats(
        means=tensor("positions", 3),
        quats=tensor("rotations", 4)[:, [3, 0, 1, 2]],
        scales=tensor("scales", 3),
        opacities=tensor("alphas"),
        sh=torch.cat([tensor("colors", 1, 3), tensor("sh", k - 1, 3)], 1),
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_niantic_reads_our_spz(tmp_path, degree):
    """Every number that it unpacks is the one that we unpack."""
    formats.save(some(degree), tmp_path / "a.spz")
    found = from_cloud(others("read-spz", tmp_path / "a.spz"))
    assert found.sh_degree == degree
    assert_near(found, formats.load(tmp_path / "a.spz"))
    torch.testing.assert_close(found.means, some(degree).means, rtol=0, atol=0.5 / 4096 + 1e-6)


def test_niantic_reads_what_is_far_away(tmp_path):
    splats = some(0)
    far = Splats(**{**splats.tensors(), "means": splats.means * 2000})
    formats.save(far, tmp_path / "a.spz")
    found = from_cloud(others("read-spz", tmp_path / "a.spz"))
    torch.testing.assert_close(found.means, far.means, rtol=0, atol=0.5 / 1024 + 1e-3)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("degree", [0, 3])
def test_we_read_the_spz_of_niantic(tmp_path, version, degree):
    (tmp_path / "a.json").write_text(json.dumps(as_cloud(some(degree))))
    others("write-spz", tmp_path / "a.json", tmp_path / "a.spz", version)
    ours = formats.load(tmp_path / "a.spz")
    assert_near(ours, from_cloud(others("read-spz", tmp_path / "a.spz")))
    torch.testing.assert_close(ours.means, some(degree).means, rtol=0, atol=0.5 / 4096 + 1e-6)
    exact, found = (covariances(s.quats, some(degree).scales) for s in (some(degree), ours))
    sizes = np.linalg.norm(exact, axis=(1, 2), keepdims=True)
    assert (np.abs(found - exact) / sizes).max() < (0.1 if version == 2 else 0.01)


@pytest.mark.parametrize("degree", [0, 3])
def test_our_spz_is_niantics_to_the_byte(tmp_path, degree):
    """But for harmonics, which it rounds twice, to a byte and then to the coarser step."""
    import gzip

    (tmp_path / "a.json").write_text(json.dumps(as_cloud(some(degree))))
    others("write-spz", tmp_path / "a.json", tmp_path / "a.spz", 3)
    formats.save(some(degree), tmp_path / "b.spz")
    theirs, ours = (gzip.decompress((tmp_path / f"{n}.spz").read_bytes()) for n in "ab")
    count = 16 + 20 * len(some(degree))
    assert ours[:count] == theirs[:count]
    rest = np.frombuffer(ours[count:], "u1").astype(int) - np.frombuffer(theirs[count:], "u1")
    assert len(ours) == len(theirs)
    assert np.abs(rest).max(initial=0) <= 16
    assert (rest != 0).mean() < 0.1 if degree else not len(rest)


@pytest.mark.parametrize("degree", [0, 3])
def test_we_read_version_4_of_niantic(tmp_path, degree):
    (tmp_path / "a.json").write_text(json.dumps(as_cloud(some(degree))))
    others("write-spz", tmp_path / "a.json", tmp_path / "a.spz", 4)
    assert (tmp_path / "a.spz").read_bytes()[:8] == b"NGSP" + bytes([4, 0, 0, 0])
    assert_near(formats.load(tmp_path / "a.spz"), from_cloud(others("read-spz", tmp_path / "a.spz")))


@pytest.mark.parametrize("degree", [0, 3])
def test_niantic_reads_our_version_4(tmp_path, degree):
    formats.save(some(degree), tmp_path / "a.spz", spz_version=4)
    formats.save(some(degree), tmp_path / "b.spz")
    four, three = (from_cloud(others("read-spz", tmp_path / f"{name}.spz")) for name in "ab")
    assert_near(four, three)


# Khronos' validator


def issues(path: Path) -> list[tuple[str, str]]:
    return [(issue["code"], issue["pointer"]) for issue in others("validate", path)["issues"]]


@pytest.mark.parametrize(("count", "degree"), [(0, 0), (1, 0), (257, 3)])
def test_the_validator_finds_nothing_but_what_it_does_not_know(tmp_path, count, degree):
    """It knows neither the extension nor names with a colon, which the extension's draft gives attributes."""
    formats.save(cloud(count, degree), tmp_path / "a.glb", clean=False)
    attributes = "/meshes/0/primitives/0/attributes/"
    for code, pointer in issues(tmp_path / "a.glb"):
        known = code == "MESH_PRIMITIVE_INVALID_ATTRIBUTE" and pointer.startswith(f"{attributes}{NAME}:")
        assert known or (code, pointer) == ("UNSUPPORTED_EXTENSION", "/extensionsUsed/0")


def test_the_validator_finds_nothing_under_names_that_it_allows(tmp_path):
    """With an underscore, as applications name theirs, it checks every accessor and number."""
    formats.save(cloud(257, 3), tmp_path / "a.glb", clean=False)
    document, binary = taken_apart((tmp_path / "a.glb").read_bytes())
    plain = copy.deepcopy(document)
    del plain["extensionsUsed"], primitive(plain)["extensions"]
    names = primitive(plain)["attributes"]
    primitive(plain)["attributes"] = {n.replace(f"{NAME}:", "_"): i for n, i in names.items()}
    (tmp_path / "b.glb").write_bytes(put_together(plain, binary))
    report = others("validate", tmp_path / "b.glb")
    assert report["issues"] == []
    assert report["info"]["totalVertexCount"] == 257
    plain["accessors"][0]["max"][0] += 1  # the guard: it does look at the numbers
    (tmp_path / "b.glb").write_bytes(put_together(plain, binary))
    assert ("ACCESSOR_MAX_MISMATCH", "/accessors/0/max/0") in issues(tmp_path / "b.glb")
