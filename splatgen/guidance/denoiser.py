"""Guided predictions of noise: classifier-free guidance, Perp-Neg, rescaling, in batches that fit memory.

Shapes: M images at once, C x h x w the prior's space, A prompts to keep away from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from splatgen.config import GuidanceOptions
from splatgen.guidance.conditioning import Conditions
from splatgen.priors import Conditioning, Prior
from splatgen.scene.cameras import Cameras

Predict = Callable[[Tensor, Tensor, Conditioning, Cameras], Tensor]


def cfg(e_y: Tensor, e_n: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance in diffusers' convention, e_n + w (e_y - e_n) (Ho and Salimans 2022).

    The other convention, e_y + gamma (e_y - e_n), is w = 1 + gamma.
    """
    return e_n + scale * (e_y - e_n)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each image [M, C, h, w] with its partner, [M, 1, 1, 1]."""
    return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)


def perpendicular(a: Tensor, b: Tensor) -> Tensor:
    """The part of each a [M, C, h, w] that is at right angles to its b."""
    length = inner(b, b)
    return a - torch.where(length > 0, inner(a, b) / length.clamp_min(1e-30), 0.0) * b


def spread(x: Tensor, views: int = 1) -> Tensor:
    """Unbiased standard deviation of each image [M, C, h, w], or of each group of views, [M, 1, 1, 1]."""
    groups = x.reshape(len(x) // views, -1).std(dim=1)
    return groups.repeat_interleave(views).view(-1, 1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Guided predictions and the one-step estimates that go with them: x_t = alpha x0 + sigma eps.

    Before rescaling and clamping eps is base + scale direction, and beyond, where there is a null scale.
    """

    eps: Tensor  # [M, C, h, w]
    x0: Tensor  # [M, C, h, w]
    conditional: Tensor  # [M, C, h, w] e_y (e_n at a scale of 0)
    base: Tensor | None  # [M, C, h, w] e_n; None where a scale of 0 or 1 needs one prediction only
    direction: Tensor | None  # [M, C, h, w] e_y - e_n, and Perp-Neg's part
    scale: float
    beyond: Tensor | None = None  # [M, C, h, w] null scale times e_y - e_0, e_0 of the empty prompt

    @property
    def classifier(self) -> Tensor:
        """What guidance adds to the conditional prediction: gamma (e_y - e_n), gamma = scale - 1; beyond."""
        if self.base is None or self.direction is None:
            return torch.zeros_like(self.conditional)
        added = self.base + self.scale * self.direction - self.conditional
        return added if self.beyond is None else added + self.beyond

    @property
    def adjustment(self) -> Tensor:
        """What rescaling and clamping added to eps; a score that subtracts a prediction takes it off."""
        return self.eps - self.conditional - self.classifier

    def map(self, function: Callable[[Tensor], Tensor]) -> Guided:
        """The same with a function of every tensor."""
        return Guided(
            eps=function(self.eps),
            x0=function(self.x0),
            conditional=function(self.conditional),
            base=None if self.base is None else function(self.base),
            direction=None if self.direction is None else function(self.direction),
            scale=self.scale,
            beyond=None if self.beyond is None else function(self.beyond),
        )


def gather(z: Tensor, kept: Tensor) -> Tensor:
    """Of z [K, B, C, h, w] the entries `kept` [M, B]: [M, B, C, h, w]."""
    return z[kept, torch.arange(z.shape[1], device=z.device)]


class Denoiser:
    """A prior that counts its images and takes large batches in parts."""

    def __init__(self, prior: Prior, options: GuidanceOptions, learning: int = 0) -> None:
        self.prior = prior
        self.options = options
        self.learning = learning  # most images at once where a gradient goes through networks; 0 takes all
        self.images = 0  # through the network so far
        self.largest = 0  # number of images that were asked for at once

    def changed(self, **fields: Any) -> Denoiser:
        """Another of the same prior, with some options changed; its count begins anew."""
        return Denoiser(self.prior, replace(self.options, **fields), self.learning)

    def parts(self, rows: Tensor) -> list[Tensor]:
        """Rows [R] of views, in parts of whole items through which a gradient can go at once."""
        views = self.prior.views
        return list(torch.split(rows, max(self.learning // views, 1) * views if self.learning else len(rows)))

    def raw(
        self,
        x_t: Tensor,  # [M, C, h, w]
        t: Tensor,  # [M]
        condition: Conditioning,
        cameras: Cameras,
        network: Predict | None = None,
    ) -> Tensor:
        """The noise in x_t without guidance, by the prior or by a network that stands in for it."""
        network = network or self.prior.predict
        self.images += len(x_t)
        self.largest = max(self.largest, len(x_t))
        views = self.prior.views
        part = max(self.options.batch // views, 1) * views if self.options.batch else len(x_t)
        pieces = []
        for n in range(0, len(x_t), part):
            s = slice(n, n + part)
            piece = {name: value[s] for name, value in condition.items()}
            pieces.append(network(x_t[s], t[s], piece, cameras[s]))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    @torch.no_grad()
    def guided(
        self,
        x_t: Tensor,  # [M, C, h, w]
        t: Tensor,  # [M]
        conditions: Conditions,
        cameras: Cameras,
        *,
        scale: float,
        null_scale: float = 0.0,
        plain: bool = False,
        rescaled: bool = True,
    ) -> Guided:
        """All prompts of all images in one batch, guided: e_n + w (e_y - e_n) + w_0 (e_y - e_0).

        w is scale and w_0 the null scale, of the empty prompt. plain leaves rescaling and clamping out,
        rescaled = False the former only.
        """
        how: dict[str, Any] = {"scale": scale, "plain": plain, "rescaled": rescaled}
        if scale == 0.0 and null_scale == 0.0:  # unconditional
            e_n = self.raw(x_t, t, conditions.negative, cameras)
            return self.finish(x_t, t, e_n, None, None, **how)
        if scale == 1.0 and null_scale == 0.0 and not conditions.away:  # the negative would cancel
            e_y = self.raw(x_t, t, conditions.positive, cameras)
            return self.finish(x_t, t, e_y, None, None, **how)
        null = [] if null_scale == 0.0 else [conditions.unprompted.negative]
        told = [conditions.positive, conditions.negative, *conditions.away, *null]
        together = {name: torch.cat([c[name] for c in told]) for name in conditions.positive}
        count = len(told)
        e = self.raw(x_t.repeat(count, 1, 1, 1), t.repeat(count), together, cameras.repeated(count))
        e_y, e_n, *others = e.chunk(len(told))
        beyond = null_scale * (e_y - others.pop()) if null else None
        direction = e_y - e_n
        if others and conditions.away_weights is not None:
            weights = conditions.away_weights.to(e)[:, :, None, None, None]  # [A, M, 1, 1, 1]
            aside = [w * perpendicular(o - e_n, e_y - e_n) for w, o in zip(weights, others, strict=True)]
            direction = direction + torch.stack(aside).sum(0)
        return self.finish(x_t, t, e_y, e_n, direction, beyond=beyond, **how)

    def finish(
        self,
        x_t: Tensor,  # [M, C, h, w]
        t: Tensor,  # [M]
        conditional: Tensor,  # [M, C, h, w]
        base: Tensor | None,
        direction: Tensor | None,
        scale: float,
        plain: bool = False,
        rescaled: bool = True,
        beyond: Tensor | None = None,
    ) -> Guided:
        """eps = base + scale direction + beyond, the one-step estimate, and both rescaled and clamped.

        Rescaling is Lin et al. 2023, eq. 15-16, on x0 and over all views of an item, as MVDream does.
        """
        eps = conditional if base is None or direction is None else base + scale * direction
        eps = eps if beyond is None else eps + beyond
        rescale, x_range = self.options.rescale if rescaled else 0.0, self.prior.x_range
        alpha, sigma = amplitudes(self.prior, t)
        x0 = (x_t - sigma * eps) / alpha
        clamp = self.options.clamp and x_range is not None
        if rescale > 0 and not plain:
            usual = (x_t - sigma * conditional) / alpha
            views = self.prior.views
            factor = (spread(usual, views) + 1e-8) / (spread(x0, views) + 1e-8)
            x0 = torch.lerp(x0, factor * x0, rescale)
        if clamp and not plain:
            x0 = x0.clamp(*x_range)  # type: ignore[misc]
        if (clamp or rescale > 0) and not plain:
            eps = torch.where(sigma > 0, (x_t - alpha * x0) / sigma.clamp_min(1e-12), eps)
        return Guided(
            eps=eps,
            x0=x0,
            conditional=conditional,
            base=base,
            direction=direction,
            scale=scale,
            beyond=beyond,
        )


def amplitudes(prior: Prior, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t [M], each [M, 1, 1, 1]; at t = 0 exactly 1 and 0, also where a table says less."""
    alpha, sigma = prior.alpha_sigma(t)
    clean = (t == 0).view(-1, 1, 1, 1)
    return alpha.masked_fill(clean, 1.0), sigma.masked_fill(clean, 0.0)
