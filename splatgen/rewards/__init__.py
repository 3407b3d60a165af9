"""Rewards: the protocol that every one meets, the table of those there are, and several as one.

Not here: what is made of their scores, which preferences decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from splatgen.models import registry
from splatgen.models.budget import LoadOptions

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Protocol):
    """How well images show what prompts ask for; differentiable, higher is better."""

    name: str
    views: int  # images judged together; they follow one another in a batch, and all get their score
    mean: float  # usual score of pictures that show their prompt
    spread: float  # usual standard deviation: different rewards are put together in these units
    source: str  # where its weights are from: id@revision, or a path

    def prepare(self, prompts: Sequence[str]) -> None:
        """Read the prompts of a run ahead: raises ValueError for what it cannot read."""

    def release(self) -> None:
        """Free what only reading prompts needs; it is loaded again when another prompt comes."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in 0..1 for one prompt each."""


@dataclass(frozen=True, kw_only=True)
class RewardEntry:
    """Where a reward is, and what can be known of it before anything is loaded."""

    loader: str  # "module:function", called with (LoadOptions)
    about: str  # what its score tells, and where scores usually lie
    views: int = 1
    embedded: bool = False  # part of the package


_TOYBOX, _SHELF = "splatgen.rewards.toybox", "splatgen.rewards.shelf"
_FITS = "fit of pictures and words, by {} of ours; exact ones have {}"
_LIKED = "how people would like the pictures for the words; good ones have about {}"
_YES = "how surely a language model says that the pictures show the words; 0 to 1"
_FOUR = "how four views together would be liked for the words; 0 is usual, 2 much"

REWARDS = {
    "toybox": RewardEntry(
        loader=f"{_TOYBOX}:load", about=_FITS.format("a small network", "0.86"), embedded=True
    ),
    "toybox-mini": RewardEntry(
        loader=f"{_TOYBOX}:load_mini", about=_FITS.format("a tiny network", "0.81"), embedded=True
    ),
    "shelf": RewardEntry(
        loader=f"{_SHELF}:load", about=_FITS.format("a small network", "0.83"), embedded=True
    ),
    "hpsv2": RewardEntry(loader="splatgen.rewards.hpsv2:load", about=_LIKED.format("0.28")),
    "hpsv2.0": RewardEntry(loader="splatgen.rewards.hpsv2:load_v20", about=_LIKED.format("0.27")),
    "image-reward": RewardEntry(
        loader="splatgen.rewards.image_reward:load",
        about="how people would like the pictures for the words; 0 is usual, 2 much",
    ),
    "pickscore": RewardEntry(loader="splatgen.rewards.clip:load_pickscore", about=_LIKED.format("20 to 22")),
    "clip": RewardEntry(
        loader="splatgen.rewards.clip:load",
        about="how near pictures and words are; those that fit have 20 to 35",
    ),
    "clip-b32": RewardEntry(
        loader="splatgen.rewards.clip:load_b32",
        about="the same by a smaller CLIP (ViT-B/32), as SDI reports it; those that fit have 28 to 36",
    ),
    "clip-iqa": RewardEntry(
        loader="splatgen.rewards.clip_iqa:load",
        about="how much nearer the pictures are to a good photo than to a bad one; 0 to 1",
    ),
    "vqa": RewardEntry(loader="splatgen.rewards.vqa:load", about=_YES),
    "vqa-7b": RewardEntry(loader="splatgen.rewards.vqa:load_7b", about=_YES),
    "hpsv3": RewardEntry(loader="splatgen.rewards.hpsv3:load", about=_LIKED.format("8 to 11")),
    "aesthetic": RewardEntry(
        loader="splatgen.rewards.aesthetic:load", about="beauty of the pictures, whatever the words; 4 to 7"
    ),
    "aesthetic-v2": RewardEntry(
        loader="splatgen.rewards.aesthetic:load_v2",
        about="beauty of the pictures, whatever the words; 4 to 7",
    ),
    "reward3d": RewardEntry(loader="splatgen.rewards.reward3d:load", about=_FOUR, views=4),
    "reward3d-fusion": RewardEntry(loader="splatgen.rewards.reward3d:load_fusion", about=_FOUR, views=4),
}
JUDGES = {  # these only watch
    **REWARDS,
    "toybox-judge": RewardEntry(
        loader=f"{_TOYBOX}:load_judge", about=_FITS.format("another network", "0.85"), embedded=True
    ),
    "shelf-judge": RewardEntry(
        loader=f"{_SHELF}:load_judge", about=_FITS.format("another network", "0.82"), embedded=True
    ),
}


def load_reward(name: str, load_options: LoadOptions) -> Reward:
    """Load a reward or judge by name; ValueError for an unknown name, WeightsError for what is not whole."""
    reward: Reward = registry.loader(registry.entry(JUDGES, "reward", name).loader)(load_options)
    return reward
