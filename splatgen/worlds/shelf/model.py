"""The shelf's networks, built from diffusers' and transformers' own classes.

A cut-out is colour times coverage, and coverage: four channels without a background.
Autoencoder: `AutoencoderKL` on pixel_unshuffle(cut-out, 2).
Diffusion: `UNet2DConditionModel` on its latents with v-prediction; words and the camera's own token reach it
by cross-attention, the pooled text and the camera through its class embedding, and rays of pixels (see
splatgen.worlds.shelf.rays) as channels beside the latents.
Reward: two towers, see splatgen.worlds.towers.

Shapes: B images, L tokens, D text width, S image side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from splatgen.models.weights import WeightsError
from splatgen.worlds import towers
from splatgen.worlds.quantised import restored
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.grammar import AnyCaption, tokens
from splatgen.worlds.shelf.rays import RAYS, ray_map
from splatgen.worlds.towers import RewardConfig, RewardNet
from splatgen.worlds.toybox.model import camera_features

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

FOLD = 2  # pixels that become channels before the autoencoder
CHANNELS = 4  # of a cut-out
HARMONICS = 4  # of the azimuth
CAMERA = 5 + 2 * HARMONICS
INNER = 3  # of the text model's MLPs, in widths
VIEW = ("view", "side", "back", "overhead")  # words that rewards read beside the catalogue's


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of the autoencoder; `size` is the image side in pixels, each level but the first halves it."""

    size: int = 64
    channels: tuple[int, ...] = (48, 96)
    latents: int = 8

    @property
    def side(self) -> int:
        """Of the latents."""
        return self.size // (FOLD << (len(self.channels) - 1))


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Sizes of the diffusion model; `side` is that of its latents."""

    side: int = 16
    latents: int = 8
    channels: tuple[int, ...] = (96, 128, 160)
    text_width: int = 128
    text_layers: int = 2
    heads: int = 4
    rays: bool = False  # reads them beside the latents


def autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Folded cut-outs [B, 16, S/2, S/2] in -1..1 to latents, which are to have mean 0 and deviation 1."""
    from diffusers import AutoencoderKL

    levels = len(config.channels)
    return AutoencoderKL(
        in_channels=CHANNELS * FOLD**2,
        out_channels=CHANNELS * FOLD**2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=config.latents,
        norm_num_groups=8,
        sample_size=config.size // FOLD,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def fold(cutouts: Tensor) -> Tensor:
    """Cut-outs [B, 4, S, S] as the autoencoder takes them, [B, 16, S/2, S/2]."""
    return pixel_unshuffle(cutouts, FOLD)


def unfold(folded: Tensor) -> Tensor:
    """Undo `fold`."""
    return pixel_shuffle(folded, FOLD)


class PriorNet(nn.Module):
    """Text encoder, camera embedding and denoiser; predicts v at continuous time t in 0..1."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.config = config
        width, rest = config.text_width, len(config.channels) - 1
        words = len(catalogue().words)
        self.text = towers.text_model(words, width, config.text_layers, config.heads, INNER)
        self.camera = nn.Sequential(nn.Linear(CAMERA, width), nn.SiLU(), nn.Linear(width, 2 * width))
        self.unet = UNet2DConditionModel(
            sample_size=config.side,
            in_channels=config.latents + RAYS * config.rays,
            out_channels=config.latents,
            block_out_channels=config.channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * rest,
            up_block_types=("CrossAttnUpBlock2D",) * rest + ("UpBlock2D",),
            cross_attention_dim=width,
            attention_head_dim=config.heads,  # diffusers' name for the number of heads
            norm_num_groups=8,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * width,
            resnet_time_scale_shift="scale_shift",
        )

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, L, D] and pooled state [B, D]."""
        out = self.text(input_ids=tokens)
        return out.last_hidden_state, out.pooler_output

    def forward(self, x: Tensor, t: Tensor, states: Tensor, pooled: Tensor, camera: Tensor) -> Tensor:
        """v for latents x [B, C, h, w] at t [B]; states [B, L, D], pooled [B, D], camera [B, CAMERA]."""
        pooled_camera, token = self.camera(camera).chunk(2, -1)
        if self.config.rays:
            x = torch.cat([x, ray_map(camera.float(), x.shape[-1]).to(x.dtype)], 1)
        v: Tensor = self.unet(
            x,
            1000.0 * t,
            torch.cat([states, token[:, None]], 1),
            class_labels=torch.cat([pooled, pooled_camera], -1),
        ).sample
        return v


def seen_from(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """What the denoiser is told of viewing directions in degrees, [B, CAMERA]; zeros mean "no camera"."""
    return camera_features(azimuth, elevation, HARMONICS)


def prior_tokens(captions: Sequence[AnyCaption | None]) -> Tensor:
    """Captions [B, L] as the prior reads them; None is the empty one."""
    texts = [[] if caption is None else tokens(caption) for caption in captions]
    return towers.tokenize(texts, catalogue().words, "shelf")


def reward_words() -> tuple[str, ...]:
    """Every word that rewards read, in the tokenizer's order."""
    return (*catalogue().words, *VIEW)


def reward_tokens(captions: Sequence[AnyCaption], views: Sequence[str | None]) -> Tensor:
    """Captions [B, L] as rewards read them: with the word of the view, where it is told."""
    texts = [
        [*tokens(as_seen(caption, view)), *(() if view is None else (view, "view"))]
        for caption, view in zip(captions, views, strict=True)
    ]
    return towers.tokenize(texts, reward_words(), "shelf")


def as_seen(caption: AnyCaption, view: str | None) -> AnyCaption:
    """The caption with the left one of two things side by side first, as the picture has them.

    From behind that is the second. A network that had to find this out would have to learn the exclusive or
    of two words, at which it stays at chance for long.
    """
    if view != "back" or caption.relation != "next to" or caption.second is None:
        return caption
    swapped: AnyCaption = type(caption)(caption.second, caption.relation, caption.first)  # type: ignore[arg-type]
    return swapped


def reward_net(config: RewardConfig) -> RewardNet:
    """Towers over the shelf's words."""
    return RewardNet(config, len(reward_words()))


NETS: dict[str, tuple[Any, Any]] = {  # kind: what a card's sizes are, what they make
    "autoencoder": (AutoencoderConfig, autoencoder),
    "prior": (PriorConfig, PriorNet),
    "reward": (RewardConfig, reward_net),
}


def load_net(folder: Path, name: str, kind: str) -> Any:
    """The network in `name`.safetensors, as its card `name`.json describes it, in float32, frozen.

    kind: autoencoder (an `AutoencoderKL`), prior (a `PriorNet`) or reward (a `RewardNet`).
    Raises WeightsError in a line for what is missing, damaged, or of another kind.
    """
    card_path, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    for path in (weights, card_path):
        if not path.is_file():
            raise WeightsError(f"{path} is missing: `python -m splatgen.worlds.shelf.train {name}` makes it")
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        found, sizes = card["kind"], _sizes(card["config"])
        net = NETS[kind][1](NETS[kind][0](**sizes)) if found == kind else None
        state = restored(load_file(weights))
        if net is not None:
            net.load_state_dict(state)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[-1].strip()[:160]
        raise WeightsError(f"{weights} does not fit its card ({reason}): install splatgen again") from error
    if net is None:
        raise WeightsError(f"{card_path} describes a {found!s:.40}, not a {kind}: give the shelf's weights")
    return net.eval().requires_grad_(False)


def usual_scores(folder: Path, name: str) -> tuple[float, float]:
    """Mean and deviation of a reward's scores of exact pictures, by its card; WeightsError without them."""
    path = folder / f"{name}.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))["held_out"]
        return float(held["score_mean"]), float(held["score_spread"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path} does not say what scores are usual: install splatgen again") from error


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
