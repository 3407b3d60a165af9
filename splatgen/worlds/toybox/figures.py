"""Held-out figures for a model's card: the training's own measures on captions it never saw."""

from __future__ import annotations

import torch

from splatgen.worlds.towers import RewardNet
from splatgen.worlds.toybox.losses import prior_loss, reward_logits
from splatgen.worlds.toybox.model import PriorNet
from splatgen.worlds.toybox.recipes import Recipe

FIRST_STEP = 10**9  # batches that no training reaches
BATCHES = 16


@torch.no_grad()
def held_out_figures(net: PriorNet | RewardNet, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """v-loss of a prior, share of pictures ranked right among hard negatives of a reward; unseen and seen."""
    found: dict[str, float] = {}
    for name, unseen in (("unseen", True), ("seen", False)):
        total = 0.0
        for step in range(FIRST_STEP, FIRST_STEP + BATCHES):
            if isinstance(net, PriorNet):
                total += float(prior_loss(net, recipe, step, device, unseen=unseen))
            else:
                batch, hard = reward_logits(net, recipe, step, device, unseen=unseen)
                total += float((batch.diagonal() > hard.amax(1)).float().mean())
        measure = "v_loss" if isinstance(net, PriorNet) else "ranked_first"
        found[f"{measure}_{name}"] = round(total / BATCHES, 4)
    return found
