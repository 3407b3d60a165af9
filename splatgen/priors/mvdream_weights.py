"""MVDream's published checkpoint as networks of diffusers and transformers.

One file holds three networks under other names: the UNet and the autoencoder as the code of latent diffusion
calls them (Rombach et al. 2022), the text encoder as open_clip does. What a network is made of, its sizes, is
read off the shapes; every tensor must find its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from splatgen.models import open_clip
from splatgen.models.loading import explained, fill, quiet, read_tensors
from splatgen.models.weights import WeightsError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

N = TypeVar("N", bound=torch.nn.Module)
Tensors = dict[str, Tensor]

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
NEEDED = (f"{UNET}camera_embed.0.weight", f"{VAE}encoder.conv_in.weight", f"{TEXT}ln_final.weight")
SCALE = 0.18215  # of the latents
HEAD = 64  # channels of an attention head, in the UNet and in the text encoder
CAMERA = 16  # numbers of a camera

# Tables of the schedule, which follow from its two ends.
SCHEDULE = re.compile(
    r"betas|alphas_cumprod(_prev)?|sqrt_(one_minus_)?alphas_cumprod|log_one_minus_alphas_cumprod"
    r"|sqrt_recip(m1)?_alphas_cumprod|posterior_(variance|log_variance_clipped|mean_coef[12])"
)

AROUND = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "camera_embed.0": "class_embedding.linear_1",
    "camera_embed.2": "class_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "nin_shortcut": "conv_shortcut",
}
MIDDLE = {
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "mid.block_1": "mid_block.resnets.0",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.block_2": "mid_block.resnets.1",
}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file's tensors by network, under the names that they have there, without the network's own."""

    path: Path
    unet: Tensors
    vae: Tensors
    text: Tensors


def read(path: Path) -> Checkpoint:
    """The published file, or one like it; raises WeightsError for another architecture."""
    found = read_tensors(path)
    return split(found.get("state_dict", found), path)


def split(tensors: Mapping[str, Tensor], path: Path) -> Checkpoint:
    """Tensors by the network that they belong to; raises WeightsError for what belongs to none."""
    for name in NEEDED:
        if name not in tensors:
            raise WeightsError(
                f"{path} lacks {name}, which MVDream on Stable Diffusion 2.1 has: give sd-v2.1-base-4view.pt"
            )
    shares: dict[str, Tensors] = {prefix: {} for prefix in (UNET, VAE, TEXT)}
    for name, value in tensors.items():
        prefix = next((p for p in shares if name.startswith(p)), None)
        if prefix is not None:
            shares[prefix][name.removeprefix(prefix)] = value
        elif not SCHEDULE.fullmatch(name):
            raise WeightsError(f"{path} holds {name}, which MVDream has not: give sd-v2.1-base-4view.pt")
    return Checkpoint(path=path, unet=shares[UNET], vae=shares[VAE], text=shares[TEXT])


def load_unet(tensors: Tensors, path: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    """The denoiser, with the camera's embedding as diffusers' class embedding; on the CPU, frozen."""
    from diffusers import UNet2DConditionModel

    with explained(UNet2DConditionModel, path):
        network = _empty(UNet2DConditionModel, unet_config(tensors))
        return _filled(network, unet_tensors(tensors), path, dtype)


def load_vae(tensors: Tensors, path: Path, dtype: torch.dtype) -> AutoencoderKL:
    """The autoencoder of Stable Diffusion; on the CPU, frozen."""
    from diffusers import AutoencoderKL

    with explained(AutoencoderKL, path):
        return _filled(_empty(AutoencoderKL, vae_config(tensors)), vae_tensors(tensors), path, dtype)


def load_text(tensors: Tensors, path: Path, dtype: torch.dtype) -> CLIPTextModel:
    """The text encoder up to its last layer but one, and the norm after the last; on the CPU, frozen."""
    from transformers import CLIPTextModel

    with explained(CLIPTextModel, path):
        layers = text_layers(tensors)
        config = open_clip.text_config(layers, path, HEAD)
        named = open_clip.text_tower(layers)
        del named["text_projection.weight"]  # compares texts to images
        named = {name.removeprefix("text_model."): value for name, value in named.items()}
        network = _filled(_empty(CLIPTextModel, {"config": config}), named, path, dtype)
        network.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]  # in no file
        return network


def _empty(kind: type[N], config: Mapping[str, Any]) -> N:
    with torch.device("meta"), quiet():
        return kind(**config)


def _filled(network: N, named: Tensors, path: Path, dtype: torch.dtype) -> N:
    return fill(network, {name: value.to(dtype) for name, value in named.items()}, path)


def unet_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' settings, by the shapes; KeyError where a tensor is not there."""
    downs = _numbers(tensors, r"input_blocks\.(\d+)\.0\.op\.weight")
    if not downs:
        raise KeyError("input_blocks.N.0.op.weight")
    step = downs[0]  # blocks of a level, with the one that halves the side
    firsts = [1 + n * step for n in range(len(downs) + 1)]
    channels = [tensors[f"input_blocks.{n}.0.out_layers.3.weight"].shape[0] for n in firsts]
    attends = [f"input_blocks.{n}.1.norm.weight" in tensors for n in firsts]
    return {
        "sample_size": 32,
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "block_out_channels": tuple(channels),
        "layers_per_block": step - 1,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "cross_attention_dim": tensors["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": tuple(max(c // HEAD, 1) for c in channels),  # their number, despite its name
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": CAMERA,
    }


def unet_tensors(tensors: Mapping[str, Tensor]) -> Tensors:
    """A UNet of latent diffusion under diffusers' names."""
    step = min(_numbers(tensors, r"input_blocks\.(\d+)\.0\.op\.weight"))
    return {unet_name(name, step): value for name, value in tensors.items()}


def unet_name(name: str, step: int) -> str:
    """diffusers' name of a tensor, or the same where there is none; step is the number of blocks a level."""
    stem, _, kind = name.rpartition(".")
    if stem in AROUND:
        return f"{AROUND[stem]}.{kind}"
    if found := re.fullmatch(r"(middle_block\.\d)\.(.+)", stem):
        return f"{MIDDLE.get(found[1], found[1])}.{RESIDUAL.get(found[2], found[2])}.{kind}"
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", stem)
    if not found:
        return name
    down = found[1] == "input"
    level, index = divmod(int(found[2]) - down, step)
    block = f"{'down' if down else 'up'}_blocks.{level}"
    if found[4] in ("op", "conv"):
        return f"{block}.{'down' if down else 'up'}samplers.0.conv.{kind}"
    part = "resnets" if found[3] == "0" else "attentions"
    return f"{block}.{part}.{index}.{RESIDUAL.get(found[4], found[4])}.{kind}"


def vae_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' settings, by the shapes; KeyError where a tensor is not there."""
    levels = _numbers(tensors, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    return {
        "latent_channels": tensors["post_quant_conv.weight"].shape[0],
        "block_out_channels": tuple(
            tensors[f"encoder.down.{n}.block.0.conv1.weight"].shape[0] for n in levels
        ),
        "layers_per_block": len(_numbers(tensors, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight")),
        "down_block_types": ("DownEncoderBlock2D",) * len(levels),
        "up_block_types": ("UpDecoderBlock2D",) * len(levels),
        "scaling_factor": SCALE,
    }


def vae_tensors(tensors: Mapping[str, Tensor]) -> Tensors:
    """An autoencoder of latent diffusion under diffusers' names; attention's convolutions become matrices."""
    levels = len(_numbers(tensors, r"decoder\.up\.(\d+)\.block\.0\.conv1\.weight"))
    named = {vae_name(name, levels): value for name, value in tensors.items()}
    return {
        name: value[:, :, 0, 0] if ".attentions." in name and value.ndim == 4 else value
        for name, value in named.items()
    }


def vae_name(name: str, levels: int) -> str:
    """diffusers' name of a tensor, or the same where there is none."""
    stem, _, kind = name.rpartition(".")
    if found := re.fullmatch(r"(encoder|decoder)\.(mid\.\w+)\.(\w+)", stem):
        table = ATTENTION if "attn" in found[2] else RESIDUAL
        return f"{found[1]}.{MIDDLE.get(found[2], found[2])}.{table.get(found[3], found[3])}.{kind}"
    found = re.fullmatch(r"(\w+)\.(down|up)\.(\d+)\.(?:block\.(\d+)|(?:down|up)sample)\.(\w+)", stem)
    if not found:
        return name.replace(".norm_out.", ".conv_norm_out.")
    side, way, level, index, rest = found.groups()
    place = level if way == "down" else levels - 1 - int(level)  # theirs count from the finest, both ways
    part = f"{way}samplers.0" if index is None else f"resnets.{index}"
    return f"{side}.{way}_blocks.{place}.{part}.{RESIDUAL.get(rest, rest)}.{kind}"


def text_layers(tensors: Mapping[str, Tensor]) -> Tensors:
    """open_clip's text encoder without its last layer, which MVDream does not ask."""
    last = max(_numbers(tensors, r"transformer\.resblocks\.(\d+)\.ln_1\.weight"), default=0)
    end = f"transformer.resblocks.{last}."
    return {name: value for name, value in tensors.items() if not name.startswith(end)}


def _numbers(tensors: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The numbers in the names that match a pattern with one group, in order."""
    return sorted(int(found[1]) for name in tensors if (found := re.fullmatch(pattern, name)))
