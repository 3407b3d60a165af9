"""Rewards: the protocol that every one meets, and the tables of those there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from splatgen.hints import did_you_mean
from splatgen.priors import attribute

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Protocol):
    """How well images show what prompts ask for; differentiable, higher is better."""

    name: str
    views: int  # images judged together; they follow one another in a batch, and all get their score
    mean: float  # usual score of pictures that show their prompt
    spread: float  # usual standard deviation: different rewards are put together in these units

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in 0..1 for one prompt each."""


@dataclass(frozen=True, kw_only=True)
class RewardEntry:
    """Where a reward is, and what can be known of it before anything is loaded."""

    loader: str  # "module:function", called with (device)
    views: int = 1


REWARDS = {
    "toybox": RewardEntry(loader="splatgen.rewards.toybox:load"),
    "toybox-mini": RewardEntry(loader="splatgen.rewards.toybox:load_mini"),
}
JUDGES = {  # these only watch
    **REWARDS,
    "toybox-judge": RewardEntry(loader="splatgen.rewards.toybox:load_judge"),
}


def load_reward(name: str, device: str) -> Reward:
    """Load a reward or judge by name; ValueError for an unknown name, FileNotFoundError without weights."""
    if name not in JUDGES:
        raise ValueError(f"no reward {name[:60]!r}; {did_you_mean(name, JUDGES)}")
    return cast("Reward", attribute(JUDGES[name].loader)(device))  # type: ignore[operator]
