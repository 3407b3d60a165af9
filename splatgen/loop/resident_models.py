"""Models that stay loaded from one run to the next."""

from __future__ import annotations

import gc

import torch

from splatgen.config import Config, PriorOptions
from splatgen.loop import lifecycle
from splatgen.loop.step import Models, load_models
from splatgen.models.budget import LoadOptions
from splatgen.priors import Prior, load_options_for, load_prior
from splatgen.rewards import Reward, load_reward

PriorKey = tuple[str, PriorOptions, LoadOptions]  # what its loader is told
RewardKey = tuple[str, LoadOptions]


class ResidentModels:
    """The networks of the last run, kept under what their loaders were told.

    A loader is told everything that its network depends on but the content of the files, which is read once.
    """

    def __init__(self) -> None:
        self._priors: dict[PriorKey, Prior] = {}  # one, or none
        self._rewards: dict[RewardKey, Reward] = {}

    def models(self, config: Config) -> Models:
        """The models of a run, with a score and a preference of its own; raises what loaders and `embed` do.

        What this run has no use for is let go before anything is loaded.
        """
        device = lifecycle.pick_device(config)
        how = load_options_for(config, device)
        names = (*config.rewards(), *config.holdout_reward)
        self._let_go({(config.prior, config.prior_options, how)}, {(name, how) for name in names})
        return load_models(config, device, self._prior, self._reward)

    def _prior(self, *key: *PriorKey) -> Prior:
        if key not in self._priors:
            self._priors[key] = load_prior(*key)
        return self._priors[key]

    def _reward(self, *key: *RewardKey) -> Reward:
        if key not in self._rewards:
            self._rewards[key] = load_reward(*key)
        return self._rewards[key]

    def clear(self) -> None:
        """Let everything go."""
        self._let_go(set(), set())

    def _let_go(self, prior: set[PriorKey], rewards: set[RewardKey]) -> None:
        """All but these."""
        before = len(self._priors) + len(self._rewards)
        self._priors = {key: self._priors[key] for key in self._priors if key in prior}
        self._rewards = {key: self._rewards[key] for key in self._rewards if key in rewards}
        if len(self._priors) + len(self._rewards) < before:
            collect()


def collect() -> None:
    """Give back the memory of what nobody holds any more; half a second, where diffusers is loaded."""
    gc.collect()  # networks are full of cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
