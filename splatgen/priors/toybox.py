"""The embedded prior: a pixel diffusion model of the toybox world, v-prediction, cosine schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from splatgen.config import PriorOptions
from splatgen.models.budget import LoadOptions
from splatgen.priors import Conditioning
from splatgen.priors.lora import LoraAdapter
from splatgen.priors.pixels import from_pixels, to_side
from splatgen.runs.version import __version__
from splatgen.scene.cameras import Cameras
from splatgen.scene.uploads import upload
from splatgen.scene.view_prompts import split_view
from splatgen.worlds.toybox import weights_folder
from splatgen.worlds.toybox.grammar import parse
from splatgen.worlds.toybox.model import PriorNet, camera_features, load_net, tokenize
from splatgen.worlds.toybox.sampling import with_view


class ToyboxPrior:
    """Denoises whole images of its own side; larger renders are averaged down to it."""

    views = 1
    x_range = (-1.0, 1.0)
    prediction: Literal["velocity"] = "velocity"

    def __init__(self, net: PriorNet, *, name: str, camera: bool, source: str = "") -> None:
        self.name = name
        self.net = net
        self.resolution = net.config.size
        self.camera = camera
        self.source = source

    def encode(self, images: Tensor) -> Tensor:
        """Area average down to the prior's side, then -1..1: the world's own pixel is such an average."""
        return to_side(images, self.resolution)

    def decode(self, x: Tensor) -> Tensor:
        return from_pixels(x)

    def preview(self, x: Tensor) -> Tensor:
        return self.decode(x)

    def release(self) -> None:
        """Its text encoder is small, and stays."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = (math.pi / 2 * t)[:, None, None, None]
        return angle.cos(), angle.sin()

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        texts = []
        for prompt in prompts:
            text, word = split_view(prompt)
            texts.append(with_view(str(parse(text)), word) if text.strip() else "")
        with torch.no_grad():
            states, pooled = self.net.encode_text(tokenize(texts).to(self._device))
        return {"states": states, "pooled": pooled}

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        seen = upload(camera_features(cameras.azimuth, cameras.elevation), x_t.device).to(x_t.dtype)
        if not self.camera:
            seen = torch.zeros_like(seen)
        v: Tensor = self.net(x_t, t, condition["states"], condition["pooled"], seen)
        alpha, sigma = self.alpha_sigma(t)
        return sigma * x_t + alpha * v

    def adapter(self, rank: int, generator: torch.Generator) -> LoraAdapter:
        return LoraAdapter(self.net.unet, self.predict, rank=rank, generator=generator)

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device


def load(
    options: PriorOptions, load_options: LoadOptions, weights: str = "prior", name: str = "toybox"
) -> ToyboxPrior:
    """The packaged prior, or the one in the folder `options.model`. It always computes in float32."""
    folder = Path(options.model) if options.model else weights_folder()
    net = load_net(folder, weights)
    if not isinstance(net, PriorNet):
        raise ValueError(
            f"{folder / weights}.json describes a reward model: give a folder that holds a prior"
        )
    source = options.model or f"splatgen {__version__}"
    return ToyboxPrior(net.to(load_options.device), name=name, camera=options.camera, source=source)


def load_mini(options: PriorOptions, load_options: LoadOptions) -> ToyboxPrior:
    """A miniature of 16 pixels for tests and drafts."""
    return load(options, load_options, weights="mini-prior", name="toybox-mini")
