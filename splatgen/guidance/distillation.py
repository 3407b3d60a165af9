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
from splatgen.guidance.moment import Moment
from splatgen.guidance.preferences import Choice, Preference
from splatgen.guidance.scores import Score
from splatgen.guidance.scores.base import Metrics
from splatgen.rewards.ensemble import RewardEnsemble


def weight(name: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """w(t) by name: sds (DreamFusion: sigma^2 = 1 - abar), uniform, sigma (sigma/alpha), fantasia3d.

    For a flow sigma is t itself, and 1 - abar, the share of the noise in the power, is not sigma^2: there
    sds is t^2.
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
    raise ValueError(f"no weighting {name!r}; there are: sds, uniform, sigma, fantasia3d")


def chosen_weighting(options: GuidanceOptions, score: Score) -> str:
    """The weighting of a run by name: auto is the score's own."""
    return score.weighting if options.weighting == "auto" else options.weighting


def time_range(options: GuidanceOptions, fraction: float) -> tuple[float, float]:
    """Smallest and largest t at a fraction of the run: both fall linearly over `anneal`."""
    begin, end = options.anneal
    done = min(max((fraction - begin) / max(end - begin, 1e-9), 0.0), 1.0)
    low = options.t_min if options.t_min_start is None else options.t_min_start
    first, last = options.t_max
    return low + (options.t_min - low) * done, first + (last - first) * done


def annealed_time(options: GuidanceOptions, fraction: float) -> float:
    """One time for all views: from the first t_max down to t_min, linearly over the run."""
    return options.t_max[0] + (options.t_min - options.t_max[0]) * min(max(fraction, 0.0), 1.0)


def draw_times(
    options: GuidanceOptions, score: Score, fraction: float, items: int, generator: torch.Generator
) -> Tensor:
    """The time of every item, [G]."""
    if (score.times if options.times == "auto" else options.times) == "annealed":
        return torch.full((items,), annealed_time(options, fraction))
    return sample_times(generator, items, *time_range(options, fraction))


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
    options = moment.denoiser.options
    alpha, sigma = moment.amplitudes()
    with torch.no_grad():
        noised = score.noises(moment, preference.candidates(moment.fraction))
        x_t = moment.noised(noised.noise)
        tries = moment.guided(x_t)
        choice = preference.choose(moment, x_t, tries, ensemble)
        if score.asks:
            choice = trimmed(choice)
        kept = tries.map(lambda z: gather(z, choice.kept))
        residuals = kept.eps - score.baseline(moment, noised.gather(choice.kept), kept)
        merged = preference.combine(moment, kept, residuals, choice)
        w = weight(chosen_weighting(options, score), alpha, sigma)
        value = w * merged
        first = kept.map(lambda z: z[0])
        on_render = preference.on_render(moment, first.x0, value, w, ensemble)
        learned = {
            **score.learn(moment),
            **preference.learn(moment, gather(x_t, choice.kept)[0], first, ensemble),
        }
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
