"""Turning splats between frames, against spherical harmonics and rotations written out in full."""

import numpy as np
import pytest
import torch

from splatgen.formats import frames
from splatgen.splats import Splats

TURNS = {"rub": np.eye(3), "ply": np.diag([-1.0, -1.0, 1.0]), "rdf": np.diag([1.0, -1.0, -1.0])}


def sh_basis(d: np.ndarray) -> np.ndarray:
    """The 16 functions of gsplat and Inria at directions [M, 3], [M, 16]."""
    x, y, z = d.T
    xx, yy, zz = x * x, y * y, z * z
    return np.stack(
        [
            0.28209479177387814 * np.ones_like(x),
            -0.4886025119029199 * y,
            0.4886025119029199 * z,
            -0.4886025119029199 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        -1,
    )


def rotation_matrix(q: np.ndarray) -> np.ndarray:
    """Unit quaternions wxyz [M, 4] to matrices, [M, 3, 3]."""
    w, x, y, z = q.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def cloud(degree: int) -> Splats:
    g = torch.Generator().manual_seed(degree)
    normal = torch.nn.functional.normalize
    return Splats(
        means=torch.randn(9, 3, generator=g, dtype=torch.float64),
        quats=normal(torch.randn(9, 4, generator=g, dtype=torch.float64), dim=-1),
        scales=torch.randn(9, 3, generator=g, dtype=torch.float64),
        opacities=torch.randn(9, generator=g, dtype=torch.float64),
        sh=torch.randn(9, (degree + 1) ** 2, 3, generator=g, dtype=torch.float64),
    )


@pytest.mark.parametrize("frame", sorted(frames.FRAMES))
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_turning_is_a_rotation_of_everything(frame, degree):
    """Means and axes are rotated by R, and the colour seen from R d is the one seen from d before."""
    splats, turn = cloud(degree), TURNS[frame]
    turned = frames.to_frame(splats, frame)
    np.testing.assert_allclose(turned.means.numpy(), splats.means.numpy() @ turn.T, atol=0)
    np.testing.assert_allclose(
        rotation_matrix(turned.quats.numpy()), turn @ rotation_matrix(splats.quats.numpy()), atol=1e-15
    )
    directions = np.random.default_rng(0).normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    k = (degree + 1) ** 2
    before = np.einsum("mk,nkc->nmc", sh_basis(directions)[:, :k], splats.sh.numpy())
    after = np.einsum("mk,nkc->nmc", sh_basis(directions @ turn.T)[:, :k], turned.sh.numpy())
    np.testing.assert_allclose(after, before, atol=1e-13)
    assert torch.equal(turned.scales, splats.scales)
    assert torch.equal(turned.opacities, splats.opacities)


@pytest.mark.parametrize("frame", sorted(frames.FRAMES))
def test_there_and_back_to_the_bit(frame):
    splats = cloud(3)
    back = frames.from_frame(frames.to_frame(splats, frame), frame)
    for name, value in splats.tensors().items():
        assert torch.equal(back.tensors()[name], value)


def test_the_basis_is_the_renderers():
    """gsplat's own pure-torch basis: the signs above are for the functions that are rendered."""
    cuda_free = pytest.importorskip("gsplat.cuda._torch_impl")
    directions = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1)
    theirs = cuda_free._eval_sh_bases_fast(16, directions)
    np.testing.assert_allclose(theirs.numpy(), sh_basis(directions.numpy()), atol=1e-7)
