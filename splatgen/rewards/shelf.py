"""The embedded rewards of real things: cosine of a picture and a caption of the shelf."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splatgen.models.budget import LoadOptions
from splatgen.runs.version import __version__
from splatgen.scene.view_prompts import split_view
from splatgen.worlds.shelf import weights_folder
from splatgen.worlds.shelf.grammar import parse
from splatgen.worlds.shelf.model import load_net, reward_tokens, usual_scores
from splatgen.worlds.towers import RewardNet


class ShelfReward:
    """Scores in -1..1."""

    views = 1

    def __init__(self, net: RewardNet, name: str, usual: tuple[float, float] = (0.0, 1.0)) -> None:
        self.name = name
        self.net = net
        self.mean, self.spread = usual
        self.source = f"splatgen {__version__}"

    def prepare(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            parse(split_view(prompt)[0])

    def release(self) -> None:
        """Its text encoder is small, and stays."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [B] of images [B, 3, H, W] in 0..1 with prompts, which may name a view."""
        unique = list(dict.fromkeys(prompts))
        row = torch.tensor([unique.index(prompt) for prompt in prompts], device=images.device)
        return (self.net.embed_images(images) * self._captions(tuple(unique))[row]).sum(-1)

    def table(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [V, K] of every image [V, 3, H, W] with every prompt."""
        return self.net.embed_images(images) @ self._captions(tuple(prompts)).T

    def _captions(self, prompts: tuple[str, ...]) -> Tensor:
        """[B, E], in the precision of the network."""
        texts, views = zip(*map(split_view, prompts), strict=True)
        device = next(self.net.parameters()).device
        with torch.no_grad():
            return self.net.embed_texts(reward_tokens([parse(t) for t in texts], views).to(device))


def load(load_options: LoadOptions, weights: str = "reward", name: str = "shelf") -> ShelfReward:
    """The packaged reward; WeightsError where it is missing or damaged."""
    net: RewardNet = load_net(weights_folder(), weights, "reward")
    return ShelfReward(net.to(load_options.device), name, usual_scores(weights_folder(), weights))


def load_judge(load_options: LoadOptions) -> ShelfReward:
    """A reward of another seed and width that only evaluates: it is in JUDGES, not in REWARDS."""
    return load(load_options, weights="judge", name="shelf-judge")
