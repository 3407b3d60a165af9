"""Two towers: a small convolutional network for pictures and a CLIP text model for words, compared by cosine.

Shapes: B images, L tokens, D text width, E embedding, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize, pixel_unshuffle

from splatgen.scene.uploads import upload

MAX_TOKENS = 16
SPECIAL = ("<start>", "<end>")  # <end> also pads: the pooled state is read at the first one


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Sizes of a reward model; `size` is the image side in pixels."""

    size: int = 32
    channels: tuple[int, ...] = (48, 96, 144)
    embed: int = 96
    text_width: int = 96
    text_layers: int = 2
    heads: int = 4
    patch: int = 2  # pixels that are folded into channels before the first layer
    activation: str = "quick_gelu"  # of the text model


def tokenize(texts: Sequence[Sequence[str]], vocabulary: Sequence[str], world: str) -> Tensor:
    """Word tokens [B, MAX_TOKENS] of texts that are cut into words; unknown words are an error."""
    index = {word: n for n, word in enumerate((*SPECIAL, *vocabulary))}
    rows = []
    for words in texts:
        missing = [word for word in words if word not in index]
        if missing:
            raise ValueError(
                f"the {world} tokenizer does not know {missing[0][:30]!r}: use words of its vocabulary"
            )
        if len(words) > MAX_TOKENS - 2:
            raise ValueError(
                f"the {world} tokenizer takes {MAX_TOKENS - 2} words, got {len(words)}: shorten the text"
            )
        row = [0, *(index[word] for word in words)]
        rows.append(row + [1] * (MAX_TOKENS - len(row)))
    return torch.tensor(rows)


def text_model(
    words: int, width: int, layers: int, heads: int, inner: int = 4, activation: str = "quick_gelu"
) -> nn.Module:
    """A tiny CLIP text model over a vocabulary of that many words; inner: of its MLPs, in widths."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(SPECIAL) + words,
        hidden_size=width,
        intermediate_size=inner * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model: nn.Module = CLIPTextModel(config)
    return model


class RewardNet(nn.Module):
    """Image and text towers; the score is their cosine."""

    def __init__(self, config: RewardConfig, words: int) -> None:
        super().__init__()
        self.config = config
        self.text = text_model(
            words, config.text_width, config.text_layers, config.heads, activation=config.activation
        )
        self.text_out = nn.Linear(config.text_width, config.embed)
        blocks: list[nn.Module] = []
        width = 3 * config.patch**2
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
        side = config.size // config.patch // 2 ** len(config.channels)
        self.image_out = nn.Linear(width * side**2, config.embed)  # where things are matters: no pooling
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [B, E] of images [B, 3, H, W] in 0..1, resized to the model's side."""
        s = self.config.size
        if images.shape[-2:] != (s, s):
            images = interpolate(images, size=(s, s), mode="bilinear", antialias=True, align_corners=False)
        features = self.image(pixel_unshuffle(2.0 * images - 1.0, self.config.patch))
        return normalize(_full(self.image_out(features.flatten(1))), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit vectors [B, E] of tokens [B, L]; from the CPU they need not be waited for."""
        length = int((tokens != 1).sum(1).max()) + 1  # what follows the first <end> changes nothing
        tokens = upload(tokens[:, :length], self.log_scale.device)
        return normalize(_full(self.text_out(self.text(input_ids=tokens).pooler_output)), dim=-1)


def _full(x: Tensor) -> Tensor:
    """In float32 or better: angles between vectors are small numbers."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
