"""Diffusion priors: the protocol that every one meets, and the table of those there are.

A prior speaks continuous time t in [0, 1] and predicts noise, whatever its network was trained on.
Not here: what is done with a prediction (guidance), and rewards.

Shapes: B images or latents, C x h x w the prior's own space.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from splatgen.models import registry
from splatgen.models.budget import LoadOptions, Precision, load_options

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from splatgen.config import Method, PriorOptions
    from splatgen.scene.cameras import Cameras

Conditioning = dict[str, "Tensor"]  # every tensor has the batch first: concatenate and index freely


class Prior(Protocol):
    """What guidance needs of a diffusion model."""

    name: str
    views: int  # images denoised together: 1, or 4 for a multi-view prior; they follow one another in a batch
    resolution: int  # image side in pixels that it was trained on
    x_range: tuple[float, float] | None  # of clean x in a pixel prior; None for latents
    prediction: Literal["epsilon", "velocity"]  # what its network was trained to predict
    source: str  # where its weights are from: id@revision, or a path

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to x [B, C, h, w], differentiably."""

    def decode(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] to images [B, 3, H, W] in 0..1, differentiably."""

    def preview(self, x: Tensor) -> Tensor:
        """As decode, for ranking candidates: may be cheaper and less exact."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise amplitudes at times t [B], each [B, 1, 1, 1]."""

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of prompts, batch first; raises ValueError for what it cannot read."""

    def release(self) -> None:
        """Free what only `embed` needs; the next `embed` loads it again."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        """The noise in x_t [B, C, h, w] at t [B]; the caller decides about gradients."""


class CoveragePrior(Prior, Protocol):
    """A prior of cut-out things (PriorEntry.coverage)."""

    def encode(self, images: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Images [B, 3, H, W] with nothing behind them (on black) and their coverage [B, 1, H, W] to x.

        None is coverage of the whole image.
        """

    def cutouts(self, x: Tensor) -> Tensor:
        """x to cut-outs [B, 4, H, W] in 0..1: colours with nothing behind them, and their coverage."""


class Adapter(Protocol):
    """A trainable copy of a prior's denoiser that shares its frozen weights (VSD)."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name."""

    def enabled(self) -> AbstractContextManager[None]:
        """Where `predict` and the backward pass of what it returns happen; outside, the prior is itself."""

    def predict(
        self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras, told: Tensor
    ) -> Tensor:
        """The noise in x_t [B, C, h, w], as the copy sees it; told [B] is 1 where it may know the camera."""


class AdaptablePrior(Prior, Protocol):
    """A prior that can be copied for training."""

    def adapter(self, rank: int, generator: torch.Generator) -> Adapter:
        """A copy that predicts what the prior does until it is trained; it replaces an earlier one."""


@dataclass(frozen=True, kw_only=True)
class PriorEntry:
    """Where a prior is, and what can be known of it before anything is loaded."""

    loader: str  # "module:function", called with (PriorOptions, LoadOptions)
    options: tuple[str, ...] = ()  # of PriorOptions, those that it reads
    views: int = 1
    coverage: bool = False  # `encode` reads the render's alpha: see CoveragePrior
    adapter: bool = True
    half: Precision = "float16"  # what half precision is for it
    embedded: bool = False  # part of the package
    large: bool = False  # gigabytes in half precision: under small budgets its networks take turns


_NETWORK = ("model", "revision", "dtype", "compile")
_LATENT = (*_NETWORK, "lora", "lora_scale", "preview")
_STABLE = (*_LATENT, "prediction")
_TOYBOX = ("model", "camera")
_SHELF = (*_TOYBOX, "dtype")

PRIORS = {
    "toybox": PriorEntry(loader="splatgen.priors.toybox:load", options=_TOYBOX, embedded=True),
    "toybox-mini": PriorEntry(loader="splatgen.priors.toybox:load_mini", options=_TOYBOX, embedded=True),
    "shelf": PriorEntry(
        loader="splatgen.priors.shelf:load", options=_SHELF, coverage=True, half="bfloat16", embedded=True
    ),
    "sd15": PriorEntry(loader="splatgen.priors.stable_diffusion:load_sd15", options=_STABLE),
    "sd21": PriorEntry(loader="splatgen.priors.stable_diffusion:load_sd21", options=_STABLE),
    "sdxl": PriorEntry(loader="splatgen.priors.sdxl:load", options=_STABLE, large=True),
    "deepfloyd": PriorEntry(loader="splatgen.priors.deepfloyd:load", options=_NETWORK, large=True),
    "sd3": PriorEntry(
        loader="splatgen.priors.flow:load_sd3", options=(*_LATENT, "t5"), half="bfloat16", large=True
    ),
    "sd35": PriorEntry(
        loader="splatgen.priors.flow:load_sd35", options=(*_LATENT, "t5"), half="bfloat16", large=True
    ),
    "mvdream": PriorEntry(
        loader="splatgen.priors.mvdream:load", options=(*_NETWORK, "preview", "camera"), views=4
    ),
}


def load_options_for(config: Method, device: str) -> LoadOptions:
    """How a run's models are kept on a device, in the half precision that suits its prior.

    Raises ValueError for a prior that is not there.
    """
    entry = registry.entry(PRIORS, "prior", config.prior)
    return load_options(config, device, entry.half, large=entry.large)


def load_prior(name: str, options: PriorOptions, load_options: LoadOptions) -> Prior:
    """Load a prior by name; ValueError for a name that is not there, WeightsError for what is not whole."""
    prior: Prior = registry.loader(registry.entry(PRIORS, "prior", name).loader)(options, load_options)
    return prior
