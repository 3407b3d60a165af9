"""DeepFloyd IF, its first stage: a pixel diffusion model of 64 x 64 images behind T5.

Shapes: B images, H x W pixels, s the model's side, N tokens, D the width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from splatgen.config import PriorOptions
from splatgen.models import weights
from splatgen.models.budget import LoadOptions
from splatgen.models.loading import compiled, placed, torch_dtype
from splatgen.models.paging import home
from splatgen.models.weights import WeightsError
from splatgen.priors import Conditioning
from splatgen.priors.latent import TableSchedule
from splatgen.priors.lora import LoraAdapter
from splatgen.priors.parts import Checkpoint
from splatgen.priors.pixels import from_pixels, to_side
from splatgen.priors.t5 import T5Text, t5_text
from splatgen.scene.cameras import Cameras

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

CHANNELS = 3  # red, green, blue; later stages take the picture that they enlarge, too
TOKENS = 77  # of a prompt: T5 reads longer ones, this model was trained on no more


class DeepFloydPrior:
    """The first of DeepFloyd IF's three stages (Shonenkov et al. 2023), after Imagen (Saharia et al. 2022).

    Its UNet predicts the noise, and in three more channels a variance that only samplers need. Times are
    those of its cosine schedule, as `TableSchedule` reads them.
    """

    views = 1
    x_range: tuple[float, float] | None = None  # pixels, but guided by 20 its estimates leave -1..1 at once:
    # clamped, 16 % of the gradient is left at t = 0.1 and 0.8 % at 0.9, and no published code clamps them
    prediction: Literal["epsilon"] = "epsilon"

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        text: T5Text,
        alphas_cumprod: Tensor,  # [T] of the training schedule, falling
        name: str,
        source: str,
    ) -> None:
        self.unet = unet
        self.name = name
        self.source = source
        self.resolution: int = unet.config.sample_size
        self._text = text
        self._schedule = TableSchedule(name, alphas_cumprod, home(unet))

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1, averaged down to the model's side, to -1..1: x [B, 3, s, s]."""
        return to_side(images, self.resolution)

    def decode(self, x: Tensor) -> Tensor:
        return from_pixels(x)

    def preview(self, x: Tensor) -> Tensor:
        return self.decode(x)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._schedule.alpha_sigma(t)

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """States [B, 77, D], in lower case as the model was trained.

        T5 is told which tokens are padding; the UNet attends to them all, as published. Raises ValueError for
        a prompt with more tokens.
        """
        return {"states": self._text([p.lower().strip() for p in prompts], home(self.unet))}

    def release(self) -> None:
        self._text.release()

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        """The noise in x_t [B, 3, s, s] at t [B]; of the cameras, the prompt's words are all it is told."""
        dtype = self.unet.dtype
        out: Tensor = self.unet(
            x_t.to(dtype), self._schedule.rows(t), encoder_hidden_states=condition["states"].to(dtype)
        ).sample
        return out[:, :CHANNELS].to(x_t.dtype)

    def adapter(self, rank: int, generator: torch.Generator) -> LoraAdapter:
        return LoraAdapter(self.unet, self.predict, rank=rank, generator=generator)


def load(options: PriorOptions, load_options: LoadOptions) -> DeepFloydPrior:
    """The published first stage, or the one that `options.model` names.

    Raises WeightsError for what is missing, damaged or another model.
    """
    from diffusers import UNet2DConditionModel

    name = "deepfloyd"
    found = (
        weights.given(options.model, options.revision)
        if options.model
        else weights.find(name, load_options.weights)
    )
    if found.main.is_file():
        raise WeightsError(f"{found.main} is a single file: give {name} as a folder in diffusers' layout")
    model = Checkpoint(base=found.main, path=found.main, source=found.source)
    alphas_cumprod, prediction_type = model.schedule()
    settings = model.settings("unet")
    taken = settings.get("in_channels")
    if not settings.get("encoder_hid_dim"):
        raise WeightsError(f"{model.path / 'unet'} takes no text of T5: give a first stage of DeepFloyd IF")
    if taken != CHANNELS or prediction_type != "epsilon":
        raise WeightsError(
            f"{model.path} takes {taken} channels and predicts {prediction_type}: give a first stage of "
            f"DeepFloyd IF, which takes {CHANNELS} and predicts epsilon"
        )
    text = t5_text(model.path, "", load_options, length=TOKENS, masked=True, name=name)
    unet = model.network(UNet2DConditionModel, "unet", dtype=torch_dtype(load_options))
    return DeepFloydPrior(
        unet=compiled(placed(unet, load_options), load_options),
        text=text,
        alphas_cumprod=alphas_cumprod,
        name=name,
        source=model.source,
    )
