"""Stable Diffusion XL (base) as a prior: two text encoders, and a UNet that is told the picture's size.

Shapes: B images or latents, h x w latents, D1 + D2 the widths of the text encoders, P that of the second's
summary of a prompt.
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
from splatgen.priors.parts import SDXL, checkpoint
from splatgen.scene.cameras import Cameras

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection


class SDXLPrior:
    """Stable Diffusion XL without its refiner (Podell et al. 2023).

    Its autoencoder stays in float32: in float16 it gives NaN. Small budgets keep it in bfloat16, which has
    the range but fewer digits, where the GPU computes in that. Its UNet is told that every picture was of
    the model's own size and not cropped.
    """

    views = 1
    x_range: tuple[float, float] | None = None

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,  # in float32
        text_encoders: tuple[Lazy[CLIPTextModel], Lazy[CLIPTextModelWithProjection]],
        tokenizers: tuple[Any, Any],  # CLIPTokenizer, which fill up in different ways
        alphas_cumprod: Tensor,  # [T] of the training schedule, falling
        prediction_type: str,  # diffusers' name: epsilon or v_prediction
        name: str,
        resolution: int,
        source: str = "",
        zero_empty: bool = True,  # an empty prompt is all zeros, as the model was trained
        tiny: AutoencoderTiny | None = None,  # decodes previews
        decode: int = 0,  # latents decoded at once where no gradient is asked; 0 takes all
    ) -> None:
        """Take networks that are on their device, and freeze them.

        Raises ValueError where they do not fit together.
        """
        self.name, self.resolution, self.source = name, resolution, source
        self.prediction = known_prediction(name, prediction_type)
        self._schedule = TableSchedule(name, alphas_cumprod, home(unet))
        self._text, self._tokenizers, self._zero_empty = text_encoders, tokenizers, zero_empty
        check_match(name, "latent channels", unet.config.in_channels, vae.config.latent_channels)
        first, second = (frozen(encoder) for encoder in self.text_encoders)
        width = first.config.hidden_size + second.config.hidden_size
        check_match(name, "text features", unet.config.cross_attention_dim, width)
        told = second.config.projection_dim + 6 * unet.config.addition_time_embed_dim
        wanted = unet.config.projection_class_embeddings_input_dim
        check_match(name, "features of prompt and size", wanted, told)
        self.unet, self.vae = frozen(unet), frozen(vae)
        self._latents = Latents(vae, resolution=resolution, tiny=tiny, at_once=decode)

    @property
    def text_encoders(self) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
        """Loaded if they are not."""
        return self._text[0].get(), self._text[1].get()

    def release(self) -> None:
        """Let the text encoders go; the next `embed` loads them again."""
        for encoder in self._text:
            encoder.release()

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
        """States [B, 77, D1 + D2] of the last layers but one, and the second encoder's pooled [B, P].

        Raises ValueError for a prompt with more tokens than that. Empty prompts are zeros (diffusers:
        force_zeros_for_empty_prompt).
        """
        states, pooled = [], torch.empty(0)
        for encoder, tokenizer in zip(self.text_encoders, self._tokenizers, strict=True):
            most = encoder.config.max_position_embeddings
            tokens = clip_tokens(tokenizer, prompts, name=self.name, most=most)
            with torch.no_grad():
                found = encoder(tokens.to(encoder.device), output_hidden_states=True)
            states.append(full(found.hidden_states[-2]))
            pooled = found[0]  # of the second: text_embeds
        device = home(self.unet)
        told = {"states": torch.cat(states, dim=-1).to(device), "pooled": full(pooled).to(device)}
        if self._zero_empty:
            empty = torch.tensor([prompt == "" for prompt in prompts], device=device)
            told = {key: value.masked_fill(_like(empty, value), 0.0) for key, value in told.items()}
        return told

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        """The noise in x_t [B, 4, h, w] at t [B]; of the cameras, the prompt's words are all it is told."""
        dtype, side = self.unet.dtype, float(self.resolution)
        size = torch.full((len(x_t), 6), side, device=x_t.device)  # whole, crop, target
        size[:, 2:4] = 0.0
        added = {"text_embeds": condition["pooled"].to(dtype), "time_ids": size}
        out: Tensor = self.unet(
            x_t.to(dtype),
            self._schedule.rows(t),
            encoder_hidden_states=condition["states"].to(dtype),
            added_cond_kwargs=added,
        ).sample.to(x_t.dtype)
        return as_noise(self.prediction, out, x_t, self.alpha_sigma(t))

    def adapter(self, rank: int, generator: torch.Generator) -> LoraAdapter:
        return LoraAdapter(self.unet, self.predict, rank=rank, generator=generator)


def autoencoder_dtype(load_options: LoadOptions) -> torch.dtype:
    """float32, or bfloat16 where memory is short and the GPU has it (from compute capability 8.0 on)."""
    able = load_options.rough and torch.cuda.get_device_capability() >= (8, 0)
    return torch.bfloat16 if able else torch.float32


def _like(rows: Tensor, value: Tensor) -> Tensor:
    """[B] with as many dimensions as a value."""
    return rows.view(-1, *[1] * (value.dim() - 1))


def load(options: PriorOptions, load_options: LoadOptions) -> SDXLPrior:
    """SDXL's base model, or one made from it; raises WeightsError for what is missing, damaged or another."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    model, dtype = checkpoint("sdxl", SDXL, options, load_options), torch_dtype(load_options)
    names = ("text_encoder", "text_encoder_2")
    lora = read_lora(options, ("unet", *names), model.settings("unet"))
    alphas_cumprod, prediction_type = model.schedule()
    tokenizers = model.tokenizer("tokenizer"), model.tokenizer("tokenizer_2")
    words = torch.float32 if load_options.text_device == "cpu" else dtype

    def text_encoder() -> CLIPTextModel:
        found = lora.merge(names[0], model.network(CLIPTextModel, names[0], dtype=words))
        return placed(found, load_options, device=load_options.text_device)

    def text_encoder_2() -> CLIPTextModelWithProjection:
        found = lora.merge(names[1], model.network(CLIPTextModelWithProjection, names[1], dtype=words))
        return placed(found, load_options, device=load_options.text_device)

    vae = model.network(AutoencoderKL, "vae", dtype=autoencoder_dtype(load_options))
    unet = lora.merge("unet", model.network(UNet2DConditionModel, "unet", dtype=dtype))
    with explained(SDXLPrior, model.path):
        return SDXLPrior(
            unet=compiled(placed(unet, load_options), load_options),
            vae=placed(vae, load_options),
            text_encoders=(Lazy(text_encoder), Lazy(text_encoder_2)),
            tokenizers=tokenizers,
            alphas_cumprod=alphas_cumprod,
            prediction_type=prediction_type,
            name="sdxl",
            resolution=trained_side(unet, vae),
            source=model.source + lora.source,
            zero_empty=model.zero_empty(),
            tiny=tiny_autoencoder("taesdxl", options, load_options),
            decode=load_options.decode,
        )
