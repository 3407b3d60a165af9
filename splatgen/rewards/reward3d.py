"""Reward3D (DreamReward, Ye et al. 2024): four views of an object as one score.

Both published variants read each view with ImageReward's BLIP and differ in how views come together. Their
training code is not published; this follows the code that uses them (DreamReward's and DreamDPO's), where
each view has the prompt that names it: set reward.view-prompts.

Shapes: G objects, B = 4 G views that follow one another, S the side in pixels that the network sees, L
tokens, D the width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from splatgen.models.budget import LoadOptions
from splatgen.models.weights import find
from splatgen.rewards.blip import HEAD_WIDTH, Blip, Words, load_network, load_words
from splatgen.rewards.image_reward import MEAN, SPREAD, head
from splatgen.rewards.pictures import cropped, normalised

VIEWS = 4
TOKENS = 100  # of a prompt, [CLS] and [SEP] among them


class Scorer(torch.nn.Module):
    """The variant of the paper: 128 numbers of each view, in their order, and a linear scorer of them."""

    def __init__(self, blip: Blip) -> None:
        super().__init__()
        self.blip = blip
        self.mlp = head(blip.width)  # published whole; its first three layers are used
        self.scorer = torch.nn.ModuleDict(
            {
                "fc1": torch.nn.Linear(VIEWS * 128, 256),
                "fc2": torch.nn.Linear(256, 64),
                "fc3": torch.nn.Linear(64, 1),
            }
        )

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores [G] of normalised pictures [B, 3, S, S] for tokens [B, L]."""
        first = self.blip(pixels, ids, mask).to(self.mlp[0].weight.dtype)
        x = self.mlp[:3](first).reshape(-1, VIEWS * 128)
        for layer in self.scorer.values():
            x = layer(x)
        scores: Tensor = (x.squeeze(-1) - MEAN) / SPREAD
        return scores


class ViewFusion(torch.nn.Module):
    """Views look at each other, a gate mixes what they saw into each, and their mean is what counts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = torch.nn.MultiheadAttention(width, max(width // HEAD_WIDTH, 1), batch_first=True)
        self.fusion_gate = torch.nn.Sequential(torch.nn.Linear(2 * width, width), torch.nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """[G, 4, D] to [G, D]."""
        seen, _ = self.self_attn(x, x, x, need_weights=False)
        return torch.lerp(x, seen, self.fusion_gate(torch.cat([x, seen], dim=-1))).mean(1)


class Fusion(torch.nn.Module):
    """The later variant: views attend to each other before ImageReward's head, and their order is nothing."""

    def __init__(self, blip: Blip) -> None:
        super().__init__()
        self.blip = blip
        self.cross_view_adapter = ViewFusion(blip.width)
        self.mlp = head(blip.width)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores [G] of normalised pictures [B, 3, S, S] for tokens [B, L]."""
        first = self.blip(pixels, ids, mask).to(self.mlp[0].weight.dtype)
        fused = self.cross_view_adapter(first.unflatten(0, (-1, VIEWS)))
        scores: Tensor = (self.mlp(fused).squeeze(-1) - MEAN) / 5.0  # as published, not SPREAD
        return scores


class Reward3D:
    """Scores that DreamReward pushes towards 4; objects that others reported on are between -1 and 1."""

    views = VIEWS
    mean, spread = 0.0, 1.0

    def __init__(self, network: Scorer | Fusion, words: Words, *, name: str, source: str) -> None:
        self.network, self.name, self.source = network, name, source
        self._words = words

    def prepare(self, prompts: Sequence[str]) -> None:
        self._words.read(prompts)

    def release(self) -> None:
        """Nothing goes: its text encoder looks at the picture, so every score needs it."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in 0..1, the same for the four views of an object.

        The published code gives views by growing azimuth, quarter turns apart. Raises ValueError for views
        that do not make whole objects.
        """
        if len(images) % VIEWS:
            raise ValueError(
                f"{self.name} judges {VIEWS} views at once and got {len(images)}: set views.count 4"
            )
        ids, mask = self._words(prompts)
        scores: Tensor = self.network(normalised(cropped(images, self.network.blip.side)), ids, mask)
        return scores.repeat_interleave(VIEWS)


def load(load_options: LoadOptions) -> Reward3D:
    """The paper's variant; raises WeightsError where its weights are not whole."""
    return _load("reward3d", "Reward3D_Scorer.pt", Scorer, load_options)


def load_fusion(load_options: LoadOptions) -> Reward3D:
    """The variant whose views attend to each other; raises WeightsError where its weights are not whole."""
    return _load("reward3d-fusion", "Reward3D_CrossViewFusion.pt", Fusion, load_options)


def _load(
    name: str, file: str, make: Callable[[Blip], Scorer | Fusion], load_options: LoadOptions
) -> Reward3D:
    found = find(name, load_options.weights)
    network = load_network(make, found.main / file, load_options, med={})
    words = load_words(
        found.folders["tokenizer"], network.blip, most=TOKENS, name=name, device=load_options.device
    )
    return Reward3D(network, words, name=name, source=found.source)
