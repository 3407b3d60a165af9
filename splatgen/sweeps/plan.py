"""What a sweep runs: prompts x methods x seeds, with settings as further axes. No torch here."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from splatgen.config import Config, ConfigError, merge
from splatgen.config.schema import PREFERENCES, RANKING, SCORES
from splatgen.config.validation import validate
from splatgen.runs.run_folder import slug


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run of a sweep."""

    prompt: str
    method: str
    seed: int
    folder: str  # within the sweep's; the parts are joined by /
    config: Config


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run: every prompt with every method, each with every seed."""

    prompts: Sequence[str]
    methods: Mapping[str, Config]  # settings by name; the first is what the others are held against
    seeds: Sequence[int]

    @property
    def first(self) -> Config:
        return next(iter(self.methods.values()))

    def config(self, method: str, seed: int, prompt: str | None = None) -> Config:
        """The settings of one run; of the first prompt, unless another is named."""
        prompt = self.prompts[0] if prompt is None else prompt
        return dataclasses.replace(self.methods[method], prompt=prompt, seed=seed)

    def tasks(self) -> list[Task]:
        """Every run: all methods of a prompt and seed, then the next seed, then the next prompt.

        So what is there after a stop can be compared.
        """
        names = folder_names(self.methods)
        homes = (
            [""] if len(self.prompts) == 1 else [f"{n:04d}-{slug(p)}/" for n, p in enumerate(self.prompts)]
        )
        return [
            Task(
                prompt=prompt,
                method=method,
                seed=seed,
                folder=f"{home}{names[method]}-{seed}",
                config=self.config(method, seed, prompt),
            )
            for prompt, home in zip(self.prompts, homes, strict=True)
            for seed in self.seeds
            for method in self.methods
        ]


def folder_names(methods: Iterable[str]) -> dict[str, str]:
    """What the folders of each method's runs begin with; no two are the same."""
    slugs = {method: slug(method) for method in methods}
    twice = {name for name, count in Counter(slugs.values()).items() if count > 1}
    return {
        method: f"{name}-{n}" if name in twice else name for n, (method, name) in enumerate(slugs.items())
    }


PRESET = "preset:"  # what a method is called that brings its own settings, and its stages
SHARED = ("negative", "prior", "prior_options", "weights", "budget", "reward", "holdout_reward")


def line_up(
    prompts: Sequence[str], bases: Mapping[str, Config], seeds: Sequence[int], free: Set[str] = frozenset()
) -> Plan:
    """A plan out of the settings of each method's name, with score and preference set.

    An option of a piece counts for the methods that use the piece. ConfigError when none does, when two are
    the same method or don't share what they are measured with (but for the settings in `free`, which are
    what is compared), and when a method's settings can't be used.
    """
    staged = next((n for n, base in bases.items() if base.stages and not n.startswith(PRESET)), None)
    if staged is not None:
        advice = "leave [[stages]] out, or name a preset that has them as the method"
        raise ConfigError(f"method {staged} has stages, and what is compared has one: {advice}")
    bases = {name: dataclasses.replace(base, prompt=prompts[0]) for name, base in bases.items()}
    used = {piece for base in bases.values() for piece in (base.score, base.preference)}
    for base in bases.values():
        _check_used(base, used, bases)
    methods: dict[str, Config] = {}
    names: dict[str, str] = {}  # by what a config says: stages are tables, which have no hash
    for name, base in bases.items():
        config = _own(base, used)
        twin = names.setdefault(repr(config), name)
        if twin != name:
            raise ConfigError(f"{name} and {twin} are the same method: name it once")
        _check_shared(name, config, *next(iter(methods.items()), (name, config)), free)
        try:
            for seed in (seeds[0], seeds[-1]):
                validate(dataclasses.replace(config, seed=seed))
        except ConfigError as error:
            raise ConfigError(f"method {name}: {error}") from error
        methods[name] = config
    return Plan(prompts=tuple(prompts), methods=methods, seeds=tuple(seeds))


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


def _check_shared(name: str, config: Config, other: str, before: Config, free: Set[str]) -> None:
    for key in SHARED:
        ours, theirs = getattr(config, key), getattr(before, key)
        if ours != theirs and key not in free:
            raise ConfigError(
                f"{key} is {theirs!r} for {other} and {ours!r} for {name}: what is compared shares it; "
                f"set it with --config or on the command line"
            )


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A setting and the values that it takes in turn."""

    key: str  # as on the command line: guidance.scale
    values: tuple[Any, ...]

    @property
    def path(self) -> tuple[str, ...]:
        """Where it is in a Config."""
        group, dot, name = self.key.replace("-", "_").partition(".")
        home = f"{group}_options" if dot and group in ("prior", "reward") else group
        return (home, name) if dot else (home,)

    def changes(self, value: Any) -> dict[str, Any]:
        """What `merge` lays over a Config."""
        return {self.path[0]: {self.path[1]: value} if len(self.path) > 1 else value}


def read_axis(text: str) -> Axis:
    """KEY=A,B,C; values are JSON or plain words, lists in brackets. ConfigError where it is none."""
    key, equals, given = text.partition("=")
    if not equals or not key.strip() or not given.strip():
        raise ConfigError(f"--set {text[:60]!r}: write KEY=A,B,C as in guidance.scale=2,5")
    return axis(key.strip().removeprefix("--"), [_value(part) for part in _split(given)])


def axis(key: str, values: Sequence[Any]) -> Axis:
    """A setting by its name on the command line, and its values; ConfigError where that is no axis."""
    if key in ("prompt", "seed", "score", "preference", "source"):
        raise ConfigError(f"--set {key}: prompts, seeds and methods are axes of their own")
    if not values:
        raise ConfigError(f"--set {key[:60]}: it has no value")
    if len(values) != len({json.dumps(value) for value in values}):
        raise ConfigError(f"--set {key[:60]}: a value is there twice")
    return Axis(key=key, values=tuple(values))


def _split(text: str) -> list[str]:
    """At the commas that are outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def crossed(bases: Mapping[str, Config], axes: Sequence[Axis]) -> dict[str, Config]:
    """Every method with every value of every axis; one that doesn't use a piece has none of its options."""
    found: dict[str, Config] = {}
    for method, base in bases.items():
        own = [axis for axis in axes if _concerns(axis, base)]
        for values in itertools.product(*(axis.values for axis in own)):
            config = base
            for axis, value in zip(own, values, strict=True):
                config = merge(config, axis.changes(value))
            told = [f"{axis.key}={_told(value)}" for axis, value in zip(own, values, strict=True)]
            found[", ".join([method, *told])] = config
    for axis in axes:
        if not any(_concerns(axis, base) for base in bases.values()):
            raise ConfigError(f"--set {axis.key}: no method of {', '.join(bases)} uses {axis.path[0]}")
    return found


def _concerns(axis: Axis, base: Config) -> bool:
    piece = axis.path[0]
    return piece not in (*SCORES, *PREFERENCES) or piece in (base.score, base.preference)


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
