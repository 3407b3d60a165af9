"""ImageReward v1.0 (Xu et al. 2023): BLIP, tuned on people's rankings of pictures for a prompt.

Shapes: B images, S the side in pixels that the network sees, L tokens, D the width of the text encoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatgen.models.budget import LoadOptions
from splatgen.models.loading import explained
from splatgen.models.weights import find
from splatgen.rewards.blip import Blip, Words, load_network, load_words
from splatgen.rewards.pictures import cropped, normalised

TOKENS = 35  # that it was trained with, [CLS] and [SEP] among them
MEAN, SPREAD = 0.16717362830052426, 1.0333394966054072  # of raw scores over its makers' pictures


def head(width: int) -> torch.nn.Sequential:
    """What makes [..., 1] of [..., D]: linear throughout, as published; dropout was in the gaps."""
    linear, gap = torch.nn.Linear, torch.nn.Identity
    return torch.nn.Sequential(
        linear(width, 1024),
        gap(),
        linear(1024, 128),
        gap(),
        linear(128, 64),
        gap(),
        linear(64, 16),
        linear(16, 1),
    )


class ImageRewardNetwork(torch.nn.Module):
    """BLIP with the published head."""

    def __init__(self, blip: Blip) -> None:
        super().__init__()
        self.blip = blip
        self.mlp = head(blip.width)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores [B] of normalised pictures [B, 3, S, S] for tokens [B, L]; the head is in float32."""
        first = self.blip(pixels, ids, mask).to(self.mlp[0].weight.dtype)
        scores: Tensor = (self.mlp(first).squeeze(-1) - MEAN) / SPREAD
        return scores


class ImageReward:
    """Scores of mean 0 and standard deviation 1 over its makers' pictures, about -2 to 2.

    It reads 33 tokens of a prompt, as the published code does; a warning says what it does not read.
    """

    name = "image-reward"
    views = 1
    mean, spread = 0.0, 1.0

    def __init__(self, network: ImageRewardNetwork, words: Words, source: str) -> None:
        self.network, self.source = network, source
        self._words = words

    def prepare(self, prompts: Sequence[str]) -> None:
        self._words.read(prompts)

    def release(self) -> None:
        """Nothing goes: its text encoder looks at the picture, so every score needs it."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in 0..1: their middle square, for one prompt each."""
        ids, mask = self._words(prompts)
        return self.network(normalised(cropped(images, self.network.blip.side)), ids, mask)  # type: ignore[no-any-return]


def read_med(path: Path) -> dict[str, Any]:
    """What med_config.json says of BERT and tensors do not; raises WeightsError where it is damaged."""
    with explained(dict, path):
        med = json.loads(path.read_text(encoding="utf-8"))
        return {
            "num_attention_heads": int(med["num_attention_heads"]),
            "hidden_act": str(med["hidden_act"]),
            "layer_norm_eps": float(med["layer_norm_eps"]),
        }


def load(load_options: LoadOptions) -> ImageReward:
    """The published weights; raises WeightsError where they are not whole."""
    found = find("image-reward", load_options.weights)
    med = read_med(found.main / "med_config.json")
    network = load_network(ImageRewardNetwork, found.main / "ImageReward.pt", load_options, med=med)
    words = load_words(
        found.folders["tokenizer"], network.blip, most=TOKENS, name="image-reward", device=load_options.device
    )
    return ImageReward(network, words, found.source)
