"""Winner and loser of two candidates. Shapes: B views, G items."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from splatgen.guidance.moment import Moment


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Winner and loser of two candidates for every item."""

    win: Tensor  # [G] 0 or 1
    gap: Tensor  # [G] reward of the winner less the loser's; NaN where one is not finite

    def kept(self, moment: Moment) -> Tensor:
        """Indices [2, B]: winner, loser."""
        return moment.views(torch.stack([self.win, 1 - self.win]))


def compare(rewards: Tensor) -> Pair:
    """The better of rewards [2, G]; the first where they are equal, and where neither is finite."""
    finite = torch.isfinite(rewards)
    safe = torch.where(finite, rewards, -torch.inf)
    win = (safe[1] > safe[0]).long()
    gap = torch.where(finite.all(0), (rewards[0] - rewards[1]).abs(), torch.nan)
    return Pair(win=win, gap=gap)
