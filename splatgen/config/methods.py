"""Published methods by name: a score and a preference each, alone or lined up. No torch here.

Only the slots are named; every other setting stays what the run has, so that methods can be compared. The
presets in configs/ hold what the papers set beside them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from splatgen.config import Config, ConfigError, Method
from splatgen.config.hints import did_you_mean
from splatgen.config.schema import PREFERENCES, RANKING, SCORES
from splatgen.config.validation import validate

METHODS = {  # name: (score, preference)
    "sds": ("sds", "none"),
    "sdi": ("sdi", "none"),
    "vsd": ("vsd", "none"),
    "csd": ("csd", "none"),
    "ism": ("ism", "none"),
    "rewardsds": ("sds", "weighted"),
    "rewardsdi": ("sdi", "weighted"),
    "rewardvsd": ("vsd", "weighted"),
    "dreamdpo": ("sds", "dpo"),
    "psd": ("sds", "psd"),
    "dreamreward": ("sds", "ascent"),
}


def slots(name: str) -> dict[str, str]:
    """The settings of a method's name, or of SCORE+PREFERENCE; ConfigError when it is neither."""
    if name in METHODS:
        score, preference = METHODS[name]
        return {"score": score, "preference": preference}
    hints = typing.get_type_hints(Method)
    scores, preferences = typing.get_args(hints["score"]), typing.get_args(hints["preference"])
    score, plus, preference = name.partition("+")
    if plus and score in scores and preference in preferences:
        return {"score": score, "preference": preference}
    raise ConfigError(
        f"no method {name[:60]!r}; {did_you_mean(name, METHODS)}; or SCORE+PREFERENCE as in sdi+psd, "
        f"of {', '.join(scores)} and {', '.join(preferences)}"
    )


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What is compared: the settings of every method by name, each run with every seed."""

    methods: Mapping[str, Config]  # the first is what the others are held against
    seeds: Sequence[int]

    @property
    def first(self) -> Config:
        return next(iter(self.methods.values()))

    def config(self, method: str, seed: int) -> Config:
        """The settings of one run."""
        return dataclasses.replace(self.methods[method], seed=seed)


SHARED = ("prompt", "negative", "prior", "prior_options", "weights", "budget", "reward", "holdout_reward")


def line_up(bases: Mapping[str, Config], seeds: Sequence[int]) -> ComparisonPlan:
    """A plan out of the settings of each method's name, with score and preference set.

    An option of a piece counts for the methods that use the piece. ConfigError when none does, when two are
    the same method or don't share what they are measured with, and when a method's settings can't be used.
    """
    staged = next((name for name, base in bases.items() if base.stages), None)
    if staged is not None:
        raise ConfigError(
            f"method {staged} has stages, and a comparison is of runs that have one: leave it out"
        )
    used = {piece for base in bases.values() for piece in (base.score, base.preference)}
    for base in bases.values():
        _check_used(base, used, bases)
    methods: dict[str, Config] = {}
    for name, base in bases.items():
        config = _own(base, used)
        for other, before in methods.items():
            _check_comparable(name, config, other, before)
        try:
            for seed in (seeds[0], seeds[-1]):
                validate(dataclasses.replace(config, seed=seed))
        except ConfigError as error:
            raise ConfigError(f"method {name}: {error}") from error
        methods[name] = config
    return ComparisonPlan(methods=methods, seeds=seeds)


def _changed(config: Config, piece: str) -> list[str]:
    """Options of a piece that are not its usual ones."""
    group = getattr(config, piece)
    usual = type(group)()
    names = [f.name for f in dataclasses.fields(group)]
    return [name for name in names if getattr(group, name) != getattr(usual, name)]


def _check_used(config: Config, used: Set[str], methods: Mapping[str, Config]) -> None:
    for piece in (*SCORES, *PREFERENCES):
        changed = _changed(config, piece)
        if changed and piece not in used:
            value = getattr(getattr(config, piece), changed[0])
            raise ConfigError(
                f"{piece}.{changed[0]} is {value!r}: it acts with {piece} only, and no method of "
                f"{', '.join(methods)} uses that"
            )


def _own(config: Config, used: Set[str]) -> Config:
    """Without the options that are there for other methods."""
    kept = (config.score, config.preference)
    pieces = [p for p in (*SCORES, *PREFERENCES) if p in used and p not in kept]
    groups: dict[str, Any] = {piece: type(getattr(config, piece))() for piece in pieces}
    if (
        config.reward_options.units == "candidates"
        and config.preference not in RANKING
        and used & set(RANKING)
    ):
        groups["reward_options"] = dataclasses.replace(config.reward_options, units="auto")
    return dataclasses.replace(config, **groups)


def _check_comparable(name: str, config: Config, other: str, before: Config) -> None:
    if config == before:
        raise ConfigError(f"{name} and {other} are the same method: name it once")
    for key in SHARED:
        ours, theirs = getattr(config, key), getattr(before, key)
        if ours != theirs:
            raise ConfigError(
                f"{key} is {theirs!r} for {other} and {ours!r} for {name}: what is compared shares it; "
                f"set it with --config or on the command line"
            )
