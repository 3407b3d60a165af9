"""gsplat's densification strategies run on what the CPU rasterizer returns."""

from __future__ import annotations

import math

import gsplat.strategy.ops as gsplat_ops
import pytest
import torch
from gsplat import DefaultStrategy

from splatgen.rasterizer import render
from splatgen.rasterizer.strategy_cpu import (
    CPUMCMCStrategy,
    compute_relocation,
    cpu_operations,
    quat_scale_to_covar_preci,
)
from splatgen.scene import cameras as cams
from splatgen.scene.splats import Splats, random_ball


def training(seed: int = 0, count: int = 120):
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # the strategies draw from the global generator
    start = random_ball(g, count=count, radius=0.6, scale=0.06, opacity=0.3)
    params = torch.nn.ParameterDict({k: torch.nn.Parameter(v) for k, v in start.tensors().items()})
    optimizers = {k: torch.optim.Adam([v], lr=0.01) for k, v in params.items()}
    target = random_ball(g, count=300, radius=0.5, scale=0.05, opacity=0.8, color_spread=1.0)
    cameras = cams.turntable(2, size=24)
    with torch.no_grad():
        wanted = render(target, cameras).rgb
    return params, optimizers, cameras, wanted


def loop(strategy, state, *, packed: bool = False, absgrad: bool = False, post: dict):
    """The losses of a short run; the usual five lines around a strategy."""
    params, optimizers, cameras, wanted = training()
    strategy.check_sanity(params, optimizers)
    losses = []
    for step in range(30):
        out = render(Splats(**params), cameras, packed=packed, absgrad=absgrad)
        if isinstance(strategy, DefaultStrategy):
            strategy.step_pre_backward(params, optimizers, state, step, out.info)
        loss = (out.rgb - wanted).square().mean()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        strategy.step_post_backward(params, optimizers, state, step, out.info, **post)
        losses.append(float(loss.detach()))
    return losses, params


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("absgrad", [False, True])
def test_default_strategy(packed, absgrad):
    strategy = DefaultStrategy(
        refine_start_iter=5, refine_every=10, refine_stop_iter=25, grow_grad2d=1e-5, absgrad=absgrad
    )
    state = strategy.initialize_state(scene_scale=1.0)
    losses, params = loop(strategy, state, packed=packed, absgrad=absgrad, post={"packed": packed})
    assert losses[-1] < 0.7 * losses[0]
    assert len(params["means"]) > 120
    assert state["grad2d"].shape == (len(params["means"]),)


def test_mcmc_strategy():
    strategy = CPUMCMCStrategy(
        cap_max=150, refine_start_iter=5, refine_every=10, noise_lr=1.0, min_opacity=0.05
    )
    losses, params = loop(strategy, strategy.initialize_state(), post={"lr": 1e-3})
    assert losses[-1] < 0.7 * losses[0]
    assert 120 < len(params["means"]) <= 150
    assert all(torch.isfinite(value).all() for value in params.values())


def literal_relocation(opacity: float, n: int) -> tuple[float, float]:
    """The double loop of gsplat's RelocationCUDA.cu: new opacity, factor on the scales."""
    new = 1 - (1 - opacity) ** (1 / n)
    total = 0.0
    for i in range(1, n + 1):
        for k in range(i):
            total += math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * new ** (k + 1)
    return new, opacity / total


def test_relocation_is_the_literal_loop():
    binoms = torch.zeros(51, 51)
    for n in range(1, 52):
        opacities = torch.tensor([0.005, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
        scales = torch.rand(5, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        new, scaled = compute_relocation(opacities, scales, torch.full((5,), n), binoms)
        for j, opacity in enumerate(opacities.tolist()):
            expected, factor = literal_relocation(opacity, n)
            assert float(new[j]) == pytest.approx(expected, rel=1e-9)
            torch.testing.assert_close(scaled[j], scales[j] * factor, rtol=1e-7, atol=0)


def test_relocation_clamps_ratios_and_keeps_dtype():
    binoms = torch.zeros(51, 51)
    args = torch.tensor([0.5, 0.5]), torch.ones(2, 3)
    new, scales = compute_relocation(*args, torch.tensor([51, 400]), binoms)
    assert new.dtype == scales.dtype == torch.float32
    assert torch.equal(new[0], new[1])
    alone, same = compute_relocation(*args, torch.tensor([1, 0]), binoms)
    torch.testing.assert_close(alone, args[0])
    torch.testing.assert_close(same, args[1])


def test_covariance_and_precision():
    impl = pytest.importorskip("gsplat.cuda._torch_impl")
    g = torch.Generator().manual_seed(0)
    quats, scales = torch.randn(20, 4, generator=g), torch.rand(20, 3, generator=g) + 0.1
    for triu in (False, True):
        ours = quat_scale_to_covar_preci(quats, scales, triu=triu)
        theirs = impl._quat_scale_to_covar_preci(quats, scales, triu=triu)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert quat_scale_to_covar_preci(quats, scales, compute_preci=False)[1] is None


def test_operations_are_put_back():
    before = gsplat_ops.compute_relocation, gsplat_ops.quat_scale_to_covar_preci
    with cpu_operations():
        assert gsplat_ops.compute_relocation is not before[0]
    assert (gsplat_ops.compute_relocation, gsplat_ops.quat_scale_to_covar_preci) == before

    def fail() -> None:
        with cpu_operations():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (gsplat_ops.compute_relocation, gsplat_ops.quat_scale_to_covar_preci) == before
