"""Priors whose predictions are known in closed form, and other helpers of the optimisation's tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from splatgen.config import BridgeOptions, GuidanceOptions
from splatgen.guidance.conditioning import conditions, embed_pair, embed_prompt, pair_conditions
from splatgen.guidance.denoiser import Denoiser
from splatgen.guidance.distillation import draw_times, gradient, inject
from splatgen.guidance.moment import Moment, Source
from splatgen.guidance.preferences import NoPreference
from splatgen.guidance.scores import Score
from splatgen.priors import Conditioning, Prior
from splatgen.runs.rng import rng
from splatgen.scene.cameras import Cameras, turntable

PLAIN = GuidanceOptions(scale=1.0, clamp=False)


def normal(purpose: str, *shape: int) -> Tensor:
    """Standard normal numbers in float64, the same for the same purpose; [2, 3, 6, 6] unless told."""
    return torch.randn(shape or (2, 3, 6, 6), generator=rng(0, 0, purpose)).double()


def pattern(cameras: Cameras) -> Tensor:
    """An image that depends on the azimuth, [B, 3, 6, 6], in -1..1."""
    u = torch.linspace(0, 3, 108, dtype=torch.float64).view(1, 3, 6, 6)
    return torch.sin(u + torch.deg2rad(cameras.azimuth.double())[:, None, None, None])


class Analytic:
    """What all priors here share: pixels in -1..1, a cosine schedule, and a count of images in `calls`."""

    name = "analytic"
    source = "a formula"
    prediction = "epsilon"
    views = 1
    resolution = 16
    x_range: tuple[float, float] | None = (-1.0, 1.0)
    calls = 0

    def encode(self, images: Tensor) -> Tensor:
        return 2.0 * images - 1.0

    def decode(self, x: Tensor) -> Tensor:
        return (0.5 * (x + 1.0)).clamp(0.0, 1.0)

    def preview(self, x: Tensor) -> Tensor:
        return self.decode(x)

    def release(self) -> None:
        """Nothing to free."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = (math.pi / 2 * t)[:, None, None, None]
        return angle.cos(), angle.sin()

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        return {"known": torch.tensor([float(bool(p.strip())) for p in prompts], dtype=torch.float64)}


class GaussianPrior(Analytic):
    """The denoiser of data distributed as N(mean(camera), spread^2) around one image a camera.

        x_t ~ N(alpha mean, alpha^2 spread^2 + sigma^2),
        eps(x_t) = sigma (x_t - alpha mean) / (alpha^2 spread^2 + sigma^2)

    An empty prompt has a mean of 0 (mid-grey).
    """

    name = "gaussian"

    def __init__(
        self,
        mean: Callable[[Cameras], Tensor],  # -> [B, C, h, w] in the prior's space
        *,
        spread: float = 0.0,
        resolution: int = 16,
        x_range: tuple[float, float] | None = (-1.0, 1.0),
        views: int = 1,
        prediction: str = "epsilon",
    ) -> None:
        self.mean = mean
        self.spread = spread
        self.resolution = resolution
        self.x_range = x_range
        self.views = views
        self.prediction = prediction

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        self.calls += len(x_t)
        return self.noise_in(x_t, t, condition, cameras, torch.zeros_like(x_t))

    def noise_in(
        self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras, shift: Tensor
    ) -> Tensor:
        """The prediction with a mean that is off by `shift` [B, C, h, w]."""
        mean = condition["known"].to(x_t)[:, None, None, None] * self.mean(cameras).to(x_t)
        alpha, sigma = self.alpha_sigma(t)
        return sigma * (x_t - alpha * (mean + shift)) / (alpha**2 * self.spread**2 + sigma**2)

    def adapter(self, rank: int, generator: torch.Generator) -> GaussianAdapter:
        return GaussianAdapter(self, rank, generator)


class GaussianAdapter:
    """A copy of a Gaussian prior with a mean of its own: one image, and two more that follow the camera.

    mean(camera) + image + told (cos(azimuth) first + sin(azimuth) second), where all three start at zero.
    """

    def __init__(self, prior: GaussianPrior, rank: int, generator: torch.Generator) -> None:
        self.prior = prior
        self.rank = rank
        self.generator = generator
        self.on = False
        self.calls = 0
        shape = prior.mean(turntable(1, size=prior.resolution)).shape[1:]
        self.image = torch.nn.Parameter(torch.zeros(1, *shape, dtype=torch.float64))
        self.turn = torch.nn.Parameter(torch.zeros(2, *shape, dtype=torch.float64))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {"image": self.image, "turn": self.turn}

    @contextmanager
    def enabled(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def predict(
        self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras, told: Tensor
    ) -> Tensor:
        if not self.on:
            raise RuntimeError("the copy is not switched on")
        self.calls += len(x_t)
        angle = torch.deg2rad(cameras.azimuth.double())
        share = told.double()[:, None] * torch.stack([angle.cos(), angle.sin()], 1)  # [B, 2]
        shift = self.image + torch.einsum("bn,nchw->bchw", share, self.turn)
        return self.prior.noise_in(x_t, t, condition, cameras, shift.to(x_t))


class ConstantPrior(Analytic):
    """Predicts one noise whatever it is given: a number, or a tensor that broadcasts to [B, C, h, w]."""

    name = "constant"

    def __init__(self, value: float | Tensor = 0.5, *, views: int = 1) -> None:
        self.value = value
        self.views = views

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        self.calls += len(x_t)
        return torch.zeros_like(x_t) + self.value


class GroupPrior(Analytic):
    """A smooth denoiser in which everything tells: x_t, time, words, camera, and the other views of a group.

    Rows that were laid out wrongly, or groups that were torn apart, change its predictions. Permuting the
    views of a group together with their cameras permutes them.
    """

    name = "group"
    x_range = None

    def __init__(self, views: int = 2) -> None:
        self.views = views

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """A random colour for each text, the same every time; zero for an empty one."""
        colours = [torch.randn(3, generator=rng(0, 0, p)) * float(bool(p.strip())) for p in prompts]
        return {"colour": torch.stack(colours).double()}

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        if len(x_t) % self.views:
            raise ValueError(f"{len(x_t)} images are no whole number of groups of {self.views} views")
        self.calls += len(x_t)
        group = x_t.reshape(-1, self.views, *x_t.shape[1:]).mean(1).repeat_interleave(self.views, 0)
        turn = torch.deg2rad(cameras.azimuth + 0.5 * cameras.elevation).to(x_t)[:, None, None, None]
        told = condition["colour"].to(x_t)[:, :, None, None] * (1.0 + 0.5 * turn.sin())
        return torch.tanh(0.7 * x_t - 0.4 * group + 0.3 * told + t.view(-1, 1, 1, 1)) + 0.2 * told


def expected_direction(x: Tensor, mean: Tensor, alpha: Tensor, sigma: Tensor, spread: float) -> Tensor:
    """E over noises of eps_hat - eps for `GaussianPrior` at guidance scale 1."""
    return sigma * alpha * (x - mean) / (alpha**2 * spread**2 + sigma**2)


def moment(
    prior: Prior,
    x: Tensor,  # [B, C, h, w]
    t: float | Tensor,  # for all views, or [B]
    *,
    cameras: Cameras | None = None,  # else a turntable of B views
    options: GuidanceOptions = PLAIN,
    step: int = 0,
    steps: int = 100,
    seed: int = 0,
    prompt: str = "a",
    negative: str | Conditioning = "",  # a text or one embedded row
    source: Source | None = None,
    images: Tensor | None = None,  # [B, 3, H, W] the render; x decoded unless given
    pair: BridgeOptions | None = None,  # the words of a second pair of prompts
) -> Moment:
    """One step of a run as scores and preferences see it."""
    cameras = turntable(len(x), size=x.shape[-1]) if cameras is None else cameras
    times = torch.full((len(x),), t, dtype=x.dtype) if isinstance(t, float) else t.to(x)
    told = embed_prompt(prior, prompt)
    behind = prior.embed([negative]) if isinstance(negative, str) else negative
    plain, null = GuidanceOptions(view_prompts="none"), prior.embed([""])
    return Moment(
        denoiser=Denoiser(prior, options),
        x=x.detach(),
        images=prior.decode(x).detach() if images is None else images.detach(),
        t=times,
        times=times,
        conditions=conditions(told, behind, cameras, options, null),
        plain=lambda: conditions(told, behind, cameras, plain, null),
        cameras=cameras,
        prompts=(prompt,) * len(x),
        seed=seed,
        step=step,
        steps=steps,
        source=source,
        pair=None
        if pair is None
        else lambda: pair_conditions(embed_pair(prior, prompt, pair), behind, cameras, options, null),
    )


def seen(
    prior: Prior,
    x: Tensor,  # [B, C, h, w]
    prompt: str,
    *,
    cameras: Cameras | None = None,
    options: GuidanceOptions = PLAIN,
    negative: str = "",
) -> Source:
    """What an edit starts from."""
    cameras = turntable(len(x), size=x.shape[-1]) if cameras is None else cameras
    told = conditions(embed_prompt(prior, prompt), prior.embed([negative]), cameras, options)
    return Source(x=x, conditions=told)


def distil(
    prior: GaussianPrior,
    score: Score,
    *,
    steps: int,
    lr: float = 0.05,
    options: GuidanceOptions = PLAIN,
    negative: str = "",
) -> float:
    """Optimise x itself, in float64, for two views; the root mean square distance to the prior's mean."""
    whole: Any = prior  # it has no adapter, and nothing here asks for one
    nothing: Any = None  # in place of rewards
    cameras = turntable(2, size=6)
    x = torch.zeros(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([x], lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * (1.0 - step / steps)
        t = draw_times(options, score, step / steps, 2, rng(0, step, "time"))
        seen_now = moment(
            whole, x, t, cameras=cameras, options=options, step=step, steps=steps, negative=negative
        )
        found = gradient(seen_now, score, NoPreference(), nothing)
        adam.zero_grad()
        inject(x, found.value)
        adam.step()
    return float((x.detach() - prior.mean(cameras)).square().mean().sqrt())
