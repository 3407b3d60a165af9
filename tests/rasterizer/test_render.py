"""render(): activations, camera convention, validation."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from splatgen.rasterizer import Render, render
from splatgen.scene import cameras as cams
from splatgen.scene.splats import Splats, random_ball, rgb_to_sh


def ball(count: int = 200, sh_degree: int = 1) -> Splats:
    g = torch.Generator().manual_seed(0)
    return random_ball(g, count=count, radius=0.6, scale=0.05, opacity=0.5, sh_degree=sh_degree)


def dot(position: list[float], rgb: list[float], *, scale: float = 0.05) -> Splats:
    return Splats(
        means=torch.tensor([position]),
        quats=torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        scales=torch.full((1, 3), scale).log(),
        opacities=torch.logit(torch.tensor([0.9])),
        sh=rgb_to_sh(torch.tensor([[rgb]])),
    )


def front(size: int | tuple[int, int] = 33) -> cams.Cameras:
    return cams.orbit(torch.tensor([0.0]), torch.tensor([0.0]), size=size)


def brightest(image: torch.Tensor) -> tuple[int, int]:
    """Row and column."""
    return divmod(int(image.flatten().argmax()), image.shape[-1])


def test_shapes_and_info():
    out = render(ball(), cams.turntable(3, size=(20, 12)), torch.ones(3))
    assert isinstance(out, Render)
    assert out.rgb.shape == (3, 3, 12, 20)
    assert out.alpha.shape == out.depth.shape == (3, 1, 12, 20)
    info = out.info
    assert (info["width"], info["height"], info["n_cameras"]) == (20, 12, 3)
    assert info["radii"].shape == info["means2d"].shape == (3, 200, 2)
    assert info["gaussian_ids"] is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        out.rgb = out.alpha


def test_a_splat_is_where_the_camera_convention_puts_it():
    """+Y is up; azimuth 0 looks from +Z with +X to the right; activations are exp and sigmoid."""
    middle = render(dot([0.0, 0.0, 0.0], [1.0, 0.5, 0.0]), front())
    torch.testing.assert_close(middle.rgb[0, :, 16, 16], torch.tensor([0.9, 0.45, 0.0]), atol=1e-5, rtol=0)
    assert float(middle.alpha[0, 0, 16, 16]) == pytest.approx(0.9, abs=1e-5)
    assert float(middle.depth[0, 0, 16, 16]) == pytest.approx(cams.DEFAULT_DISTANCE, abs=1e-5)
    up_row, up_col = brightest(render(dot([0.0, 0.5, 0.0], [1.0] * 3), front()).alpha[0, 0])
    right_row, right_col = brightest(render(dot([0.5, 0.0, 0.0], [1.0] * 3), front()).alpha[0, 0])
    assert up_row < 16
    assert right_col > 16
    assert up_col == right_row == 16
    side = cams.orbit(torch.tensor([90.0]), torch.tensor([0.0]), size=33)
    assert brightest(render(dot([0.0, 0.0, 0.5], [1.0] * 3), side).alpha[0, 0])[1] < 16


def test_background_per_camera_and_shared():
    splats, cameras = ball(), cams.turntable(2, size=16)
    colors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    black, both = render(splats, cameras), render(splats, cameras, colors)
    expected = black.rgb + (1 - black.alpha) * colors[:, :, None, None]
    torch.testing.assert_close(both.rgb, expected)
    torch.testing.assert_close(render(splats, cameras, colors[0]).rgb[0], both.rgb[0])


def test_background_gradient():
    color = torch.rand(3, requires_grad=True)
    out = render(ball(), cams.turntable(2, size=16), color)
    out.rgb.sum().backward()
    torch.testing.assert_close(color.grad, (1 - out.alpha).sum().expand(3))


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_reach_every_parameter(packed):
    splats = Splats(**{k: v.requires_grad_() for k, v in ball().tensors().items()})
    splats.quats.data += 0.1
    splats.scales.data[:, 0] += 0.5
    out = render(splats, cams.turntable(2, size=24), packed=packed, absgrad=True, antialiased=True)
    out.info["means2d"].retain_grad()
    out.rgb.square().sum().backward()
    for name, value in splats.tensors().items():
        assert torch.isfinite(value.grad).all(), name
        assert value.grad.abs().sum() > 0, name
    means2d = out.info["means2d"]
    assert (means2d.absgrad >= means2d.grad.abs() - 1e-5).all()
    assert means2d.absgrad.sum() > 0
    if packed:
        assert out.info["gaussian_ids"].shape == means2d.shape[:1]


def test_packed_is_the_same_picture():
    splats, cameras = ball(), cams.turntable(2, size=24)
    assert torch.equal(render(splats, cameras).rgb, render(splats, cameras, packed=True).rgb)


def test_no_splats_is_the_background():
    splats = Splats(**{k: v.requires_grad_() for k, v in ball().select(torch.arange(0)).tensors().items()})
    color = torch.tensor([0.2, 0.4, 0.6], requires_grad=True)
    out = render(splats, cams.turntable(2, size=(9, 5)), color, absgrad=True)
    out.info["means2d"].retain_grad()
    assert torch.equal(out.rgb, color[None, :, None, None].expand(2, 3, 5, 9))
    assert out.alpha.sum() == 0
    out.rgb.sum().backward()
    assert color.grad.tolist() == [90.0] * 3
    assert splats.means.grad.shape == (0, 3)
    assert out.info["means2d"].shape == out.info["radii"].shape == (2, 0, 2)


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_parameters_are_named(name, value):
    splats = ball()
    splats.tensors()[name][3:5] = value
    with pytest.raises(ValueError, match=rf"splats\.{name} has 2 of 200 rows that are not finite"):
        render(splats, front())


def test_large_finite_parameters_are_not_broken():
    splats = ball()
    splats.means[0] = 3e38
    splats.means[1] = 3e38
    assert torch.isfinite(render(splats, front()).rgb).all()


def test_zero_quaternions_are_named():
    splats = ball()
    splats.quats[7] = 0
    with pytest.raises(ValueError, match="1 of 200 rows of norm 0"):
        render(splats, front())


def test_wrong_background_shape():
    with pytest.raises(ValueError, match=r"background has shape \(4,\)"):
        render(ball(), front(), torch.zeros(4))


def test_wrong_splat_shape_and_dtype():
    splats = ball()
    with pytest.raises(ValueError, match=r"splats\.quats has shape"):
        render(dataclasses.replace(splats, quats=splats.quats[:, :3]), front())
    with pytest.raises(ValueError, match="float64"):
        render(dataclasses.replace(splats, means=splats.means.double()), front())


def test_backend_by_argument_and_environment(monkeypatch: pytest.MonkeyPatch):
    splats, cameras = ball(), cams.turntable(2, size=24)
    numba = render(splats, cameras)
    torch.testing.assert_close(render(splats, cameras, backend="torch").rgb, numba.rgb, atol=1e-5, rtol=0)
    monkeypatch.setenv("SPLATGEN_CPU_BACKEND", "torch")
    assert torch.equal(render(splats, cameras).rgb, render(splats, cameras, backend="torch").rgb)
    monkeypatch.setenv("SPLATGEN_CPU_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        render(splats, cameras)


def test_learns_a_picture():
    """Adam on all parameters brings a random cloud to another cloud's pictures."""
    target, cameras = ball(150, 0), cams.turntable(3, size=24)
    with torch.no_grad():
        wanted = render(target, cameras).rgb
    g = torch.Generator().manual_seed(1)
    start = random_ball(g, count=150, radius=0.6, scale=0.07, opacity=0.3)
    splats = Splats(**{k: v.requires_grad_() for k, v in start.tensors().items()})
    optimiser = torch.optim.Adam(splats.tensors().values(), lr=0.02)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (render(splats, cameras).rgb - wanted).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_cuda_agrees(antialiased, packed):
    """gsplat uses __expf and fast math: isolated pixels may flip at the 1/255 threshold."""
    outs, gradients = [], []
    for device in ("cpu", "cuda"):
        splats = ball(2000, 3).to(device)
        splats = Splats(**{k: v.detach().requires_grad_() for k, v in splats.tensors().items()})
        out = render(
            splats, cams.turntable(2, size=64), torch.ones(3), antialiased=antialiased, packed=packed
        )
        (out.rgb.square().sum() + out.depth.sum()).backward()
        outs.append((out.rgb.detach().cpu(), out.alpha.detach().cpu()))
        gradients.append({k: v.grad.cpu() for k, v in splats.tensors().items()})
    for ours, theirs in zip(*outs, strict=True):
        difference = (ours - theirs).abs()
        assert difference.max() < 8e-3
        assert difference.quantile(0.999) < 1e-4
    for name, ours in gradients[0].items():
        theirs = gradients[1][name]
        assert (ours - theirs).abs().max() < 1e-2 * theirs.abs().max(), name
