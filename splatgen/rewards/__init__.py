"""Rewards: the protocol that every one meets, and the table of those there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

from splatgen.priors import resolve

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Protocol):
    """How well images show what prompts ask for; differentiable, higher is better."""

    name: str
    views: int  # images judged together

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in 0..1 for one prompt each."""


REWARDS = {  # name: "module:function", called with (device)
    "toybox": "splatgen.rewards.toybox:load",
    "toybox-mini": "splatgen.rewards.toybox:load_mini",
}


def load_reward(name: str, device: str) -> Reward:
    """Load a reward by name; FileNotFoundError when its weights are missing."""
    return cast("Reward", resolve(REWARDS, name, "reward")(device))  # type: ignore[operator]
