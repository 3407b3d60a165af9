"""The toybox's networks, built from diffusers' and transformers' own classes.

Diffusion: `UNet2DConditionModel` on pixel_unshuffle(image, 2) with v-prediction; the text reaches it by
cross-attention, and the pooled text together with the camera through its class embedding.
Reward: two towers, a small convolutional one for images and a CLIP text model, compared by cosine.

Shapes: B images, L tokens, D text width, S image side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from splatgen.worlds import towers
from splatgen.worlds.towers import RewardConfig, RewardNet
from splatgen.worlds.toybox.grammar import vocabulary

PATCH = 2
HARMONICS = 3  # of the azimuth
CAMERA_FEATURES = 11


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Sizes of the diffusion model; `size` is the image side in pixels."""

    size: int = 32
    channels: tuple[int, ...] = (48, 64, 96)
    layers: int = 1
    text_width: int = 96
    text_layers: int = 2
    heads: int = 4


def tokenize(texts: Sequence[str]) -> Tensor:
    """Word tokens of canonical captions, [B, MAX_TOKENS]; unknown words are an error."""
    return towers.tokenize([text.replace(",", " ").split() for text in texts], vocabulary(), "toybox")


def camera_features(azimuth: Tensor, elevation: Tensor, harmonics: int = HARMONICS) -> Tensor:
    """Waves of a viewing direction in degrees, [B, 5 + 2 harmonics]; all zeros mean "no camera"."""
    az, el = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    waves = [f(k * az) for k in range(1, harmonics + 1) for f in (torch.sin, torch.cos)]
    return torch.stack([torch.ones_like(az), *waves, el.sin(), el.cos(), (2 * el).sin(), (2 * el).cos()], -1)


class PriorNet(nn.Module):
    """Text encoder and denoiser. `forward` predicts v at continuous time t in 0..1."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.config = config
        levels = len(config.channels)
        cross = [n > 0 for n in range(levels)]  # the finest level has no attention: it is where the time goes
        self.text = towers.text_model(len(vocabulary()), config.text_width, config.text_layers, config.heads)
        self.unet = UNet2DConditionModel(
            sample_size=config.size // PATCH,
            in_channels=3 * PATCH**2,
            out_channels=3 * PATCH**2,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross),
            up_block_types=tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)),
            cross_attention_dim=config.text_width,
            attention_head_dim=config.heads,  # diffusers' name for the number of heads
            norm_num_groups=8,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=config.text_width + CAMERA_FEATURES,
            resnet_time_scale_shift="scale_shift",
        )

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, L, D] and pooled state [B, D]."""
        out = self.text(input_ids=tokens)
        return out.last_hidden_state, out.pooler_output

    def forward(self, x: Tensor, t: Tensor, states: Tensor, pooled: Tensor, camera: Tensor) -> Tensor:
        """v for images x [B, 3, S, S] in -1..1 at t [B]; states [B, L, D], pooled [B, D], camera [B, F]."""
        out = self.unet(
            pixel_unshuffle(x, PATCH), 1000.0 * t, states, class_labels=torch.cat([pooled, camera], -1)
        ).sample
        return pixel_shuffle(out, PATCH)


def reward_net(config: RewardConfig) -> RewardNet:
    """Towers over the toybox's words."""
    return RewardNet(config, len(vocabulary()))


def config_json(config: PriorConfig | RewardConfig) -> dict[str, Any]:
    return asdict(config)


def load_net(folder: Path, name: str) -> PriorNet | RewardNet:
    """Load `name`.safetensors and its card `name`.json; a prior or a reward as the card says.

    Raises FileNotFoundError when the weights are missing and ValueError when they do not fit the card.
    """
    card_path, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    if not (card_path.is_file() and weights.is_file()):
        raise FileNotFoundError(
            f"no toybox weights {name!r} in {folder}: run `python -m splatgen.worlds.toybox.train {name}`"
        )
    card = json.loads(card_path.read_text())
    sizes: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in card["config"].items()}
    net = PriorNet(PriorConfig(**sizes)) if card["kind"] == "prior" else reward_net(RewardConfig(**sizes))
    state = {key: value.float() for key, value in load_file(weights).items()}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{weights.name} does not fit its card: {str(error).splitlines()[0]}") from error
    return net.eval().requires_grad_(False)
