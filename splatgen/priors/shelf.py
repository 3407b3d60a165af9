"""The embedded prior of real things: latent diffusion at 64 px on colour times coverage, and coverage.

It was trained on cut-out objects, so `encode` takes the render's alpha, and colours with nothing behind them.

Shapes: B images, H x W pixels, S the model's side, C x h x w latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from splatgen.config import PriorOptions
from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.priors import Conditioning
from splatgen.priors.latent import Latents, as_noise, check_match
from splatgen.priors.lora import LoraAdapter
from splatgen.priors.pixels import averaged
from splatgen.runs.version import __version__
from splatgen.scene.cameras import Cameras
from splatgen.scene.uploads import upload
from splatgen.scene.view_prompts import split_view
from splatgen.worlds.shelf import weights_folder
from splatgen.worlds.shelf.grammar import parse
from splatgen.worlds.shelf.model import FOLD, PriorNet, fold, load_net, prior_tokens, seen_from, unfold
from splatgen.worlds.training import fast_half

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

GREY = 0.5  # what decoded cut-outs are shown on
BLUR = 0.0  # standard deviation in pixels of a blur before the encoder; 0 is none


class ShelfPrior:
    """Denoises latents of cut-outs of its own side; larger renders are averaged down to it."""

    name = "shelf"
    views = 1
    x_range: tuple[float, float] | None = None
    prediction: Literal["velocity"] = "velocity"

    def __init__(
        self,
        *,
        net: PriorNet,
        vae: AutoencoderKL,
        camera: bool = True,
        half: bool = False,  # denoise in bfloat16
        blur: float = BLUR,
        source: str = "",
    ) -> None:
        """Take networks that are on their device; ValueError where they do not fit together."""
        check_match(self.name, "latent channels", net.config.latents, vae.config.latent_channels)
        self.net, self.vae = net, vae
        self.resolution = vae.config.sample_size * FOLD
        self.camera, self.half, self.blur, self.source = camera, half, blur, source
        self._latents = Latents(vae, resolution=vae.config.sample_size)

    def encode(self, images: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Images [B, 3, H, W] in 0..1 on black and their coverage [B, 1, H, W] to latents [B, C, h, w].

        Without coverage they count as covered whole, which no picture that the prior knows is.
        """
        alpha = torch.ones_like(images[:, :1]) if alpha is None else alpha
        small = averaged(torch.cat([images, alpha], 1), self.resolution)
        if self.blur > 0:
            small = blurred(small, self.blur)
        return self._latents.encode(fold(small))

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images [B, 3, S, S] in 0..1 on grey."""
        cutout = unfold(self._latents.decode(x))
        return (cutout[:, :3] + GREY * (1.0 - cutout[:, 3:])).clamp(0.0, 1.0)

    def cutouts(self, x: Tensor) -> Tensor:
        """Latents to cut-outs [B, 4, S, S] in 0..1."""
        return unfold(self._latents.decode(x)).clamp(0.0, 1.0)

    def preview(self, x: Tensor) -> Tensor:
        return self.decode(x)

    def release(self) -> None:
        """Its text encoder is small, and stays."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = (math.pi / 2 * t)[:, None, None, None]
        return angle.cos(), angle.sin()

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """Of captions of the shelf; the words for a view are left to the camera."""
        texts = [split_view(prompt)[0] for prompt in prompts]
        captions = [parse(text) if text.strip() else None for text in texts]
        with torch.no_grad():
            states, pooled = self.net.encode_text(prior_tokens(captions).to(self._device))
        return {"states": states, "pooled": pooled}

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        seen = upload(seen_from(cameras.azimuth, cameras.elevation), x_t.device).to(x_t.dtype)
        if not self.camera:
            seen = torch.zeros_like(seen)
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.half):
            v = self.net(x_t, t, condition["states"], condition["pooled"], seen)
        return as_noise("velocity", v.to(x_t.dtype), x_t, self.alpha_sigma(t))

    def adapter(self, rank: int, generator: torch.Generator) -> LoraAdapter:
        return LoraAdapter(self.net.unet, self.predict, rank=rank, generator=generator)

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device


def blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of images [B, C, H, W]; what is outside repeats the edge."""
    reach = math.ceil(3 * sigma)
    x = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    wide = pad(images, (reach, reach, reach, reach), mode="replicate")
    across = conv2d(wide, kernel, groups=images.shape[1])
    return conv2d(across, kernel.mT, groups=images.shape[1])


def load(options: PriorOptions, load_options: LoadOptions) -> ShelfPrior:
    """The packaged prior and its autoencoder, or those in the folder `options.model`.

    Raises WeightsError for what is missing, damaged, or does not fit together.
    """
    folder = Path(options.model) if options.model else weights_folder()
    vae = load_net(folder, "autoencoder", "autoencoder").to(load_options.device)
    net = load_net(folder, "prior", "prior").to(load_options.device)
    auto = options.dtype == "auto"
    half = fast_half(torch.device(load_options.device)) if auto else options.dtype != "float32"
    source = options.model or f"splatgen {__version__}"
    try:
        return ShelfPrior(net=net, vae=vae, camera=options.camera, half=half, source=source)
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from error
