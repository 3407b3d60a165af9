"""Stable Diffusion 3 and 3.5: rectified flow in the latents of an autoencoder, behind two CLIPs and T5.

Shapes: B images, latents or prompts, H x W pixels, h x w latents, N tokens, D the width of the text's states,
P that of its pooled features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from splatgen.config import PriorOptions
from splatgen.models import weights
from splatgen.models.budget import LoadOptions
from splatgen.models.loading import Lazy, compiled, placed, read_json, torch_dtype
from splatgen.models.paging import home
from splatgen.models.weights import WeightsError
from splatgen.priors import Conditioning
from splatgen.priors.latent import Latents, clip_tokens, full, tiny_autoencoder, trained_side
from splatgen.priors.lora import LoraAdapter
from splatgen.priors.lora_files import LoraFile, read_lora
from splatgen.priors.parts import Checkpoint
from splatgen.priors.t5 import T5Text, t5_text
from splatgen.scene.cameras import Cameras

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

T5_TOKENS = 256
CLIPS = ("text_encoder", "text_encoder_2")
TRAINED = 1000  # the network is told 1000 t


class FlowPrior:
    """Stable Diffusion 3 (Esser et al. 2024): x_t = (1 - t) x0 + t n, and the network predicts v = n - x0.

    So n = x_t + (1 - t) v and x0 = x_t - t v, whatever v is; alpha + sigma is 1 here, not the sum of their
    squares. t is the flow's own sigma. The shift of published samplers (3 at 1024 pixels) is no part of the
    model: it only says which sigmas they visit. So a range of 0.02..0.98 means from 2 % to 98 % of noise by
    amplitude, and 0.5 is as much noise as image; Stable Diffusion 1.5 has that at 0.35.
    """

    views = 1
    x_range: tuple[float, float] | None = None
    prediction: Literal["velocity"] = "velocity"

    def __init__(
        self,
        *,
        transformer: SD3Transformer2DModel,
        latents: Latents,
        text: FlowText,
        name: str,
        source: str,
    ) -> None:
        self.transformer, self.vae = transformer, latents.vae
        self.latents, self.text = latents, text
        self.name = name
        self.source = source
        self.resolution = latents.resolution

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to latents [B, 16, h, w]."""
        return self.latents.encode(images)

    def decode(self, x: Tensor) -> Tensor:
        return self.latents.decode(x)

    def preview(self, x: Tensor) -> Tensor:
        return self.latents.preview(x)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = t.view(-1, 1, 1, 1)
        return 1.0 - sigma, sigma

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """What `FlowText` makes of prompts; raises ValueError for one that is too long."""
        return self.text(prompts, home(self.transformer))

    def release(self) -> None:
        self.text.release()

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        """The noise in x_t [B, 16, h, w] at t [B]; of the cameras, the prompt's words are all it is told."""
        dtype = self.transformer.dtype
        v: Tensor = self.transformer(
            hidden_states=x_t.to(dtype),
            timestep=TRAINED * t.float(),
            encoder_hidden_states=condition["states"].to(dtype),
            pooled_projections=condition["pooled"].to(dtype),
        ).sample.to(x_t.dtype)
        alpha, _ = self.alpha_sigma(t.to(x_t.dtype))
        return x_t + alpha * v

    def adapter(self, rank: int, generator: torch.Generator) -> LoraAdapter:
        return LoraAdapter(self.transformer, self.predict, rank=rank, generator=generator)


class FlowText:
    """Prompts to what Stable Diffusion 3 is told: states [B, 77 + 256, D] and pooled features [B, P].

    The states are those of the last layer but one of two CLIPs side by side, zeros up to D, and after them
    T5's; the pooled features are the two CLIPs' projections. Without T5 zeros stand for its states, on which
    the model was trained, too.
    """

    def __init__(
        self,
        *,
        clips: Sequence[tuple[Any, Lazy[CLIPTextModelWithProjection]]],  # with their tokenizers
        t5: T5Text | None,
        width: int,  # D
        pooled: int,  # P
        name: str,
    ) -> None:
        self._clips, self._t5 = clips, t5
        self._width, self._pooled, self._name = width, pooled, name

    def __call__(self, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """Raises ValueError for a prompt that is too long, WeightsError for encoders of another model."""
        read = [self._read(tokenizer, encoder, prompts) for tokenizer, encoder in self._clips]
        states, pooled = (torch.cat(parts, -1) for parts in zip(*read, strict=True))
        if self._t5 is None:
            told = states.new_zeros(len(states), T5_TOKENS, self._width)
        else:
            told = self._t5(prompts, device)
        widths = (told.shape[-1], pooled.shape[-1])
        if widths != (self._width, self._pooled) or states.shape[-1] > self._width:
            raise WeightsError(
                f"the text encoders of {self._name} make {widths[0]} and {widths[1]} features and its "
                f"transformer takes {self._width} and {self._pooled}: give parts of one checkpoint"
            )
        states = pad(states, (0, self._width - states.shape[-1]))
        return {"states": torch.cat([states.to(told), told], 1), "pooled": pooled}

    def _read(
        self, tokenizer: Any, encoder: Lazy[CLIPTextModelWithProjection], prompts: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """States [B, 77, d] and projected features [B, p] of one CLIP."""
        tokens = clip_tokens(tokenizer, prompts, name=self._name)
        network = encoder.get()
        with torch.no_grad():
            found = network(tokens.to(network.device), output_hidden_states=True)
        return full(found.hidden_states[-2]), full(found.text_embeds)

    def release(self) -> None:
        for _, encoder in self._clips:
            encoder.release()
        if self._t5 is not None:
            self._t5.release()


def load_sd3(options: PriorOptions, load_options: LoadOptions) -> FlowPrior:
    """Stable Diffusion 3 medium, or the model of its kind that `options.model` names."""
    return _load("sd3", options, load_options)


def load_sd35(options: PriorOptions, load_options: LoadOptions) -> FlowPrior:
    """Stable Diffusion 3.5 medium, or the model of its kind that `options.model` names, as its large one."""
    return _load("sd35", options, load_options)


def _load(name: str, options: PriorOptions, load_options: LoadOptions) -> FlowPrior:
    """Either of them out of files; raises WeightsError for what is missing, damaged or another model."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    model, dtype = _checkpoint(name, options, load_options), torch_dtype(load_options)
    lora = read_lora(options, ("transformer", *CLIPS))
    t5 = (
        t5_text(model.path, "_3", load_options, length=T5_TOKENS, masked=False, name=name)
        if options.t5
        else None
    )
    clips = [_clip(model, part, lora, load_options) for part in CLIPS]
    transformer = lora.merge("transformer", model.network(SD3Transformer2DModel, "transformer", dtype=dtype))
    vae = model.network(AutoencoderKL, "vae", dtype=dtype)
    config, channels = transformer.config, vae.config.latent_channels
    if config.in_channels != channels:
        raise WeightsError(
            f"{model.path} has a transformer of {config.in_channels} channels and an autoencoder of "
            f"{channels}: give parts of one checkpoint"
        )
    text = FlowText(
        clips=clips, t5=t5, width=config.joint_attention_dim, pooled=config.pooled_projection_dim, name=name
    )
    return FlowPrior(
        transformer=compiled(placed(transformer, load_options), load_options),
        latents=Latents(
            placed(vae, load_options),
            resolution=trained_side(transformer, vae),
            tiny=tiny_autoencoder("taesd3", options, load_options),
            at_once=load_options.decode,
        ),
        text=text,
        name=name,
        source=model.source + lora.source,
    )


def _checkpoint(name: str, options: PriorOptions, load_options: LoadOptions) -> Checkpoint:
    """The published model, or what the options name in its place; WeightsError unless it is such a flow.

    Without T5 its files need not be there: they are most of the model.
    """
    spare = () if options.t5 else ("text_encoder_3/", "tokenizer_3/")
    found = (
        weights.given(options.model, options.revision)
        if options.model
        else weights.find(name, load_options.weights, without=spare)
    )
    folder = found.main
    if folder.is_file():
        raise WeightsError(f"{folder} is a single file: give {name} as a folder in diffusers' layout")
    settings = read_json(folder / "scheduler" / "scheduler_config.json")
    kind, count = str(settings.get("_class_name")), settings.get("num_train_timesteps", TRAINED)
    if "FlowMatch" not in kind or count != TRAINED:
        raise WeightsError(
            f"{folder} has a schedule for {kind} over {count} times: give a model of Stable Diffusion 3 or "
            f"3.5, which is a flow over {TRAINED}"
        )
    return Checkpoint(base=folder, path=folder, source=found.source)


def _clip(
    model: Checkpoint, part: str, lora: LoraFile, load_options: LoadOptions
) -> tuple[Any, Lazy[CLIPTextModelWithProjection]]:
    """The tokenizer and the text encoder of one CLIP."""
    from transformers import CLIPTextModelWithProjection

    def load() -> CLIPTextModelWithProjection:
        network = model.network(CLIPTextModelWithProjection, part, dtype=torch_dtype(load_options))
        return placed(lora.merge(part, network), load_options, device=load_options.device)

    model.settings(part)  # it is loaded later, and should not be found missing then
    return model.tokenizer(part.replace("text_encoder", "tokenizer")), Lazy(load)
