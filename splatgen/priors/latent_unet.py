"""What Stable Diffusion and SDXL share: a UNet in an autoencoder's latents, on a table of trained times.

Shapes: B images or latents, H x W pixels, h x w latents, T times of the training schedule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from splatgen.models.paging import home
from splatgen.priors import Conditioning
from splatgen.priors.latent import Latents, TableSchedule, as_noise, check_match, known_prediction
from splatgen.priors.lora import LoraAdapter
from splatgen.scene.cameras import Cameras

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel


class LatentUNet:
    """A latent diffusion model but for its words, which each family embeds in its own way.

    Its schedule is a table of T trained times, and it is asked at those only: see TableSchedule.
    """

    views = 1
    x_range: tuple[float, float] | None = None

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        alphas_cumprod: Tensor,  # [T] of the training schedule, falling
        prediction_type: str,  # diffusers' name: epsilon or v_prediction
        name: str,
        resolution: int,  # pixels, of the images that the model was trained on
        source: str = "",
        tiny: AutoencoderTiny | None = None,  # decodes previews
        decode: int = 0,  # latents decoded at once where no gradient is asked; 0 takes all
    ) -> None:
        """Take networks that are on their device; a family freezes them when it has checked its words.

        Raises ValueError where they do not fit together.
        """
        self.name, self.resolution, self.source = name, resolution, source
        self.prediction = known_prediction(name, prediction_type)
        self._schedule = TableSchedule(name, alphas_cumprod, home(unet))
        check_match(name, "latent channels", unet.config.in_channels, vae.config.latent_channels)
        self.unet, self.vae = unet, vae
        self._latents = Latents(vae, resolution=resolution, tiny=tiny, at_once=decode)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to latents [B, 4, h, w], resized to the model's side first."""
        return self._latents.encode(images)

    def decode(self, x: Tensor) -> Tensor:
        return self._latents.decode(x)

    def preview(self, x: Tensor) -> Tensor:
        return self._latents.preview(x)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._schedule.alpha_sigma(t)

    def told(self, condition: Conditioning, x_t: Tensor) -> dict[str, Any]:
        """What else the UNet takes, by its argument's name."""
        return {}

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        """The noise in x_t [B, 4, h, w] at t [B]; of the cameras, the prompt's words are all it is told."""
        dtype = self.unet.dtype
        states = condition["states"].to(dtype)
        out: Tensor = self.unet(
            x_t.to(dtype),
            self._schedule.rows(t),
            encoder_hidden_states=states,
            **self.told(condition, x_t),
        ).sample.to(x_t.dtype)
        return as_noise(self.prediction, out, x_t, self.alpha_sigma(t))

    def adapter(self, rank: int, generator: torch.Generator) -> LoraAdapter:
        return LoraAdapter(self.unet, self.predict, rank=rank, generator=generator)
