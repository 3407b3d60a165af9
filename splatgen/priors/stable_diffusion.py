"""Stable Diffusion 1 and 2 as a prior: diffusers' UNet and autoencoder behind transformers' CLIP.

Shapes: B prompts, D the width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from splatgen.config import PriorOptions
from splatgen.models.budget import LoadOptions
from splatgen.models.loading import Lazy, compiled, explained, frozen, placed, torch_dtype
from splatgen.models.paging import home
from splatgen.priors import Conditioning
from splatgen.priors.latent import check_match, clip_tokens, full, tiny_autoencoder, trained_side
from splatgen.priors.latent_unet import LatentUNet
from splatgen.priors.lora_files import read_lora
from splatgen.priors.parts import STABLE_DIFFUSION, checkpoint

if TYPE_CHECKING:
    from transformers import CLIPTextModel


class StableDiffusionPrior(LatentUNet):
    """A latent diffusion model of the Stable Diffusion 1 and 2 families (Rombach et al. 2022)."""

    def __init__(
        self,
        *,
        text_encoder: CLIPTextModel | Lazy[CLIPTextModel],
        tokenizer: Any,  # CLIPTokenizer
        **networks: Any,  # of LatentUNet
    ) -> None:
        """Take networks that are on their device, and freeze them.

        Raises ValueError where they do not fit together.
        """
        super().__init__(**networks)
        self._text = text_encoder if isinstance(text_encoder, Lazy) else Lazy(lambda: text_encoder)
        width = self.text_encoder.config.hidden_size
        check_match(self.name, "text features", self.unet.config.cross_attention_dim, width)
        for network in (self.unet, self.vae, self.text_encoder):
            frozen(network)
        self.tokenizer = tokenizer

    @property
    def text_encoder(self) -> CLIPTextModel:
        """Loaded if it is not."""
        return self._text.get()

    def release(self) -> None:
        """Let the text encoder go; the next `embed` loads it again."""
        self._text.release()

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """States [B, 77, D] of the last layer, without a mask, as these models were trained.

        Raises ValueError for a prompt with more tokens than that.
        """
        most = self.text_encoder.config.max_position_embeddings
        tokens = clip_tokens(self.tokenizer, prompts, name=self.name, most=most)
        with torch.no_grad():
            found = self.text_encoder(tokens.to(self.text_encoder.device))
        return {"states": full(found.last_hidden_state).to(home(self.unet))}


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
