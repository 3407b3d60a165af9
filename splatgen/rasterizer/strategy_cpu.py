"""gsplat's MCMC densification without its kernels: torch versions of the two functions that need them.

Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo" (arXiv:2404.09591).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gsplat.strategy.ops as gsplat_ops
import torch
from gsplat import MCMCStrategy
from torch import Tensor

from splatgen.rasterizer._torch import _rotations
from splatgen.rasterizer.backends import gsplat_problem


def _coefficient(n: int, k: int) -> float:
    """C(n, k) (-1)^(k-1) / sqrt(k)."""
    return math.comb(n, k) * float((-1) ** (k - 1)) / math.sqrt(k)


def compute_relocation(
    opacities: Tensor,  # [N] in 0..1
    scales: Tensor,  # [N, 3] linear
    ratios: Tensor,  # [N] how many splats take the place of one
    binoms: Tensor,  # [n_max, n_max]; its size limits the ratios
) -> tuple[Tensor, Tensor]:
    """Opacities and scales of n splats that together look like the one they replace (eq. 9).

        o' = 1 - (1 - o)^(1/n)
        s' = s o / sum_{i=1..n} sum_{k=0..i-1} C(i-1, k) (-1)^k o'^(k+1) / sqrt(k+1)

    The hockey-stick identity sum_i C(i-1, k) = C(n, k+1) collapses the double sum to
    sum_{k=1..n} C(n, k) (-1)^(k-1) o'^k / sqrt(k). In float64: the terms alternate.
    """
    n_max = binoms.shape[0]
    n = ratios.clamp(1, n_max).long()
    table = torch.tensor(
        [[_coefficient(i, k) for k in range(1, n_max + 1)] for i in range(n_max + 1)],
        dtype=torch.float64,
        device=opacities.device,
    )
    old = opacities.double()
    new = -torch.expm1(torch.log1p(-old) / n)
    powers = new[:, None] ** torch.arange(1, n_max + 1, device=new.device)
    factor = old / (table[n] * powers).sum(-1)
    return new.to(opacities.dtype), (scales * factor[:, None]).to(scales.dtype)


def quat_scale_to_covar_preci(
    quats: Tensor,  # [N, 4] wxyz
    scales: Tensor,  # [N, 3] linear
    compute_covar: bool = True,
    compute_preci: bool = True,
    triu: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Covariance Q S S Q^T and its inverse, [N, 3, 3], or the six upper entries [N, 6] with triu."""
    Q = _rotations(quats)

    def product(M: Tensor) -> Tensor:
        full = M @ M.mT
        upper = ([0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2])
        return full[:, upper[0], upper[1]] if triu else full

    covar = product(Q * scales[:, None]) if compute_covar else None
    preci = product(Q / scales[:, None]) if compute_preci else None
    return covar, preci


@contextmanager
def cpu_operations() -> Iterator[None]:
    """Inside, gsplat's strategies use the versions above, and gsplat's own where its kernels can serve."""
    ours: dict[str, Callable[..., Any]] = {
        "compute_relocation": compute_relocation,
        "quat_scale_to_covar_preci": quat_scale_to_covar_preci,
    }
    theirs: dict[str, Callable[..., Any]] = {name: getattr(gsplat_ops, name) for name in ours}

    def choose(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            on_cuda = any(isinstance(value, Tensor) and value.is_cuda for value in (*args, *kwargs.values()))
            kernels = on_cuda and gsplat_problem() is None
            return (theirs if kernels else ours)[name](*args, **kwargs)

        return call

    for name in ours:
        setattr(gsplat_ops, name, choose(name))
    try:
        yield
    finally:
        for name, function in theirs.items():
            setattr(gsplat_ops, name, function)


class CPUMCMCStrategy(MCMCStrategy):  # type: ignore[misc]
    """gsplat.MCMCStrategy that also works on CPU tensors, and on a GPU without gsplat's kernels."""

    def step_post_backward(self, *args: Any, **kwargs: Any) -> None:
        with cpu_operations():
            super().step_post_backward(*args, **kwargs)
