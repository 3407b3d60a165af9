"""Stable Diffusion 1 and 2 as a prior: diffusers' UNet and autoencoder behind transformers' CLIP.

Shapes: B images or latents, H x W pixels, h x w latents, T times of the training schedule, D the width of the
text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from splatgen.config import PriorOptions
from splatgen.models.budget import LoadOptions
from splatgen.models.loading import Lazy, compiled, explained, frozen, placed, torch_dtype
from splatgen.models.paging import home
from splatgen.priors import Conditioning
from splatgen.priors.latent import (
    Latents,
    TableSchedule,
    as_noise,
    check_match,
    clip_tokens,
    full,
    known_prediction,
    tiny_autoencoder,
    trained_side,
)
from splatgen.priors.lora import LoraAdapter
from splatgen.priors.lora_files import read_lora
from splatgen.priors.parts import STABLE_DIFFUSION, checkpoint
from splatgen.scene.cameras import Cameras

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel


class StableDiffusionPrior:
    """A latent diffusion model of the Stable Diffusion 1 and 2 families (Rombach et al. 2022).

    Its schedule is a table of T trained times, and it is asked at those only: see TableSchedule.
    """

    views = 1
    x_range: tuple[float, float] | None = None

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel | Lazy[CLIPTextModel],
        tokenizer: Any,  # CLIPTokenizer
        alphas_cumprod: Tensor,  # [T] of the training schedule, falling
        prediction_type: str,  # diffusers' name: epsilon or v_prediction
        name: str,
        resolution: int,  # pixels, of the images that the model was trained on
        source: str = "",
        tiny: AutoencoderTiny | None = None,  # decodes previews
        decode: int = 0,  # latents decoded at once where no gradient is asked; 0 takes all
    ) -> None:
        """Take networks that are on their device, and freeze them.

        Raises ValueError where they do not fit together.
        """
        self.name, self.resolution, self.source = name, resolution, source
        self.prediction = known_prediction(name, prediction_type)
        self._schedule = TableSchedule(name, alphas_cumprod, home(unet))
        self._text = text_encoder if isinstance(text_encoder, Lazy) else Lazy(lambda: text_encoder)
        check_match(name, "latent channels", unet.config.in_channels, vae.config.latent_channels)
        width = self.text_encoder.config.hidden_size
        check_match(name, "text features", unet.config.cross_attention_dim, width)
        self.unet, self.vae = frozen(unet), frozen(vae)
        frozen(self.text_encoder)
        self.tokenizer = tokenizer
        self._latents = Latents(vae, resolution=resolution, tiny=tiny, at_once=decode)

    @property
    def text_encoder(self) -> CLIPTextModel:
        """Loaded if it is not."""
        return self._text.get()

    def release(self) -> None:
        """Let the text encoder go; the next `embed` loads it again."""
        self._text.release()

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to latents [B, 4, h, w], resized to the model's side first."""
        return self._latents.encode(images)

    def decode(self, x: Tensor) -> Tensor:
        return self._latents.decode(x)

    def preview(self, x: Tensor) -> Tensor:
        return self._latents.preview(x)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._schedule.alpha_sigma(t)

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """States [B, 77, D] of the last layer, without a mask, as these models were trained.

        Raises ValueError for a prompt with more tokens than that.
        """
        most = self.text_encoder.config.max_position_embeddings
        tokens = clip_tokens(self.tokenizer, prompts, name=self.name, most=most)
        with torch.no_grad():
            found = self.text_encoder(tokens.to(self.text_encoder.device))
        return {"states": full(found.last_hidden_state).to(home(self.unet))}

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        """The noise in x_t [B, 4, h, w] at t [B]; of the cameras, the prompt's words are all it is told."""
        dtype = self.unet.dtype
        out: Tensor = self.unet(
            x_t.to(dtype), self._schedule.rows(t), encoder_hidden_states=condition["states"].to(dtype)
        ).sample.to(x_t.dtype)
        return as_noise(self.prediction, out, x_t, self.alpha_sigma(t))

    def adapter(self, rank: int, generator: torch.Generator) -> LoraAdapter:
        return LoraAdapter(self.unet, self.predict, rank=rank, generator=generator)


def load_sd15(options: PriorOptions, load_options: LoadOptions) -> StableDiffusionPrior:
    """Stable Diffusion 1.5, or a model made from it."""
    return load("sd15", options, load_options)


def load_sd21(options: PriorOptions, load_options: LoadOptions) -> StableDiffusionPrior:
    """Stable Diffusion 2.1 (base), or a model made from it."""
    return load("sd21", options, load_options)


def load(name: str, options: PriorOptions, load_options: LoadOptions) -> StableDiffusionPrior:
    """Either of them out of files; raises WeightsError for what is missing, damaged or another model."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    model, dtype = checkpoint(name, STABLE_DIFFUSION, options, load_options), torch_dtype(load_options)
    lora = read_lora(options, ("unet", "text_encoder"), model.settings("unet"))
    alphas_cumprod, prediction_type = model.schedule()
    tokenizer = model.tokenizer()

    def text_encoder() -> CLIPTextModel:
        return placed(
            lora.merge("text_encoder", model.network(CLIPTextModel, "text_encoder", dtype=dtype)),
            load_options,
            device=load_options.device,
        )

    vae = model.network(AutoencoderKL, "vae", dtype=dtype)
    unet = lora.merge("unet", model.network(UNet2DConditionModel, "unet", dtype=dtype))
    with explained(StableDiffusionPrior, model.path):
        return StableDiffusionPrior(
            unet=compiled(placed(unet, load_options), load_options),
            vae=placed(vae, load_options),
            text_encoder=Lazy(text_encoder),
            tokenizer=tokenizer,
            alphas_cumprod=alphas_cumprod,
            prediction_type=prediction_type,
            name=name,
            resolution=trained_side(unet, vae),
            source=model.source + lora.source,
            tiny=tiny_autoencoder("taesd", options, load_options),
            decode=load_options.decode,
        )
