"""One step as scores and preferences see it.

Shapes: B views, G items (a view for a single-view prior, a group of views for a multi-view one), K
candidates, C x h x w the prior's space, H x W the render.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splatgen.guidance.conditioning import Conditions, tile
from splatgen.guidance.denoiser import Denoiser, Guided, amplitudes
from splatgen.guidance.noise_field import Surface, chosen_surface
from splatgen.priors import Conditioning, Prior
from splatgen.runs.rng import rng
from splatgen.scene.cameras import Cameras
from splatgen.scene.uploads import upload


def along(over: tuple[float, float], fraction: float, first: float, last: float) -> float:
    """From first to last, linearly between two fractions of the run; a step where those are equal."""
    begin, end = over
    done = min(max((fraction - begin) / max(end - begin, 1e-9), 0.0), 1.0)
    return first + (last - first) * done


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
    surface: Surface | None = None  # what the views see, where their noise is of one field
    pair: Callable[[], Conditions] | None = None  # the second one, for those who have it
    begin: int = 0  # step at which the stage began

    @property
    def prior(self) -> Prior:
        return self.denoiser.prior

    @property
    def scale(self) -> float:
        """Of the guidance, at this fraction of the run."""
        o = self.denoiser.options
        return o.scale if o.scale_end is None else along(o.scale_over, self.fraction, o.scale, o.scale_end)

    @property
    def null_scale(self) -> float:
        """Of the guidance away from the empty prompt, at this fraction of the run."""
        o = self.denoiser.options
        return along(o.scale_over, self.fraction, *o.null_scale)

    @property
    def fraction(self) -> float:
        """Of the stage that is done: of the run, where that has but one."""
        return (self.step - self.begin) / self.steps

    def rng(self, purpose: str) -> torch.Generator:
        return rng(self.seed, self.step, purpose)

    def amplitudes(self) -> tuple[Tensor, Tensor]:
        """alpha and sigma of every view, each [B, 1, 1, 1]."""
        return amplitudes(self.prior, self.t)

    def seeing(self, depth: Tensor, alpha: Tensor) -> Moment:
        """The same with what the views see, depth and alpha [B, 1, H, W], where noise is of one field."""
        o = self.denoiser.options
        return replace(self, surface=chosen_surface(o, self.fraction, depth, alpha, self.cameras))

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
        scale: float | None = None,  # else the step's, and its null scale
        null_scale: float | None = None,
        conditions: Conditions | None = None,
        plain: bool = False,
        rescaled: bool = True,
    ) -> Guided:
        """Guided predictions [K, R, C, h, w], all in one batch."""
        if null_scale is None:
            null_scale = self.null_scale if scale is None else 0.0
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
            null_scale=null_scale,
            plain=plain,
            rescaled=rescaled,
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
