"""The CPU rasterizer against the brute-force float64 renderer: pictures and every gradient."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from brute_force import Scene, brute_force, random_scene
from torch import Tensor

from splatgen.rasterizer import cpu

IMAGE_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 5e-4  # max|g - g64| / max|g64|


def rasterize(s: Scene, *, mode="RGB", antialiased=False, packed=False, absgrad=False, backend="numba"):
    """On the CPU; "triton" runs where its kernels do, and its pictures come back."""
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    tensors = (s.means, s.quats, s.scales, s.opacities, s.colors, s.viewmats, s.Ks)
    options = {
        "sh_degree": s.sh_degree,
        "packed": packed,
        "backgrounds": s.backgrounds.to(device),
        "render_mode": mode,
        "absgrad": absgrad,
        "rasterize_mode": "antialiased" if antialiased else "classic",
    }
    if backend == "triton":
        from splatgen.rasterizer import triton_rasterizer

        run = triton_rasterizer.rasterization
    else:
        run, options["backend"] = cpu.rasterization, backend
    image, alpha, meta = run(*(t.to(device) for t in tensors), s.width, s.height, **options)
    return image.cpu(), alpha.cpu(), meta


def cotangents(image: Tensor, alpha: Tensor, seed: int = 7) -> list[Tensor]:
    """Random, so that no two gradients can cancel by symmetry."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=g, dtype=torch.float64) for t in (image, alpha)]


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.cpu().double() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def compare(
    scene: Scene, *, mode="RGB", antialiased=False, packed=False, backend="numba"
) -> dict[str, float]:
    """Relative errors of the picture and of every gradient; asserts the tolerances."""
    exact, ours = scene.leaves(torch.float64), scene.leaves(torch.float32)
    reference = brute_force(exact, mode=mode, antialiased=antialiased)
    v = cotangents(reference.image, reference.alpha)
    torch.autograd.backward([reference.image, reference.alpha], v)
    image, alpha, meta = rasterize(
        ours, mode=mode, antialiased=antialiased, packed=packed, absgrad=True, backend=backend
    )
    torch.autograd.backward([image, alpha], [t.float() for t in v])
    errors = {name: error(getattr(ours, name).grad, getattr(exact, name).grad) for name in Scene.NAMES}
    absgrad = reference.absgrad()
    if packed:
        absgrad = absgrad[meta["camera_ids"].cpu(), meta["gaussian_ids"].cpu()]
    errors["absgrad"] = error(meta["means2d"].absgrad, absgrad)
    pictures = {
        "image": float((image - reference.image).detach().abs().max()),
        "alpha": float((alpha - reference.alpha).detach().abs().max()),
    }
    assert max(pictures.values()) < IMAGE_TOLERANCE, pictures
    assert max(errors.values()) < GRADIENT_TOLERANCE, errors
    return pictures | errors


MODES = list(product(("RGB", "RGB+ED"), (False, True), (False, True)))


@pytest.mark.parametrize(("mode", "antialiased", "packed"), MODES)
def test_matches_brute_force(mode, antialiased, packed):
    compare(random_scene(1), mode=mode, antialiased=antialiased, packed=packed)


@pytest.mark.parametrize("mode", ["D", "ED", "RGB+D"])
def test_depth_modes(mode):
    scene = random_scene(2, 60)
    exact, ours = scene.leaves(torch.float64), scene.leaves(torch.float32)
    reference = brute_force(exact, mode=mode)
    image, alpha, _ = rasterize(ours, mode=mode)
    v = cotangents(reference.image, reference.alpha)
    torch.autograd.backward([reference.image, reference.alpha], v)
    torch.autograd.backward([image, alpha], [t.float() for t in v])
    assert (image - reference.image).abs().max() < IMAGE_TOLERANCE
    for name in ("means", "quats", "scales", "opacities", "viewmats"):
        assert error(getattr(ours, name).grad, getattr(exact, name).grad) < GRADIENT_TOLERANCE, name


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_spherical_harmonics(degree, packed):
    compare(random_scene(3 + degree, 80, sh_degree=degree), mode="RGB+ED", packed=packed)


def test_unused_coefficients_get_zero_gradient():
    scene = random_scene(4, 40, sh_degree=2)
    scene.sh_degree = 1
    ours = scene.leaves(torch.float32)
    rasterize(ours)[0].sum().backward()
    assert ours.colors.grad[:, :4].abs().sum() > 0
    assert ours.colors.grad[:, 4:].abs().sum() == 0


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 7), (33, 5)])
def test_image_sizes(size):
    compare(random_scene(5, 60, size=size), mode="RGB+ED")


@pytest.mark.parametrize("channels", [1, 4])
def test_channels(channels):
    compare(random_scene(6, 60, channels=channels))


def test_seven_channels_need_two_passes():
    scene = random_scene(6, 60, channels=7)
    exact, ours = scene.leaves(torch.float64), scene.leaves(torch.float32)
    reference = brute_force(exact)
    image, alpha, _ = rasterize(ours)
    v = cotangents(reference.image, reference.alpha)
    torch.autograd.backward([reference.image, reference.alpha], v)
    torch.autograd.backward([image, alpha], [t.float() for t in v])
    assert (image - reference.image).abs().max() < IMAGE_TOLERANCE
    for name in Scene.NAMES:
        assert error(getattr(ours, name).grad, getattr(exact, name).grad) < GRADIENT_TOLERANCE, name
    with pytest.raises(ValueError, match="absgrad with 7 channels"):
        rasterize(ours, absgrad=True)


def test_opaque_splats_stop_the_ray():
    """alpha clamped at 0.999, early termination, and no gradient through the clamp."""
    compare(random_scene(8, 150, opacity=(0.9, 0.9999), scale=(0.1, 0.5)), mode="RGB+ED")


def test_colors_per_camera():
    scene = random_scene(9, 40)
    both = scene.leaves(torch.float32)
    both.colors = torch.stack([scene.colors, 1 - scene.colors]).requires_grad_()
    image, _, _ = rasterize(both)
    for c, colors in enumerate((scene.colors, 1 - scene.colors)):
        one = scene.leaves(torch.float32)
        one.colors = colors.clone()
        assert torch.equal(rasterize(one)[0][c], image[c])
    image.sum().backward()
    assert both.colors.grad.abs().sum() > 0


def test_brute_force_gradients_match_finite_differences():
    """The reference is checked too: central differences in float64, then the kernels against them."""
    scene = random_scene(10, 8, size=(6, 5), views=1, sh_degree=1, scale=(0.2, 0.4), opacity=(0.3, 0.6))
    exact = scene.leaves(torch.float64)
    v = None

    def loss(s: Scene) -> Tensor:
        nonlocal v
        r = brute_force(s, mode="RGB+ED")
        v = cotangents(r.image, r.alpha) if v is None else v
        return (r.image * v[0]).sum() + (r.alpha * v[1]).sum()

    loss(exact).backward()
    ours = scene.leaves(torch.float32)
    image, alpha, _ = rasterize(ours, mode="RGB+ED")
    torch.autograd.backward([image, alpha], [t.float() for t in v])
    g = torch.Generator().manual_seed(0)
    for name in Scene.NAMES:
        tensor = getattr(exact, name)
        direction = torch.randn(tensor.shape, generator=g, dtype=torch.float64)
        if name == "viewmats":
            direction[:, 3] = 0
        sides = []
        for step in (1e-6, -1e-6):
            moved = scene.leaves(torch.float64)
            setattr(moved, name, tensor.detach() + step * direction)
            sides.append(float(loss(moved).detach()))
        slope = (sides[0] - sides[1]) / 2e-6
        assert slope == pytest.approx(float((tensor.grad * direction).sum()), rel=1e-5, abs=1e-7), name
        mine = float((getattr(ours, name).grad.double() * direction).sum())
        scale = float(tensor.grad.abs().sum())
        assert abs(mine - slope) < GRADIENT_TOLERANCE * scale, name


def test_radii_match_gsplat():
    """gsplat's torch projection, which does not look at opacities, at opacity 1."""
    impl = pytest.importorskip("gsplat.cuda._torch_impl")
    s = random_scene(11, 2000, size=(64, 40), opacity=(1.0, 1.0))
    covars, _ = impl._quat_scale_to_covar_preci(s.quats, s.scales, compute_preci=False, triu=False)
    radii, means2d, depths, conics, _ = impl._fully_fused_projection(
        s.means, covars, s.viewmats, s.Ks, s.width, s.height
    )
    _, _, meta = rasterize(s)
    visible = (radii > 0).all(-1)
    # extent is min(3.33, sqrt(2 ln 255) = 3.32904): the two differ only where a ceiling lies between.
    assert (meta["radii"] - radii).abs().max() <= 1
    assert (meta["radii"] == radii).all(-1).float().mean() > 0.98
    both = visible & (meta["radii"] > 0).all(-1)
    assert both.sum() > 3000
    for name, theirs in (("means2d", means2d), ("depths", depths), ("conics", conics)):
        torch.testing.assert_close(meta[name][both], theirs[both], rtol=1e-4, atol=1e-4)


def test_radii_formula():
    """radius = ceil(min(3.33, sqrt(2 ln(255 o))) sqrt(cov)) per axis, from float64, to the integer."""
    s = random_scene(12, 500, size=(64, 40))
    _, _, meta = rasterize(s)
    radii, conics = meta["radii"], meta["conics"].double()
    det = conics[..., 0] * conics[..., 2] - conics[..., 1] ** 2
    covariance = torch.stack([conics[..., 2], conics[..., 0]], -1) / det[..., None]
    extent = torch.sqrt(2 * torch.log(255 * s.opacities.double())).clamp(max=3.33)
    exact = extent[:, None] * covariance.sqrt()
    visible = (radii > 0).all(-1)
    clear = visible & ((exact - exact.round()).abs().amin(-1) > 1e-3)  # away from a ceiling
    assert clear.sum() > 800
    assert torch.equal(radii[clear], exact.ceil()[clear].int())
