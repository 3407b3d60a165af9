"""The step that `splatgen.loop.step.advance` makes, as one writes it down first.

One candidate after the other, each guided as a batch of two prompts and scored by itself; the predictions of
the kept ones over again, as RewardSDS's code does; attention as matrices; weights in torch's usual layout.
Render, injection and update are the program's own.

Shapes: B views, N candidates, C x h x w latents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from splatgen.config import Config
from splatgen.guidance.conditioning import repeat
from splatgen.guidance.distillation import inject, weight
from splatgen.guidance.moment import Moment
from splatgen.loop.step import Models, descend, make_moment, render_views
from splatgen.priors import Prior
from splatgen.scene.parameters import Scene


class NaiveStep:
    """Steps of a config; what psd learns is kept here, so that the models learn nothing."""

    def __init__(self, config: Config, models: Models) -> None:
        self.config, self.models = config, models
        self.images = 0  # through the denoiser
        self.negative = {name: value.clone() for name, value in models.negative.items()}
        self._adam = torch.optim.Adam(list(self.negative.values()), lr=config.psd.lr)

    def __call__(self, scene: Scene) -> Tensor:
        """G [B, C, h, w] of one step, which moves the scene."""
        config, prior = self.config, self.models.prior
        out, cameras = render_views(config, scene, scene.step / config.steps)
        x = prior.encode(out.rgb)
        moment = make_moment(
            config, self.models, step=scene.step, x=x, images=out.rgb, cameras=cameras, before=None
        )
        kind = {"none": self.plain, "weighted": self.weighted, "psd": self.psd}[config.preference]
        with torch.no_grad():
            alpha, sigma = prior.alpha_sigma(moment.t)
            value = weight(config.guidance.weighting, alpha, sigma) * kind(moment, moment.rng("noise"))
        inject(x, value)
        descend(config, scene, out, torch.isfinite(value).all())
        return value

    def plain(self, moment: Moment, draws: torch.Generator) -> Tensor:
        noise, x_t = noised(moment, draws)
        return self.guided(moment, x_t, moment.t) - noise

    def weighted(self, moment: Moment, draws: torch.Generator) -> Tensor:
        o, total = self.config.weighted, torch.zeros_like(moment.x)
        noises, x_ts, rewards = [], [], []
        for _ in range(o.candidates):
            noise, x_t = noised(moment, draws)
            noises.append(noise)
            x_ts.append(x_t)
            rewards.append(self.scores(moment, self.looked_ahead(moment, x_t)))
        order = torch.stack(rewards).argsort(dim=0, descending=True)  # [N, B]
        kept = [(o.top_weight / o.top, chosen) for chosen in order[: o.top]]
        kept += [(-o.bottom_weight / o.bottom, chosen) for chosen in order[-o.bottom :]]
        for share, chosen in kept:
            residual = self.guided(moment, picked(x_ts, chosen), moment.t) - picked(noises, chosen)
            total = total + share * residual
        return total

    def psd(self, moment: Moment, draws: torch.Generator) -> Tensor:
        residuals, guides, rewards, given = [], [], [], []
        for _ in range(2):
            noise, x_t = noised(moment, draws)
            e_y, e_n = self.both(moment, x_t, moment.t)
            eps = e_n + moment.scale * (e_y - e_n)
            residuals.append(eps - noise)
            guides.append((moment.scale - 1.0) * (e_y - e_n))
            rewards.append(self.scores(moment, clean(moment.prior, x_t, eps, moment.t)))
            given.append(torch.stack([x_t, e_y], 1))
        win = (rewards[1] > rewards[0]).long()
        push = picked(residuals, win) - picked(residuals, 1 - win)
        gap = (rewards[0] - rewards[1]).abs()
        strength = torch.sigmoid(-gap / self.config.psd.temperature).view(-1, 1, 1, 1)
        views = moment.prior.views
        beta = strength * norms(picked(guides, win), views) / norms(push, views)
        if moment.step % self.config.psd.interval == 0:
            self.learn(moment, *picked(given, win).unbind(1))
        return picked(residuals, win) + beta * push

    def learn(self, moment: Moment, x_t: Tensor, e_y: Tensor) -> None:
        """One step of the negative embedding up the reward of the winners' estimates."""
        prior, rows = moment.prior, torch.arange(len(x_t))
        learned = {name: value.clone().requires_grad_() for name, value in self.negative.items()}
        self.images += len(x_t)
        with torch.enable_grad():
            e_n = prior.predict(x_t, moment.t, repeat(learned, len(x_t)), moment.cameras[rows])
            eps = e_n + moment.scale * (e_y - e_n)
            image = prior.decode(clean(prior, x_t, eps, moment.t)).clamp(0.0, 1.0)
            rewards = self.models.ensemble.rewards[0](image, moment.prompts)
            gradients = torch.autograd.grad(rewards.mean(), list(learned.values()))
        for value, gradient in zip(self.negative.values(), gradients, strict=True):
            value.grad = -gradient
        self._adam.step()

    def both(self, moment: Moment, x_t: Tensor, t: Tensor) -> Sequence[Tensor]:
        """e_y and e_n of one candidate of all views."""
        negative, positive = repeat(self.negative, len(x_t)), moment.conditions.positive
        told = {name: torch.cat([positive[name], negative[name]]) for name in positive}
        cameras = moment.cameras[torch.arange(len(x_t)).repeat(2)]
        self.images += 2 * len(x_t)
        found = moment.prior.predict(torch.cat([x_t, x_t]), t.repeat(2), told, cameras)
        return found.chunk(2)

    def guided(self, moment: Moment, x_t: Tensor, t: Tensor) -> Tensor:
        e_y, e_n = self.both(moment, x_t, t)
        return e_n + moment.scale * (e_y - e_n)

    def looked_ahead(self, moment: Moment, x: Tensor) -> Tensor:
        """Deterministic DDIM from the step's time, which all views share, down a grid to 0."""
        steps, start = self.config.weighted.lookahead, float(moment.times[0])
        times = [start, *(n / steps for n in range(steps - 1, 0, -1) if n / steps < start)]
        for n, here in enumerate(times):
            t = torch.full_like(moment.t, here)
            eps = self.guided(moment, x, t)
            x = clean(moment.prior, x, eps, t)
            if n + 1 < len(times):
                alpha, sigma = moment.prior.alpha_sigma(torch.full_like(t, times[n + 1]))
                x = alpha * x + sigma * eps
        return x

    def scores(self, moment: Moment, x0: Tensor) -> Tensor:
        """Rewards of estimates, the mean over the views of an item: [B]."""
        images = moment.prior.decode(x0).clamp(0.0, 1.0)
        rewards = self.models.ensemble.rewards[0](images, moment.prompts)
        return moment.views(moment.items(rewards))


def noised(moment: Moment, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """The next candidate: its noise, and x_t."""
    noise = torch.randn(moment.x.shape, generator=draws).to(moment.x)
    return noise, moment.noised(noise)


def clean(prior: Prior, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The one-step estimate."""
    alpha, sigma = prior.alpha_sigma(t)
    return (x_t - sigma * eps) / alpha


def picked(candidates: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Of each view the candidate that was chosen [B]; candidates are [B, ...]."""
    return torch.stack([candidates[k][b] for b, k in enumerate(chosen.tolist())])


def norms(z: Tensor, views: int) -> Tensor:
    """Of each item, for all its views, [B, 1, 1, 1]."""
    lengths: Tensor = torch.linalg.vector_norm(z.reshape(len(z) // views, -1), dim=1)
    return lengths.repeat_interleave(views).view(-1, 1, 1, 1)


class MatricesAcrossViews:
    """Attention of all views of a group, as matrices."""

    def __init__(self, views: int) -> None:
        self._views, self._attend = views, AttnProcessor()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        together = hidden_states.reshape(-1, self._views * hidden_states.shape[1], hidden_states.shape[2])
        found: Tensor = self._attend(attn, together).reshape(hidden_states.shape)
        return found


@contextlib.contextmanager
def written_naively(prior: Prior) -> Iterator[None]:
    """A prior's networks with attention as matrices and weights in torch's usual layout, until it ends."""
    networks: Any = prior  # the protocol says nothing of what is inside
    parts = (networks.unet, networks.vae)
    before = [(network.attn_processors, layout(network)) for network in parts]
    for network in parts:
        network.set_attn_processor(
            {
                name: MatricesAcrossViews(prior.views) if across(prior, name) else AttnProcessor()
                for name in network.attn_processors
            }
        )
        network.to(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        for network, (processors, form) in zip(parts, before, strict=True):
            network.set_attn_processor(dict(processors))
            network.to(memory_format=form)


def across(prior: Prior, processor: str) -> bool:
    """Whether an attention of the UNet sees all views of a group."""
    return prior.views > 1 and ".attn1." in processor


def layout(network: torch.nn.Module) -> torch.memory_format:
    """channels_last where a network's convolutions are kept that way."""
    kernels = [p for p in network.parameters() if p.dim() == 4 and min(p.shape[1:3]) > 1]
    last = any(not p.is_contiguous() for p in kernels)
    return torch.channels_last if last else torch.contiguous_format
