"""Score distillation: guided predictions, times, weights, and the gradient that reaches the render.

For one item at one time t with K candidate noises n_k (design: score x preference x prior x reward)

    r_k = e(alpha x + sigma n_k, t) - baseline_k,   G = w(t) combine(r_1..K),   x.backward(G / B)

Shapes: B items (views), K candidates, C x h x w the prior's space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from splatgen.cameras import Cameras
from splatgen.config import GuidanceOptions
from splatgen.preferences import Preference
from splatgen.priors import Conditioning, Prior
from splatgen.scores import Score


def weight(name: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """w(t) by name: sds (DreamFusion: sigma^2 = 1 - abar), uniform, sigma (sigma/alpha), fantasia3d."""
    match name:
        case "sds":
            return sigma**2
        case "uniform":
            return torch.ones_like(sigma)
        case "sigma":
            return sigma / alpha
        case "fantasia3d":
            return alpha * sigma**2
    raise ValueError(f"no weighting {name!r}; there are: sds, uniform, sigma, fantasia3d")


def time_range(options: GuidanceOptions, fraction: float) -> tuple[float, float]:
    """Smallest and largest t at a fraction of the run: the largest falls linearly over `anneal`."""
    begin, end = options.anneal
    done = min(max((fraction - begin) / max(end - begin, 1e-9), 0.0), 1.0)
    first, last = options.t_max
    return options.t_min, first + (last - first) * done


def sample_times(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    """Times [count] uniform in low..high, one in each of `count` equal strata, in random order."""
    strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return low + (high - low) * strata[torch.randperm(count, generator=generator)]


def cfg(e_y: Tensor, e_n: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance in diffusers' convention, e_n + w (e_y - e_n) (Ho and Salimans 2022).

    The other convention, e_y + gamma (e_y - e_n), is w = 1 + gamma.
    """
    return e_n + scale * (e_y - e_n)


def spread(x: Tensor) -> Tensor:
    """Standard deviation over all but the batch, [B, 1, 1, 1]."""
    return x.flatten(1).std(dim=1).view(-1, 1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Guided:
    """A guided prediction and the one-step estimate that goes with it."""

    eps: Tensor  # [B, C, h, w]
    x0: Tensor  # [B, C, h, w], (x_t - sigma eps) / alpha
    conditional: Tensor  # [B, C, h, w] the prompt's own prediction, before guidance


def predict(
    prior: Prior,
    x_t: Tensor,  # [B, C, h, w]
    t: Tensor,  # [B]
    positive: Conditioning,
    negative: Conditioning,
    cameras: Cameras,
    options: GuidanceOptions,
) -> Guided:
    """One batched model call for prompt and negative, guided, then optionally rescaled and clamped.

    Rescaling (Lin et al. 2023, eq. 15-16, on x0 as MVDream does) and clamping change the one-step
    estimate; eps is recomputed from it, so both always agree: x_t = alpha x0 + sigma eps.
    """
    with torch.no_grad():
        if options.scale == 1.0:  # the negative would cancel: half the work
            e_y = prior.predict(x_t, t, positive, cameras)
            eps = e_y
        else:
            both = {name: torch.cat([positive[name], negative[name]]) for name in positive}
            twice = cameras[torch.arange(len(x_t)).repeat(2)]
            e_y, e_n = prior.predict(torch.cat([x_t, x_t]), torch.cat([t, t]), both, twice).chunk(2)
            eps = cfg(e_y, e_n, options.scale)
    alpha, sigma = prior.alpha_sigma(t)
    x0 = (x_t - sigma * eps) / alpha
    clamp = options.clamp and prior.x_range is not None
    if options.rescale > 0:
        conditional = (x_t - sigma * e_y) / alpha
        factor = (spread(conditional) + 1e-8) / (spread(x0) + 1e-8)
        x0 = torch.lerp(x0, factor * x0, options.rescale)
    if clamp:
        low, high = prior.x_range  # type: ignore[misc]
        x0 = x0.clamp(low, high)
    if clamp or options.rescale > 0:
        eps = (x_t - alpha * x0) / sigma
    return Guided(eps=eps, x0=x0, conditional=e_y)


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """What one step tells the render, and what it saw on the way."""

    value: Tensor  # [B, C, h, w] G, the gradient with respect to x (before the mean over items)
    x0: Tensor  # [K, B, C, h, w] one-step estimates of the candidates
    model_calls: int  # images through the denoiser


def gradient(
    prior: Prior,
    score: Score,
    preference: Preference,
    x: Tensor,  # [B, C, h, w]
    t: Tensor,  # [B]
    positive: Conditioning,
    negative: Conditioning,
    cameras: Cameras,
    options: GuidanceOptions,
    generator: torch.Generator,
) -> Gradient:
    """G for a batch of items; nothing here is differentiated."""
    x = x.detach()
    alpha, sigma = prior.alpha_sigma(t)
    residuals, estimates = [], []
    for k in range(preference.candidates):
        noise = score.noise(x, t, k, generator)
        guided = predict(prior, alpha * x + sigma * noise, t, positive, negative, cameras, options)
        residuals.append(guided.eps - score.baseline(noise))
        estimates.append(guided.x0)
    merged = preference.combine(torch.stack(residuals))
    return Gradient(
        value=weight(options.weighting, alpha, sigma) * merged,
        x0=torch.stack(estimates),
        model_calls=(1 if options.scale == 1.0 else 2) * len(x) * preference.candidates,
    )


def inject(x: Tensor, value: Tensor) -> None:
    """Back-propagate G / B from x: the gradient of 1/2 |x - sg(x - G)|^2 / B, without the loss."""
    x.backward(value / len(x))  # type: ignore[no-untyped-call]
