"""Stable Diffusion as a prior: diffusers' own UNet and autoencoder, behind transformers' CLIP text encoder.

Shapes: B images or latents, H x W pixels, h x w latents, T times of the training schedule, D the width of the
text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from splatgen.cameras import Cameras
from splatgen.priors import Conditioning
from splatgen.priors.lora import LoraAdapter

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

PREDICTIONS: dict[str, Literal["epsilon", "velocity"]] = {"epsilon": "epsilon", "v_prediction": "velocity"}


class StableDiffusionPrior:
    """A latent diffusion model of the Stable Diffusion 1 and 2 families (Rombach et al. 2022).

    Its schedule is a table of T trained times, and it is asked at those only: t in 0..1 means the time
    nearest to T t (0.02 is 20 of 1000 and 0.98 is 980, as in the published ranges; 1 is the last one), for
    the network and for alpha and sigma alike. Times that fall on the same row are the same time.
    """

    views = 1
    x_range: tuple[float, float] | None = None

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: Any,  # CLIPTokenizer
        alphas_cumprod: Tensor,  # [T] of the training schedule, falling
        prediction_type: str,  # diffusers' name: epsilon or v_prediction
        name: str,
        resolution: int,  # pixels, of the images that the model was trained on
    ) -> None:
        """Take networks that are on their device, and freeze them.

        Raises ValueError where they do not fit together.
        """
        if prediction_type not in PREDICTIONS:
            raise ValueError(
                f"{name} predicts {prediction_type!r}: give a model of {' or '.join(PREDICTIONS)}"
            )
        _check_schedule(name, alphas_cumprod)
        _check_match(name, "latent channels", unet.config.in_channels, vae.config.latent_channels)
        _check_match(name, "text features", unet.config.cross_attention_dim, text_encoder.config.hidden_size)
        self.name = name
        self.resolution = resolution
        self.prediction = PREDICTIONS[prediction_type]
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        for network in (unet, vae, text_encoder):
            network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        table = alphas_cumprod.detach().to(unet.device, torch.float64)
        self._alpha, self._sigma = table.sqrt(), (1.0 - table).sqrt()  # [T] each

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to latents [B, 4, h, w], resized to the model's side first.

        The mean of the autoencoder's posterior. Published codes take a sample of it; here a render has one
        latent, so that a step depends on nothing but its seed and its number.
        """
        side = (self.resolution, self.resolution)
        if images.shape[-2:] != side:
            images = interpolate(images, size=side, mode="bilinear", antialias=True)
        posterior = self.vae.encode((2.0 * images - 1.0).to(self.vae.dtype)).latent_dist
        x: Tensor = (self.vae.config.scaling_factor * posterior.mean).to(images.dtype)
        return x

    def decode(self, x: Tensor) -> Tensor:
        found = self.vae.decode((x / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        images: Tensor = (0.5 * (found.to(x.dtype) + 1.0)).clamp(0.0, 1.0)
        return images

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        rows = self._rows(t)
        alpha, sigma = (table[rows].to(t.dtype).view(-1, 1, 1, 1) for table in (self._alpha, self._sigma))
        return alpha, sigma

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """States [B, 77, D] of the last layer, without a mask, as these models were trained.

        Raises ValueError for a prompt with more tokens than that. (Published codes cut it, and with it the
        words for the view, which come last.)
        """
        most = self.tokenizer.model_max_length
        for prompt in prompts:
            count = len(self.tokenizer(prompt).input_ids)
            if count > most:
                raise ValueError(
                    f"the prompt {prompt[:40]!r}... has {count - 2} tokens and {self.name} reads {most - 2}: "
                    "shorten it"
                )
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=most, return_tensors="pt")
        with torch.no_grad():
            found = self.text_encoder(tokens.input_ids.to(self.text_encoder.device))
        states = found.last_hidden_state
        return {"states": states.to(torch.promote_types(states.dtype, torch.float32))}  # may be learned

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        """The noise in x_t [B, 4, h, w] at t [B]; of the cameras, the prompt's words are all it is told."""
        dtype = self.unet.dtype
        out: Tensor = self.unet(
            x_t.to(dtype), self._rows(t), encoder_hidden_states=condition["states"].to(dtype)
        ).sample.to(x_t.dtype)
        if self.prediction == "epsilon":
            return out
        alpha, sigma = self.alpha_sigma(t)
        return sigma * x_t + alpha * out

    def adapter(self, rank: int, generator: torch.Generator) -> LoraAdapter:
        return LoraAdapter(self.unet, self.predict, rank=rank, generator=generator)

    def _rows(self, t: Tensor) -> Tensor:
        """The rows of the schedule [B] that are nearest to times [B]."""
        count = len(self._alpha)
        return (count * t.float()).round().long().clamp(0, count - 1)


def _check_schedule(name: str, alphas_cumprod: Tensor) -> None:
    table = alphas_cumprod
    if table.ndim != 1 or bool((table.diff() >= 0).any()) or table[0] >= 1 or table[-1] <= 0:
        raise ValueError(
            f"the schedule of {name} must fall from below 1 to above 0: give the scheduler's alphas_cumprod, "
            "not rescaled to end at 0"
        )


def _check_match(name: str, what: str, network: int, other: int) -> None:
    if network != other:
        raise ValueError(
            f"the UNet of {name} takes {network} {what} and gets {other}: give parts of one checkpoint that "
            "generates images from text"
        )
