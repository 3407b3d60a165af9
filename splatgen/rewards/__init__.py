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
    views: int = 1
    embedded: bool = False  # part of the package


REWARDS = {
    "toybox": RewardEntry(loader="splatgen.rewards.toybox:load", embedded=True),
    "toybox-mini": RewardEntry(loader="splatgen.rewards.toybox:load_mini", embedded=True),
    "shelf": RewardEntry(loader="splatgen.rewards.shelf:load", embedded=True),
    "hpsv2": RewardEntry(loader="splatgen.rewards.hpsv2:load"),
    "hpsv2.0": RewardEntry(loader="splatgen.rewards.hpsv2:load_v20"),
    "image-reward": RewardEntry(loader="splatgen.rewards.image_reward:load"),
    "pickscore": RewardEntry(loader="splatgen.rewards.clip:load_pickscore"),
    "clip": RewardEntry(loader="splatgen.rewards.clip:load"),
    "clip-iqa": RewardEntry(loader="splatgen.rewards.clip_iqa:load"),
    "vqa": RewardEntry(loader="splatgen.rewards.vqa:load"),
    "vqa-7b": RewardEntry(loader="splatgen.rewards.vqa:load_7b"),
    "hpsv3": RewardEntry(loader="splatgen.rewards.hpsv3:load"),
    "aesthetic": RewardEntry(loader="splatgen.rewards.aesthetic:load"),
    "aesthetic-v2": RewardEntry(loader="splatgen.rewards.aesthetic:load_v2"),
    "reward3d": RewardEntry(loader="splatgen.rewards.reward3d:load", views=4),
    "reward3d-fusion": RewardEntry(loader="splatgen.rewards.reward3d:load_fusion", views=4),
}
JUDGES = {  # these only watch
    **REWARDS,
    "toybox-judge": RewardEntry(loader="splatgen.rewards.toybox:load_judge", embedded=True),
    "shelf-judge": RewardEntry(loader="splatgen.rewards.shelf:load_judge", embedded=True),
}


def load_reward(name: str, load_options: LoadOptions) -> Reward:
    """Load a reward or judge by name; ValueError for an unknown name, WeightsError for what is not whole."""
    reward: Reward = registry.loader(registry.entry(JUDGES, "reward", name).loader)(load_options)
    return reward
