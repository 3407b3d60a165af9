"""Published architectures with random weights, made where they run: no download, no disk, seconds on a GPU.

What a step costs in time and memory depends on shapes and precision, not on what the weights say. Every size
is there twice: as published, and tiny, so that whatever measures the one can be tried with the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from splatgen.models.budget import LoadOptions, Precision
from splatgen.models.loading import Lazy, compiled, frozen, placed, quiet, torch_dtype
from splatgen.priors.mvdream import MVDreamPrior, alphas_cumprod
from splatgen.priors.sdxl import SDXLPrior, autoencoder_dtype
from splatgen.priors.stable_diffusion import StableDiffusionPrior
from splatgen.rewards.clip import ClipReward, open_clip_text
from splatgen.rewards.pictures import padded

ASIDE = "cpu"  # where networks wait that take turns on the device
N = TypeVar("N", bound=torch.nn.Module)
Settings = dict[str, Any]

_CROSS_DOWN, _DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
_CROSS_UP, _UP = "CrossAttnUpBlock2D", "UpBlock2D"
_CAMERA = {
    "use_linear_projection": True,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 16,
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The settings of a prior's networks, as diffusers and transformers call them."""

    unet: Settings
    vae: Settings
    text: Settings
    side: int  # pixels, of the images that it sees
    text_2: Settings | None = None  # of SDXL's second encoder


@dataclass(frozen=True, kw_only=True)
class RewardSizes:
    """The settings of both towers of a CLIP model."""

    image: Settings
    text: Settings


def _unet(channels: tuple[int, ...], side: int, width: int, **more: Any) -> Settings:
    """Attention at all levels but the last."""
    levels = len(channels) - 1
    return {
        "sample_size": side,
        "block_out_channels": channels,
        "down_block_types": (*[_CROSS_DOWN] * levels, _DOWN),
        "up_block_types": (_UP, *[_CROSS_UP] * levels),
        "cross_attention_dim": width,
        **more,
    }


_SDXL_UNET = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}


def _vae(channels: tuple[int, ...], **more: Any) -> Settings:
    return {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "latent_channels": 4,
        "scaling_factor": 0.18215,
        **more,
    }


def _tower(width: int, layers: int, heads: int, **more: Any) -> Settings:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
        "hidden_act": "gelu",
        **more,
    }


_WORDS = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
_BYTES = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513}
_FULL_VAE = _vae((128, 256, 512, 512), layers_per_block=2)
_TINY_VAE = _vae((8, 8), layers_per_block=1, norm_num_groups=4)
_TINY_TEXT = _tower(16, 2, 2, **_BYTES, pad_token_id=513)
_TINY_UNET = {"layers_per_block": 1, "norm_num_groups": 4}

FULL = {
    "sdxl": Sizes(
        unet={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": (_DOWN, _CROSS_DOWN, _CROSS_DOWN),
            "up_block_types": (_CROSS_UP, _CROSS_UP, _UP),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 6 * 256 + 1280,
            **_SDXL_UNET,
        },
        vae=_FULL_VAE | {"scaling_factor": 0.13025},
        text=_tower(768, 12, 12, **_WORDS, pad_token_id=49407) | {"hidden_act": "quick_gelu"},
        text_2=_tower(1280, 32, 20, **_WORDS, pad_token_id=0),
        side=1024,
    ),
    "sd15": Sizes(
        unet=_unet((320, 640, 1280, 1280), 64, 768, attention_head_dim=8),
        vae=_FULL_VAE,
        text=_tower(768, 12, 12, **_WORDS, pad_token_id=49407) | {"hidden_act": "quick_gelu"},
        side=512,
    ),
    "mvdream": Sizes(
        unet=_unet((320, 640, 1280, 1280), 32, 1024, attention_head_dim=(5, 10, 20, 20), **_CAMERA),
        vae=_FULL_VAE,
        text=_tower(1024, 23, 16, **_WORDS, pad_token_id=0),
        side=256,
    ),
}
TINY = {
    "sdxl": Sizes(
        unet={
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "down_block_types": (_DOWN, _CROSS_DOWN),
            "up_block_types": (_CROSS_UP, _UP),
            "cross_attention_dim": 32,
            "attention_head_dim": (2, 4),
            "transformer_layers_per_block": (1, 2),
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 16,
            **_TINY_UNET,
            **_SDXL_UNET,
        },
        vae=_TINY_VAE | {"scaling_factor": 0.13025},
        text=_TINY_TEXT | {"hidden_act": "quick_gelu"},
        text_2=_TINY_TEXT,
        side=16,
    ),
    "sd15": Sizes(
        unet=_unet((8, 16), 8, 16, attention_head_dim=2, **_TINY_UNET),
        vae=_TINY_VAE,
        text=_TINY_TEXT | {"hidden_act": "quick_gelu"},
        side=16,
    ),
    "mvdream": Sizes(
        unet=_unet((8, 16), 4, 16, attention_head_dim=(1, 2), **_TINY_UNET, **_CAMERA),
        vae=_TINY_VAE,
        text=_TINY_TEXT,
        side=8,
    ),
}
HPSV2 = RewardSizes(
    image=_tower(1280, 32, 16, image_size=224, patch_size=14) | {"projection_dim": 1024},
    text=_tower(1024, 24, 16, **_WORDS, pad_token_id=0),
)
TINY_HPSV2 = RewardSizes(
    image=_tower(16, 2, 2, image_size=28, patch_size=14), text=_tower(16, 2, 2, **_BYTES, pad_token_id=0)
)


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What a prior is made of; the text encoder comes when it is asked for."""

    name: str
    sizes: Sizes
    unet: UNet2DConditionModel = field(repr=False)
    vae: AutoencoderKL = field(repr=False)


def networks(name: str, sizes: Sizes, load_options: LoadOptions) -> Networks:
    """A prior's networks on their device, the same numbers at every call."""
    unet = random_network(UNet2DConditionModel, sizes.unet, load_options)
    precise = load_options
    if sizes.text_2:
        kept: Precision = "bfloat16" if autoencoder_dtype(load_options) == torch.bfloat16 else "float32"
        precise = replace(load_options, precision=kept)
    return Networks(
        name=name,
        sizes=sizes,
        unet=compiled(unet, load_options),
        vae=random_network(AutoencoderKL, sizes.vae, precise),
    )


def prior(parts: Networks, load_options: LoadOptions) -> StableDiffusionPrior | SDXLPrior | MVDreamPrior:
    """Our own class around networks, kept as a budget says; networks can be handed over to another."""
    for network in (parts.unet, parts.vae):
        if load_options.checkpointing:
            network.enable_gradient_checkpointing()
        else:
            network.disable_gradient_checkpointing()
    text = Lazy(lambda: text_encoder(parts.sizes, load_options))
    words = tokenizer(parts.sizes.text["vocab_size"])
    source = "random weights"
    if parts.name == "mvdream":
        return MVDreamPrior(
            unet=parts.unet,
            vae=parts.vae,
            text_encoder=text,
            tokenizer=words,
            source=source,
            decode=load_options.decode,
        )
    if parts.sizes.text_2:
        second = Lazy(lambda: second_encoder(parts.sizes, load_options))
        return SDXLPrior(
            unet=parts.unet,
            vae=parts.vae,
            text_encoders=(text, second),
            tokenizers=(words, words),
            alphas_cumprod=alphas_cumprod(),
            prediction_type="epsilon",
            name=parts.name,
            resolution=parts.sizes.side,
            source=source,
            decode=load_options.decode,
        )
    return StableDiffusionPrior(
        unet=parts.unet,
        vae=parts.vae,
        text_encoder=text,
        tokenizer=words,
        alphas_cumprod=alphas_cumprod(),
        prediction_type="epsilon",
        name=parts.name,
        resolution=parts.sizes.side,
        source=source,
        decode=load_options.decode,
    )


def text_encoder(sizes: Sizes, load_options: LoadOptions) -> CLIPTextModel:
    words = {"config": CLIPTextConfig(**sizes.text)}
    return random_network(CLIPTextModel, words, load_options, device=load_options.text_device)


def second_encoder(sizes: Sizes, load_options: LoadOptions) -> CLIPTextModelWithProjection:
    words = {"config": CLIPTextConfig(**(sizes.text_2 or {}))}
    return random_network(CLIPTextModelWithProjection, words, load_options, device=load_options.text_device)


def image_tower(sizes: RewardSizes, load_options: LoadOptions) -> CLIPVisionModelWithProjection:
    pictures = {"config": CLIPVisionConfig(**sizes.image)}
    return random_network(CLIPVisionModelWithProjection, pictures, load_options)


def reward(tower: CLIPVisionModelWithProjection, sizes: RewardSizes, load_options: LoadOptions) -> ClipReward:
    """HPSv2's shape, a cosine under a CLIP of two towers; it has read no prompt yet."""
    words = CLIPTextConfig(**sizes.text)
    return ClipReward(
        name="hpsv2",
        image_tower=tower,
        text_tower=Lazy(
            lambda: random_network(
                CLIPTextModelWithProjection, {"config": words}, load_options, device=load_options.device
            )
        ),
        tokenizer=tokenizer(words.vocab_size),
        source="random weights",
        framed=padded,
        cleaned=open_clip_text,
    )


def random_network(
    kind: type[N], settings: Settings, load_options: LoadOptions, *, device: str | None = None
) -> N:
    """A network with random weights, never anywhere but on its device and in its precision.

    Without a device it is the run's; where networks take turns there, it is made on the CPU.
    """
    with torch.device("meta"), quiet():
        network = kind(**settings).to(torch_dtype(load_options))
    network.to_empty(device=device or (ASIDE if load_options.paged else load_options.device))
    draw(network)
    return placed(frozen(network), load_options, device=device)


@torch.no_grad()
def draw(network: torch.nn.Module) -> None:
    """Normal weights by the size of what goes in, so that signals neither fade nor overflow in float16."""
    generator: torch.Generator | None = None
    for name, p in network.named_parameters():
        generator = generator or torch.Generator(p.device).manual_seed(0)
        if p.dim() > 1:
            p.normal_(0.0, p[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("weight", "bias")):
            p.fill_(float(name.endswith("weight")))  # of norms
        else:
            p.normal_(generator=generator)
    for name, values in network.named_buffers():
        if not name.endswith("position_ids"):
            raise ValueError(f"{type(network).__name__} has the buffer {name}, whose values are not known")
        values.copy_(torch.arange(values.shape[-1], device=values.device))


def tokenizer(size: int) -> CLIPTokenizer:
    """CLIP's, with bytes for words, and words that nobody says up to the size of a vocabulary."""
    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    letters += [chr(256 + n) for n in range(256 - len(letters))]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"<|unsaid-{n}|>" for n in range(size - len(words) - 2)]
    numbered = {word: n for n, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=numbered, merges=[], model_max_length=77)
