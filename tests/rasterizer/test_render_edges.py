"""Scenes at the edge of what a rasterizer is given."""

from __future__ import annotations

import pytest
import torch
from brute_force import Scene, brute_force, random_scene
from test_rasterization import compare, cotangents, rasterize

BACKENDS = ("numba", "torch")


def single(**changes: object) -> Scene:
    """One opaque-ish red splat in front of one camera at the origin looking along +z."""
    scene = Scene(
        means=torch.tensor([[0.0, 0.0, 2.0]]),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        scales=torch.tensor([[0.2, 0.2, 0.2]]),
        opacities=torch.tensor([0.8]),
        colors=torch.tensor([[1.0, 0.0, 0.0]]),
        viewmats=torch.eye(4)[None],
        Ks=torch.tensor([[[20.0, 0.0, 8.5], [0.0, 20.0, 8.5], [0.0, 0.0, 1.0]]]),
        backgrounds=torch.tensor([[0.1, 0.2, 0.3]]),
        width=17,
        height=17,
    )
    for name, value in changes.items():
        setattr(scene, name, value)
    return scene


def assert_background(scene: Scene, backend: str) -> None:
    leaves = scene.leaves(torch.float32)
    image, alpha, _ = rasterize(leaves, mode="RGB+ED", absgrad=True, backend=backend)
    assert torch.equal(image[..., :3], leaves.backgrounds[:, None, None].expand_as(image[..., :3]))
    assert alpha.abs().max() == 0
    assert image[..., 3].abs().max() == 0
    (image.sum() + alpha.sum()).backward()
    for name in ("means", "quats", "scales", "opacities", "colors", "viewmats"):
        gradient = getattr(leaves, name).grad
        assert gradient is None or torch.equal(gradient, torch.zeros_like(gradient)), name


@pytest.mark.parametrize("backend", BACKENDS)
class TestNothingVisible:
    def test_no_splats(self, backend):
        scene = random_scene(0, 1)
        for name in ("means", "quats", "scales", "opacities", "colors"):
            setattr(scene, name, getattr(scene, name)[:0])
        assert_background(scene, backend)

    def test_behind_the_camera(self, backend):
        assert_background(single(means=torch.tensor([[0.0, 0.0, -2.0]])), backend)

    def test_opacity_below_one_255th(self, backend):
        assert_background(single(opacities=torch.tensor([0.0039])), backend)

    def test_beside_the_image(self, backend):
        assert_background(single(means=torch.tensor([[9.0, 0.0, 2.0]])), backend)

    def test_nan_is_culled_not_written_out_of_bounds(self, backend):
        for name in ("means", "quats", "scales", "opacities"):
            broken = getattr(single(), name) * float("nan")
            image, _, meta = rasterize(single(**{name: broken}), backend=backend)
            assert torch.isfinite(image).all(), name
            assert meta["radii"].max() == 0, name


def test_one_splat_by_hand():
    """Centre pixel: the mean is at its centre, so alpha = 0.8, rgb = 0.8 c + 0.2 b, depth 2.

    sigma^2 = (20 * 0.2 / 2)^2 + 0.3 = 4.3, so three pixels away alpha = 0.8 exp(-9 / 8.6).
    """
    image, alpha, meta = rasterize(single(), mode="RGB+ED")
    assert meta["means2d"].flatten().tolist() == [8.5, 8.5]
    assert meta["radii"].flatten().tolist() == [7, 7]  # ceil(sqrt(2 ln(204)) sqrt(4.3)) = ceil(6.76)
    torch.testing.assert_close(image[0, 8, 8], torch.tensor([0.82, 0.04, 0.06, 2.0]))
    expected = 0.8 * torch.exp(torch.tensor(-9 / 8.6))
    torch.testing.assert_close(alpha[0, 8, 11, 0], expected)
    torch.testing.assert_close(alpha[0, 11, 8, 0], expected)


def test_a_far_narrow_splat_does_not_wrap_around():
    """Without the clamp in exp2 its exponent bits would overflow and paint distant pixels."""
    scene = single(scales=torch.full((1, 3), 1e-4), width=64, height=64)
    image, alpha, _ = rasterize(scene)
    reference = brute_force(scene)
    torch.testing.assert_close(alpha.double(), reference.alpha.double(), atol=1e-6, rtol=0)
    assert torch.isfinite(image).all()


def test_one_pixel():
    compare(random_scene(30, 30, size=(1, 1), views=1), mode="RGB+ED")


def test_one_of_several_cameras_sees_nothing():
    scene = random_scene(31, 50, views=3)
    scene.viewmats[1, :3, 3] = torch.tensor([0.0, 0.0, -50.0])
    for packed in (False, True):
        compare(scene, mode="RGB+ED", packed=packed)


def test_near_plane_crossing_and_clamped_jacobian():
    """Splats around and beside the camera: some culled, some with x/z beyond the clamp."""
    scene = random_scene(32, 150, views=1, scale=(0.05, 0.2))
    scene.viewmats[:, :3, 3] = torch.tensor([0.1, 0.0, 0.4])
    exact, ours = scene.leaves(torch.float64), scene.leaves(torch.float32)
    reference = brute_force(exact)
    image, alpha, meta = rasterize(ours)
    points = scene.means @ scene.viewmats[0, :3, :3].T + scene.viewmats[0, :3, 3]
    visible = (meta["radii"][0] > 0).all(-1)
    outside = (points[:, :2] / points[:, 2:]).abs().amax(-1) > 1.3
    assert (points[:, 2] < 0.01).any()
    assert (visible & outside).any()
    v = cotangents(reference.image, reference.alpha)
    torch.autograd.backward([reference.image, reference.alpha], v)
    torch.autograd.backward([image, alpha], [t.float() for t in v])
    torch.testing.assert_close(image.double(), reference.image, atol=2e-4, rtol=0)
    for name in ("means", "scales", "opacities", "colors", "viewmats"):
        mine, theirs = getattr(ours, name).grad.double(), getattr(exact, name).grad
        assert (mine - theirs).abs().max() < 2e-3 * theirs.abs().max(), name


@pytest.mark.parametrize(
    "scales", [[[50.0, 50.0, 50.0]], [[3.0, 1e-3, 1e-3]], [[1e-6, 1e-6, 1e-6]], [[20.0, 1e-7, 20.0]]]
)
def test_huge_and_needle_splats(scales):
    scene = single(scales=torch.tensor(scales), quats=torch.tensor([[0.3, 0.5, -0.2, 0.7]]))
    exact, ours = scene.leaves(torch.float64), scene.leaves(torch.float32)
    reference = brute_force(exact)
    image, alpha, _ = rasterize(ours)
    torch.testing.assert_close(alpha.double(), reference.alpha, atol=2e-4, rtol=0)
    image.square().sum().backward()
    for name in Scene.NAMES:
        assert torch.isfinite(getattr(ours, name).grad).all(), name


@pytest.mark.parametrize("factor", [1e10, 1e30])
def test_overflowing_scales_stay_finite(factor):
    ours = single(scales=torch.full((1, 3), factor)).leaves(torch.float32)
    image, _, _ = rasterize(ours)
    image.sum().backward()
    assert torch.isfinite(image).all()
    assert torch.isfinite(ours.colors.grad).all()


def test_equal_depths_keep_index_order():
    twice = single(
        means=torch.tensor([[0.0, 0.0, 2.0]]).repeat(2, 1),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(2, 1),
        scales=torch.full((2, 3), 0.2),
        opacities=torch.tensor([0.8, 0.8]),
        colors=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        backgrounds=torch.zeros(1, 3),
    )
    image, _, _ = rasterize(twice)
    torch.testing.assert_close(image[0, 8, 8], torch.tensor([0.8, 0.16, 0.0]))


def test_radius_clip_drops_small_splats():
    from splatgen.rasterizer import cpu

    s = random_scene(33, 100)
    args = (s.means, s.quats, s.scales, s.opacities, s.colors, s.viewmats, s.Ks, s.width, s.height)
    _, _, meta = cpu.rasterization(*args, packed=False)
    _, _, clipped = cpu.rasterization(*args, packed=False, radius_clip=5.0)
    big = (meta["radii"] > 5).any(-1)
    assert torch.equal((clipped["radii"] > 0).all(-1), big & (meta["radii"] > 0).all(-1))
    assert big.any()
    assert not big.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"means": torch.zeros(1, 3, dtype=torch.float64)},
            r"means is torch.float64 .*expected torch.float32",
        ),
        ({"quats": torch.zeros(1, 3)}, r"quats has shape \(1, 3\), expected \(1, 4\)"),
        ({"colors": torch.zeros(2, 3)}, r"colors has shape \(2, 3\)"),
        ({"backgrounds": torch.zeros(3)}, r"backgrounds has shape \(3,\), expected \(1, 3\)"),
        ({"sh_degree": 2, "colors": torch.zeros(1, 4, 3)}, "sh_degree 2 does not fit"),
        ({"width": 0}, "0x17"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        rasterize(single(**change))


def test_unknown_backend():
    with pytest.raises(ValueError, match="'numba' or 'torch'"):
        rasterize(single(), backend="warp")


NAN, INF = float("nan"), float("inf")
POISON = torch.tensor(
    [
        0.0,
        -0.0,
        1e-45,
        1e-38,
        1e-20,
        1 / 255,
        0.01,
        0.999,
        255.0,
        1e10,
        -1e10,
        1e20,
        3e38,
        -3e38,
        INF,
        -INF,
        NAN,
    ]
)


def test_poison_floats_never_crash():
    """No input may write out of bounds (numba checks no index) or bring alpha out of 0..1."""
    g = torch.Generator().manual_seed(0)
    for seed in range(60):
        size = torch.randint(1, 40, (2,), generator=g).tolist()
        scene = random_scene(seed, 30, size=(size[0], size[1]), sh_degree=1)
        for name in ("means", "quats", "scales", "opacities", "colors", "viewmats")[: 5 + (seed % 3 == 0)]:
            value = getattr(scene, name)
            hit = torch.rand(value.shape, generator=g) < (0.0, 0.05, 0.5)[seed % 3]
            poison = POISON[torch.randint(0, len(POISON), value.shape, generator=g)]
            setattr(scene, name, torch.where(hit, poison, value))
        scene.viewmats[:, 3] = torch.tensor([0.0, 0.0, 0.0, 1.0])
        ours = scene.leaves(torch.float32)
        image, alpha, _ = rasterize(
            ours, mode="RGB+ED", antialiased=seed % 2 == 0, packed=seed % 4 < 2, absgrad=True
        )
        torch.autograd.backward([image, alpha], [torch.ones_like(image), torch.ones_like(alpha)])
        assert ((alpha >= 0) & (alpha <= 1)).all(), seed


def test_second_derivatives_are_refused():
    ours = single().leaves(torch.float32)
    image, _, _ = rasterize(ours)
    (gradient,) = torch.autograd.grad(image.square().sum(), ours.means, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
