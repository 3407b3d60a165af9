"""Turning splats between frames, against spherical harmonics and rotations written out in full."""

import numpy as np
import pytest
import torch
from clouds import covariances, sh_basis

from splatgen.formats import frames
from splatgen.formats.splat_file import SplatFile
from splatgen.formats.spz_stream import AXES

# by hand: where x, y and z of a file point in right, up, back
TURNS = {
    "rub": np.eye(3),
    "ply": np.diag([-1.0, -1.0, 1.0]),
    "rdf": np.diag([1.0, -1.0, -1.0]),
    "zup": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "luf": np.diag([-1.0, 1.0, -1.0]),
    "ruf": np.diag([1.0, 1.0, -1.0]),  # a mirror image: Unity
    "lbd": np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "lfu": np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),  # both: a turn and a mirror
}
FLIPS = ["rub", "ply", "rdf", "luf", "ruf", "rdb", "ldf"]


def cloud(degree: int) -> SplatFile:
    g = np.random.default_rng(degree)
    quats = g.normal(size=(9, 4))
    return SplatFile(
        means=g.normal(size=(9, 3)),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        scales=g.normal(size=(9, 3)).astype(np.float32),
        opacities=g.normal(size=9).astype(np.float32),
        sh=g.normal(size=(9, (degree + 1) ** 2, 3)).astype(np.float32),
        extras={name: g.normal(size=9).astype(np.float32) for name in ("nx", "ny", "nz")},
    )


@pytest.mark.parametrize("frame", sorted(TURNS))
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_turning_turns_everything(frame, degree):
    """Means and ellipsoids are turned by R, or mirrored; what is seen from R d is what was from d before."""
    file, turn = cloud(degree), TURNS[frame]
    turned = frames.to_frame(file, frame)
    np.testing.assert_array_equal(turned.means, file.means @ turn.T)
    before, after = (covariances(f.quats, f.scales) for f in (file, turned))
    np.testing.assert_allclose(after, turn @ before @ turn.T, atol=2e-5 * np.abs(before).max())
    directions = np.random.default_rng(0).normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    k = (degree + 1) ** 2
    seen = np.einsum("mk,nkc->nmc", sh_basis(directions)[:, :k], file.sh)
    now = np.einsum("mk,nkc->nmc", sh_basis(directions @ turn.T)[:, :k], turned.sh)
    np.testing.assert_allclose(now, seen, atol=2e-6 if frame not in FLIPS else 1e-12)
    assert np.array_equal(turned.scales, file.scales)
    assert np.array_equal(turned.opacities, file.opacities)
    normals, old = (np.stack([f.extras[n] for n in ("nx", "ny", "nz")], -1) for f in (turned, file))
    np.testing.assert_allclose(normals, old @ turn.T, atol=1e-7)


@pytest.mark.parametrize("frame", FLIPS)
def test_there_and_back_to_the_bit(frame):
    file = cloud(3)
    back = frames.from_frame(frames.to_frame(file, frame), frame)
    for name, value in file.arrays().items():
        assert np.array_equal(back.arrays()[name], value), name


@pytest.mark.parametrize("frame", AXES)
def test_all_sixteen_axes_there_and_back(frame):
    file = cloud(3)
    back = frames.from_frame(frames.to_frame(file, frame), frame)
    assert np.array_equal(back.means, file.means)
    exact, found = (covariances(f.quats, f.scales) for f in (file, back))
    np.testing.assert_allclose(found, exact, atol=2e-5 * np.abs(exact).max())
    np.testing.assert_allclose(back.sh, file.sh, atol=1e-5)
    assert len({tuple(frames.matrix(axes).flatten()) for axes in AXES[1:]}) == 16


@pytest.mark.parametrize("frame", ["xyz", "", "ru", "rubb", "rrr", "rlu", "RUB"])
def test_what_is_no_frame_is_refused(frame):
    with pytest.raises(ValueError, match="no frame is called"):
        frames.to_frame(cloud(0), frame)


def test_the_basis_is_the_renderers():
    """gsplat's own pure-torch basis: the signs above are for the functions that are rendered."""
    cuda_free = pytest.importorskip("gsplat.cuda._torch_impl")
    directions = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1)
    theirs = cuda_free._eval_sh_bases_fast(16, directions)
    np.testing.assert_allclose(theirs.numpy(), sh_basis(directions.numpy()), atol=1e-7)
