"""The stages of a run: shares of its steps, each with settings of its own. No torch here.

A stage is a table as in a config file, with `share` and, if it likes, `name`; what else it sets is laid over
the run's settings while it lasts. Every schedule is a fraction of its stage.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from splatgen.config.hints import did_you_mean
from splatgen.config.model_options import PriorOptions
from splatgen.config.reading import merge, read_file
from splatgen.config.schema import PREFERENCES, RANKING, SCORES, Config, ConfigError

OWN = ("name", "share")  # of a stage, and no settings of a run
WHOLE = (  # what a run has once
    "prompt", "source", "steps", "seed", "device", "patience", "weights", "budget", "init", "edit", "render",
    "splats", "output", "stages",
)  # fmt: skip
SLACK = 1e-3  # of the sum of the shares: three times 0.333 will do
_NAME = re.compile(r"\w[\w .+-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of a run."""

    number: int  # from 1
    of: int  # how many there are; 0 for a run that names none
    name: str
    first: int  # step of the run
    config: Config  # its own: steps is its length, and there are no further stages

    @property
    def end(self) -> int:
        """The step after its last."""
        return self.first + self.config.steps

    @property
    def label(self) -> str:
        """For messages; empty for a run that has no stages."""
        if not self.of:
            return ""
        return f"stage {self.number} ({self.name})" if self.name else f"stage {self.number}"


def stages(config: Config) -> tuple[Stage, ...]:
    """The stages of a run, one where it names none; ConfigError for those that cannot be."""
    if not config.stages:
        return (Stage(number=1, of=0, name="", first=0, config=config),)
    _check_tables(config)
    ends = [round(config.steps * share) for share in itertools.accumulate(t["share"] for t in config.stages)]
    ends[-1] = config.steps
    found = []
    for number, (table, first, end) in enumerate(zip(config.stages, [0, *ends], ends, strict=False), 1):
        if end <= first:
            raise ConfigError(
                f"--steps {config.steps}: {_label(table, number)} has {table['share']:g} of them, which is "
                "none: give more --steps, or the stage a larger share"
            )
        try:
            own = _settings(config, table, end - first)
        except ConfigError as error:
            raise ConfigError(f"{_label(table, number)}: {error}") from error
        name = table.get("name", "")
        found.append(Stage(number=number, of=len(config.stages), name=name, first=first, config=own))
    _check_used(config, found)
    return tuple(found)


def at(course: tuple[Stage, ...], begin: int) -> Stage:
    """The stage that begins at a step; ValueError where none does."""
    for stage in course:
        if stage.first == begin:
            return stage
    known = ", ".join(str(stage.first) for stage in course)
    raise ValueError(f"no stage begins at step {begin}, but at {known}: the run's config.json was changed")


def selections(config: Any) -> set[str]:
    """Every score and preference that a run, 2D or 3D, or one of its stages selects."""
    tables = getattr(config, "stages", ())
    own = {table.get(slot, "") for table in tables for slot in ("score", "preference")}
    return {config.score, config.preference, *(name for name in own if isinstance(name, str))}


def goes_on(before: Config, after: Config) -> bool:
    """Whether two stages have one prior and one method: what learns, and Adam's averages, then stay."""
    names = ("prior", "prior_options", "negative", "score", "preference", *SCORES, *PREFERENCES)
    return all(getattr(before, name) == getattr(after, name) for name in names)


def lengthened(config: Config, steps: int) -> Config:
    """The same run with another number of steps; with stages, the last one gets the difference."""
    if not config.stages or steps == config.steps:
        return replace(config, steps=steps)
    lengths = [stage.config.steps for stage in stages(config)]
    lengths[-1] = steps - sum(lengths[:-1])
    tables = [{**t, "share": n / steps} for t, n in zip(config.stages, lengths, strict=True)]
    return replace(config, steps=steps, stages=tuple(tables))


def read_stages(path: Path) -> dict[str, Any]:
    """The table of a file that holds [[stages]] and nothing else; ConfigError for another."""
    table = read_file(path)
    others = [key for key in table if key != "stages"]
    if others:
        raise ConfigError(
            f"{path} sets {others[0]}, and a file of stages holds [[stages]] only: give it as --config, or "
            "put it into a stage"
        )
    if not table.get("stages"):
        raise ConfigError(f"{path} holds no stage: begin one with [[stages]] and its share")
    return table


def overruled(config: Config, changed: Mapping[str, Any], where: str = "") -> str | None:
    """The first of some changed settings, nested tables, that every stage sets for itself, if any is."""
    tables = [_below(table, where) for table in config.stages]
    for key, value in changed.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping):
            found = overruled(config, value, f"{name}.")
            if found is not None:
                return found
        elif tables and all(key in table for table in tables):
            return name
    return None


def _below(table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    for group in where.split(".")[:-1]:
        inner = table.get(group, {})
        table = inner if isinstance(inner, Mapping) else {}
    return table


def _label(table: Mapping[str, Any], number: int) -> str:
    name = table.get("name", "")
    return f"stage {number} ({name})" if name else f"stage {number}"


def _check_tables(config: Config) -> None:
    """Raise ConfigError for names and shares that cannot be."""
    if config.steps < 1:
        raise ConfigError(f"steps is {config.steps}: give at least 1")
    for number, table in enumerate(config.stages, 1):
        name, share = table.get("name", ""), table.get("share")
        if not isinstance(name, str) or (name and not _NAME.fullmatch(name)):
            raise ConfigError(
                f"stage {number} has the name {name!r}"[:100]
                + ": give up to 40 letters, digits, spaces and .+-"
            )
        number_given = isinstance(share, int | float) and not isinstance(share, bool)
        if not number_given or not 0 < share <= 1:  # type: ignore[operator]
            given = "no share" if share is None else f"the share {share!r}"
            raise ConfigError(
                f"{_label(table, number)} has {given}: give a number above 0, up to 1: its part of the steps"
            )
    total = sum(table["share"] for table in config.stages)
    if abs(total - 1.0) > SLACK + 1e-9:
        raise ConfigError(f"the shares of the stages come to {total:g}: give shares that come to 1")


def _settings(config: Config, table: Mapping[str, Any], steps: int) -> Config:
    """A stage's settings: the run's, and over them its own."""
    own = {key: value for key, value in table.items() if key not in OWN}
    for key in own:
        if key in WHOLE:
            raise ConfigError(f"{key} is of the whole run: set it outside of [[stages]]")
    names = [f.name for f in fields(Config)]
    unknown = next((key for key in own if key not in names), None)
    if unknown is not None:
        known = [name for name in (*OWN, *names) if name not in WHOLE]
        raise ConfigError(f"unknown setting {unknown[:60]}; {did_you_mean(unknown, known)}")
    base = replace(config, steps=steps, stages=())
    if own.get("prior", base.prior) != base.prior:
        base = replace(base, prior_options=PriorOptions())  # they are another's
    chosen: Config = merge(base, own)
    usual = Config()
    selected = (chosen.score, chosen.preference)
    others = [name for name in (*SCORES, *PREFERENCES) if name not in selected and name not in own]
    chosen = replace(chosen, **{name: getattr(usual, name) for name in others})
    units = chosen.reward_options.units
    if units == "candidates" and chosen.preference not in RANKING and "reward_options" not in own:
        chosen = replace(chosen, reward_options=replace(chosen.reward_options, units="auto"))
    return chosen


def _check_used(config: Config, found: list[Stage]) -> None:
    """Raise ConfigError for an option of a piece that no stage selects."""
    usual = Config()
    used = {piece for stage in found for piece in (stage.config.score, stage.config.preference)}
    for slot, pieces in (("score", SCORES), ("preference", PREFERENCES)):
        for name in pieces:
            group = getattr(config, name)
            changed = [
                f.name
                for f in fields(group)
                if getattr(group, f.name) != getattr(getattr(usual, name), f.name)
            ]
            if changed and name not in used:
                value = getattr(group, changed[0])
                raise ConfigError(
                    f"{name}.{changed[0]} is {value!r}: it acts with {slot} {name} only, which no stage has"
                )
