"""Score distillation: times, weights, and the gradient that reaches the render.

For one item at one time t with K candidate noises n_k (score x preference x prior x reward, all free)

    r_k = e(alpha x + sigma n_k, t) - baseline_k,   G = w(t) combine(r_1..K),   x.backward(G / B)

Shapes: B views, K candidates, C x h x w the prior's space, H x W the render.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splatgen.config import GuidanceOptions
from splatgen.guidance.denoiser import gather
from splatgen.guidance.moment import Moment, along
from splatgen.guidance.preferences import Choice, Preference
from splatgen.guidance.scores import Score
from splatgen.guidance.scores.base import Metrics
from splatgen.rewards.ensemble import RewardEnsemble


def weight(name: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """w(t) by name: sds (DreamFusion: sigma^2 = 1 - abar), uniform, sigma (sigma/alpha), fantasia3d, flow.

    For a flow sigma is t itself, and 1 - abar, the share of the noise in the power, is not sigma^2: there
    sds is t^2. With flow, 1/alpha, the residual is that of velocities: RFDS's v - (n - x) (Yang et al. 2024)
    is (e - n) / alpha, as e = x_t + alpha v.
    """
    match name:
        case "sds":
            return sigma**2
        case "uniform":
            return torch.ones_like(sigma)
        case "sigma":
            return sigma / alpha
        case "fantasia3d":
            return alpha * sigma**2
        case "flow":
            return 1.0 / alpha
    raise ValueError(f"no weighting {name!r} of times; there are: sds, uniform, sigma, fantasia3d, flow")


def weights_by_residual(eps: Tensor, noise: Tensor) -> Tensor:
    """dmd: one over the mean |e - n| of each view [B, C, h, w], [B, 1, 1, 1].

    The weight of DMD (Yin et al. 2023) as Consistent Flow Distillation's code has it.
    """
    return 1.0 / ((eps - noise).abs().mean((1, 2, 3), keepdim=True) + 1e-8)


def clipped(options: GuidanceOptions, fraction: float, value: Tensor) -> Tensor:
    """G with limited elements, as in GaussianDreamer (1.5 to 2) and D-SDS (0.5 to 2, Hong et al. 2023)."""
    limit = along(options.clip_over, fraction, *options.clip)
    return value.clamp(-limit, limit) if limit > 0 else value


def chosen_weighting(options: GuidanceOptions, score: Score) -> str:
    """The weighting of a run by name: auto is the score's own."""
    return score.weighting if options.weighting == "auto" else options.weighting


def time_range(options: GuidanceOptions, fraction: float) -> tuple[float, float]:
    """Smallest and largest t at a fraction of the run: both fall linearly over `anneal`."""
    low = options.t_min if options.t_min_start is None else options.t_min_start
    return (
        along(options.anneal, fraction, low, options.t_min),
        along(options.anneal, fraction, *options.t_max),
    )


def annealed_time(options: GuidanceOptions, fraction: float, how: str = "annealed") -> float:
    """One time for all views: from the first t_max down to t_min over the run.

    Linearly; with the root of the fraction (sqrt: HiFA, Zhu and Zhuang 2023); or by DreamTime.
    """
    first, last = options.t_max[0], options.t_min
    if how == "dreamtime":
        return min(max(dreamtime(fraction), last), first)
    done = min(max(fraction, 0.0), 1.0)
    return along((0.0, 1.0), done**0.5 if how == "sqrt" else done, first, last)


def dreamtime(fraction: float) -> float:
    """DreamTime's time at a fraction of the run (Huang et al. 2023, arXiv 2306.12422).

    The t of 1000 for which the weights W of all times from t on come nearest to that fraction of all weights:
    W is 1 from 0.5 to 0.8, and falls off as a Gaussian of deviation 0.3 above and 0.1 below.
    """
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000.0
    above, below = -((t - 0.8) ** 2) / (2 * 0.3**2), -((t - 0.5) ** 2) / (2 * 0.1**2)
    weights = torch.where(t > 0.8, above, torch.where(t < 0.5, below, 0.0)).exp()
    left = weights.flip(0).cumsum(0).flip(0) / weights.sum()
    return float(t[(left - fraction).abs().argmin()])


def draw_times(
    options: GuidanceOptions, score: Score, fraction: float, items: int, generator: torch.Generator
) -> Tensor:
    """The time of every item, [G]."""
    how = score.times if options.times == "auto" else options.times
    if how not in ("random", "shared"):
        return torch.full((items,), annealed_time(options, fraction, how))
    t = sample_times(generator, items if how == "random" else 1, *time_range(options, fraction)).expand(items)
    return options.shift * t / (1.0 + (options.shift - 1.0) * t)


def sample_times(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    """Times [count] uniform in low..high, one in each of `count` equal strata, in random order."""
    strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return low + (high - low) * strata[torch.randperm(count, generator=generator)]


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """What one step tells the render, and what it saw on the way."""

    value: Tensor  # [B, C, h, w] G, the gradient with respect to x (before the mean over views)
    on_render: Tensor | None  # [B, 3, H, W] a gradient with respect to the render itself
    x0: Tensor  # [K, B, C, h, w] one-step estimates of the candidates
    rewards: Tensor | None  # [K, G] of the candidates, where a preference ranked them
    kept: Tensor  # [M, B] the candidates that may count, the best first
    weights: Tensor  # [M, B] how much
    metrics: Metrics
    paired: bool = False  # the two that are kept are a winner and a loser
    model_calls: int  # images through the denoiser


def gradient(moment: Moment, score: Score, preference: Preference, ensemble: RewardEnsemble) -> Gradient:
    """G for all views of a step; then score and preference train what they train."""
    before = moment.denoiser.images
    options, seen = moment.denoiser.options, score.seen(moment)
    with torch.no_grad():
        noised = score.noises(moment, preference.candidates(moment.fraction))
        x_t = moment.noised(noised.noise)
        tries = seen.guided(x_t)
        choice = preference.choose(seen, x_t, tries, ensemble)
        if score.asks:
            choice = trimmed(choice)
        chosen, x_t = noised.gather(choice.kept), gather(x_t, choice.kept)
        kept = score.refined(seen, x_t, tries.map(lambda z: gather(z, choice.kept)))
        residuals = kept.eps - score.baseline(moment, chosen, kept)
        merged = preference.combine(seen, kept, residuals, choice)
        w = _weights(chosen_weighting(options, score), moment, kept.eps[0], chosen.noise[0])
        value = clipped(options, moment.fraction, w * merged)
        first = kept.map(lambda z: z[0])
        on_render = preference.on_render(seen, first.x0, value, w, ensemble)
        learned = {**score.learn(moment), **preference.learn(seen, x_t[0], first, ensemble)}
    return Gradient(
        value=value,
        on_render=on_render,
        x0=tries.x0,
        rewards=choice.rewards,
        kept=choice.kept,
        weights=choice.weights,
        metrics={**choice.metrics, **learned},
        model_calls=moment.denoiser.images - before,
        paired=choice.paired,
    )


def _weights(name: str, moment: Moment, eps: Tensor, noise: Tensor) -> Tensor:
    """Of all views, [B, 1, 1, 1], by the first kept candidate where its residual tells."""
    return weights_by_residual(eps, noise) if name == "dmd" else weight(name, *moment.amplitudes())


def trimmed(choice: Choice) -> Choice:
    """Without the last candidates that count nowhere, which a network need not be asked about.

    This waits for the device; where nothing is asked, a candidate without weight costs nothing.
    """
    if choice.paired or len(choice.kept) == 1:
        return choice
    most = max(int((choice.weights != 0).sum(0).max()), 1)
    return replace(choice, kept=choice.kept[:most], weights=choice.weights[:most])


def inject(x: Tensor, value: Tensor, images: Tensor | None = None, on_render: Tensor | None = None) -> None:
    """Back-propagate G / B from x: the gradient of 1/2 |x - sg(x - G)|^2 / B, without the loss.

    A gradient with respect to the render [B, 3, H, W] that x was encoded from goes along.
    """
    if images is None or on_render is None:
        x.backward(value / len(x))  # type: ignore[no-untyped-call]
    else:
        torch.autograd.backward([x, images], [value / len(x), on_render])
