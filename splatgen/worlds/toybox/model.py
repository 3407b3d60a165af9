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
from torch.nn.functional import interpolate, normalize, pixel_shuffle, pixel_unshuffle

from splatgen.scene.uploads import upload
from splatgen.worlds.toybox.grammar import vocabulary

PATCH = 2
CAMERA_FEATURES = 11
MAX_TOKENS = 16
SPECIAL = ("<start>", "<end>")  # <end> also pads: the pooled state is read at the first one


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Sizes of the diffusion model; `size` is the image side in pixels."""

    size: int = 32
    channels: tuple[int, ...] = (48, 64, 96)
    layers: int = 1
    text_width: int = 96
    text_layers: int = 2
    heads: int = 4


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Sizes of the reward model."""

    size: int = 32
    channels: tuple[int, ...] = (48, 96, 144)
    embed: int = 96
    text_width: int = 96
    text_layers: int = 2
    heads: int = 4


def tokenize(texts: Sequence[str]) -> Tensor:
    """Word tokens of canonical captions, [B, MAX_TOKENS]; unknown words are an error."""
    index = {word: n for n, word in enumerate((*SPECIAL, *vocabulary()))}
    rows = []
    for text in texts:
        words = text.replace(",", " ").split()
        missing = [word for word in words if word not in index]
        if missing:
            raise ValueError(
                f"the toybox tokenizer does not know {missing[0][:30]!r}: use words of its vocabulary"
            )
        if len(words) > MAX_TOKENS - 2:
            raise ValueError(
                f"the toybox tokenizer takes {MAX_TOKENS - 2} words, got {len(words)}: shorten the text"
            )
        row = [0, *(index[word] for word in words)]
        rows.append(row + [1] * (MAX_TOKENS - len(row)))
    return torch.tensor(rows)


def text_model(width: int, layers: int, heads: int) -> nn.Module:
    """A tiny CLIP text model over the toybox's words."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(SPECIAL) + len(vocabulary()),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model: nn.Module = CLIPTextModel(config)
    return model


def camera_features(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Harmonics of a viewing direction in degrees, [B, CAMERA_FEATURES]; all zeros mean "no camera"."""
    az, el = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    waves = [f(k * az) for k in (1, 2, 3) for f in (torch.sin, torch.cos)]
    return torch.stack([torch.ones_like(az), *waves, el.sin(), el.cos(), (2 * el).sin(), (2 * el).cos()], -1)


class PriorNet(nn.Module):
    """Text encoder and denoiser. `forward` predicts v at continuous time t in 0..1."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.config = config
        levels = len(config.channels)
        cross = [n > 0 for n in range(levels)]  # the finest level has no attention: it is where the time goes
        self.text = text_model(config.text_width, config.text_layers, config.heads)
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


class RewardNet(nn.Module):
    """Image and text towers; the score is their cosine."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.config = config
        self.text = text_model(config.text_width, config.text_layers, config.heads)
        self.text_out = nn.Linear(config.text_width, config.embed)
        blocks: list[nn.Module] = []
        width = 3 * PATCH**2
        for channels in config.channels:
            blocks += [
                nn.Conv2d(width, channels, 3, padding=1),
                nn.GroupNorm(8, channels),
                nn.SiLU(),
                nn.Conv2d(channels, channels, 3, stride=2, padding=1),
                nn.GroupNorm(8, channels),
                nn.SiLU(),
            ]
            width = channels
        self.image = nn.Sequential(*blocks)
        side = config.size // PATCH // 2 ** len(config.channels)
        self.image_out = nn.Linear(width * side**2, config.embed)  # where things are matters: no pooling
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [B, E] of images [B, 3, H, W] in 0..1, resized to the model's side."""
        s = self.config.size
        if images.shape[-2:] != (s, s):
            images = interpolate(images, size=(s, s), mode="bilinear", antialias=True, align_corners=False)
        features = self.image(pixel_unshuffle(2.0 * images - 1.0, PATCH))
        return normalize(self.image_out(features.flatten(1)), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit vectors [B, E] of tokens [B, L]; from the CPU they need not be waited for."""
        length = int((tokens != 1).sum(1).max()) + 1  # what follows the first <end> changes nothing
        tokens = upload(tokens[:, :length], self.log_scale.device)
        return normalize(self.text_out(self.text(input_ids=tokens).pooler_output), dim=-1)


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
    net = PriorNet(PriorConfig(**sizes)) if card["kind"] == "prior" else RewardNet(RewardConfig(**sizes))
    state = {key: value.float() for key, value in load_file(weights).items()}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{weights.name} does not fit its card: {str(error).splitlines()[0]}") from error
    return net.eval().requires_grad_(False)
