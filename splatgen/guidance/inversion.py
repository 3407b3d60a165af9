"""Deterministic DDIM, up and down, with a time of its own for every view.

Shapes: K candidates, B views, L levels, C x h x w the prior's space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from splatgen.guidance.conditioning import Conditions
from splatgen.guidance.denoiser import Guided, amplitudes
from splatgen.guidance.moment import Moment
from splatgen.priors import Prior
from splatgen.scene.uploads import upload


def ddim_step(prior: Prior, x: Tensor, eps: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """x and eps [..., B, C, h, w] from times t [B] to others (Song et al. 2020, eq. 12 with eta = 0)."""
    alpha, sigma = amplitudes(prior, t)
    alpha_to, sigma_to = amplitudes(prior, to)
    return alpha_to * (x - sigma * eps) / alpha + sigma_to * eps


def walk(
    moment: Moment,
    x: Tensor,  # [K, B, C, h, w]
    levels: Tensor,  # [L, B] times to go through, on the CPU; a column stays where it repeats
    *,
    scale: float,
    plain: bool,
    null_scale: float = 0.0,
    rescaled: bool = True,
    conditions: Conditions | None = None,  # else the moment's
    first: Guided | None = None,  # predictions at levels[0] that are known already
    jitter: torch.Generator | None = None,  # with eta: noise of eta times DDPM's posterior after every step
    eta: float = 0.0,
) -> Tensor:
    """x at the last level; only views that still move go through the denoiser."""
    moving = levels[:-1] != levels[1:]
    levels = upload(levels, x.device)
    for n in range(len(levels) - 1):
        rows = moving[n].nonzero().flatten()
        if not len(rows):
            continue
        on = upload(rows, x.device)
        here, there = levels[n][on], levels[n + 1][on]
        if first is not None and n == 0:
            eps = first.eps[:, on]
        else:
            eps = moment.guided(
                x[:, on],
                t=here,
                rows=rows,
                scale=scale,
                null_scale=null_scale,
                conditions=conditions,
                plain=plain,
                rescaled=rescaled,
            ).eps
        moved = ddim_step(moment.prior, x[:, on], eps, here, there)
        if jitter is not None and eta > 0:
            noise = upload(torch.randn(x.shape, generator=jitter), x.device).to(x.dtype)[:, on]
            moved = moved + eta * posterior_std(moment.prior, here, there) * noise
        x = x.index_copy(1, on, moved)
    return x


def posterior_std(prior: Prior, low: Tensor, high: Tensor) -> Tensor:
    """DDPM's posterior standard deviation between two levels [B], [B, 1, 1, 1] (Ho et al. 2020, eq. 7)."""
    alpha, sigma = amplitudes(prior, low)
    alpha_high, sigma_high = amplitudes(prior, high)
    added = sigma_high**2 - (alpha_high / alpha * sigma) ** 2  # on the way up; for any alpha and sigma
    return (sigma / sigma_high) * added.clamp_min(0.0).sqrt()


def rising(end: Tensor, counts: Tensor) -> Tensor:
    """Levels from 0 to `end` [B] in `counts` [B] equal steps, on the CPU: [L, B], padded with their end."""
    most = int(counts.max())
    share = (torch.arange(most + 1, device=end.device)[:, None] / counts[None]).clamp_max(1.0)
    return share.to(end) * end


def rising_by(step: float, start: float, end: Tensor) -> Tensor:
    """Levels from `start` to `end` [B] in steps of exactly `step` and a remainder, on the CPU: [L, B]."""
    counts = ((end - start) / step - 1e-6).ceil().clamp_min(1.0)
    levels = start + step * torch.arange(int(counts.max()) + 1, device=end.device)[:, None].to(end)
    return torch.minimum(levels, end.clamp_min(start))


def falling(start: Tensor, steps: int, closed: bool = False) -> Tensor:
    """Levels from `start` [B] to 0 through a grid's that are below it, on the CPU: [L, B].

    The grid is that of the multiples of 1/steps: a start of 1 takes `steps` predictions, smaller ones as many
    as there are multiples (and itself). Closed, it is `steps` even levels from 0 to 0.999, both among them,
    as RewardSDS's 3D code has it: one prediction less.
    """
    grid = torch.arange(steps - 1, -1, -1, device=start.device).to(start)[:, None]  # [S, 1]
    grid = 0.999 * grid / max(steps - 1, 1) if closed else grid / steps
    levels = torch.cat([start[None], torch.minimum(grid.expand(-1, len(start)), start)])
    late = (grid >= start).sum(0)  # [B] multiples that are not below: skipped, so that padding comes last
    place = torch.arange(steps + 1, device=start.device)[:, None] + late
    return levels.gather(0, place.clamp_max(steps))
