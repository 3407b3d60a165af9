"""One step as scores and preferences see it.

Shapes: B views, G items (a view for a single-view prior, a group of views for a multi-view one), K
candidates, C x h x w the prior's space, H x W the render.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from splatgen.guidance.conditioning import Conditions, tile
from splatgen.guidance.denoiser import Denoiser, Guided, amplitudes
from splatgen.priors import Conditioning, Prior
from splatgen.runs.rng import rng
from splatgen.scene.cameras import Cameras
from splatgen.scene.uploads import upload


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an edit starts from, seen by the same cameras."""

    x: Tensor  # [B, C, h, w]
    conditions: Conditions


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Nothing here carries a gradient."""

    denoiser: Denoiser
    x: Tensor  # [B, C, h, w] the encoded render
    images: Tensor  # [B, 3, H, W] the render, 0..1
    t: Tensor  # [B]
    times: Tensor  # [B] the same, on the CPU: what is decided by them need not wait for the device
    conditions: Conditions
    plain: Callable[[], Conditions]  # without words for the view, for those who ask
    cameras: Cameras  # on the CPU
    prompts: tuple[str, ...]  # B, as rewards read them
    seed: int
    step: int  # of the run
    steps: int  # of the stage
    source: Source | None = None
    begin: int = 0  # step at which the stage began

    @property
    def prior(self) -> Prior:
        return self.denoiser.prior

    @property
    def scale(self) -> float:
        """Of the guidance."""
        return self.denoiser.options.scale

    @property
    def fraction(self) -> float:
        """Of the stage that is done: of the run, where that has but one."""
        return (self.step - self.begin) / self.steps

    def rng(self, purpose: str) -> torch.Generator:
        return rng(self.seed, self.step, purpose)

    def amplitudes(self) -> tuple[Tensor, Tensor]:
        """alpha and sigma of every view, each [B, 1, 1, 1]."""
        return amplitudes(self.prior, self.t)

    def noised(self, noises: Tensor, x: Tensor | None = None) -> Tensor:
        """x_t of every candidate: noises [K, B, C, h, w]; x is the render's unless given."""
        alpha, sigma = self.amplitudes()
        return alpha * (self.x if x is None else x) + sigma * noises

    def guided(
        self,
        x_t: Tensor,  # [K, R, C, h, w]
        *,
        t: Tensor | None = None,  # [R], else the step's
        rows: Tensor | None = None,  # [R] which views, on the CPU, else all
        scale: float | None = None,
        conditions: Conditions | None = None,
        plain: bool = False,
    ) -> Guided:
        """Guided predictions [K, R, C, h, w], all in one batch."""
        given, cameras = self.conditions if conditions is None else conditions, self.cameras
        if rows is not None:
            given, cameras = given.take(rows), cameras[rows]
        if t is None:
            t = self.t if rows is None else self.t[upload(rows, self.t.device)]
        found = self.denoiser.guided(
            x_t.flatten(0, 1),
            t.repeat(len(x_t)),
            given.repeated(len(x_t)),
            cameras.repeated(len(x_t)),
            scale=self.scale if scale is None else scale,
            plain=plain,
        )
        return found.map(lambda z: z.view(x_t.shape))

    def repeated(self, condition: Conditioning, count: int) -> tuple[Conditioning, Cameras, Tensor]:
        """Rows of a condition, cameras and times [K B] for `count` candidates of every view."""
        return tile(condition, count), self.cameras.repeated(count), self.t.repeat(count)

    def items(self, values: Tensor) -> Tensor:
        """Means over the views of each item: [..., B] to [..., G]."""
        return values.view(*values.shape[:-1], -1, self.prior.views).mean(-1)

    def views(self, values: Tensor) -> Tensor:
        """Each item's value for all its views: [..., G] to [..., B]."""
        return values.repeat_interleave(self.prior.views, dim=-1)
