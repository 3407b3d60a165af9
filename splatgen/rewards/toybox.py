"""The embedded reward: cosine of a picture and a caption of the toybox world."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splatgen.models.budget import LoadOptions
from splatgen.runs.version import __version__
from splatgen.scene.uploads import upload
from splatgen.scene.view_prompts import split_view
from splatgen.worlds.towers import RewardNet
from splatgen.worlds.toybox import weights_folder
from splatgen.worlds.toybox.grammar import parse
from splatgen.worlds.toybox.model import load_net, tokenize
from splatgen.worlds.toybox.sampling import with_view

USUAL = {  # mean and standard deviation over exact pictures of 64 unseen captions from 4 views each
    "toybox": (0.86, 0.05),
    "toybox-mini": (0.81, 0.05),
    "toybox-judge": (0.85, 0.04),
}


class ToyboxReward:
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
        texts = []
        for prompt in unique:
            text, word = split_view(prompt)
            texts.append(with_view(str(parse(text)), word))
        device = next(self.net.parameters()).device
        with torch.no_grad():
            captions = self.net.embed_texts(tokenize(texts))
        row = upload(torch.tensor([unique.index(prompt) for prompt in prompts]), device)
        return (self.net.embed_images(images) * captions[row]).sum(-1)


def load(load_options: LoadOptions, weights: str = "reward", name: str = "toybox") -> ToyboxReward:
    """The packaged reward."""
    net = load_net(weights_folder(), weights)
    if not isinstance(net, RewardNet):
        raise ValueError(f"{weights}.json describes a prior: the package is damaged, install it again")
    return ToyboxReward(net.to(load_options.device), name, USUAL[name])


def load_mini(load_options: LoadOptions) -> ToyboxReward:
    """A miniature of 16 pixels for tests."""
    return load(load_options, weights="mini-reward", name="toybox-mini")


def load_judge(load_options: LoadOptions) -> ToyboxReward:
    """A reward of another seed and width that only evaluates: it is in JUDGES, not in REWARDS."""
    return load(load_options, weights="judge", name="toybox-judge")
