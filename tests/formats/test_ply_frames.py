"""Turning splats between frames, against spherical harmonics and rotations written out in full."""

import numpy as np
import pytest
import torch
from clouds import rotations, sh_basis

from splatgen.formats import frames
from splatgen.scene.splats import Splats

TURNS = {"rub": np.eye(3), "ply": np.diag([-1.0, -1.0, 1.0]), "rdf": np.diag([1.0, -1.0, -1.0])}


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
        rotations(turned.quats.numpy()), turn @ rotations(splats.quats.numpy()), atol=1e-15
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
