"""From words on the command line to a dataclass. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro

from splatgen import config as settings
from splatgen.config import Config, ImageConfig
from splatgen.config.schema import PREFERENCES, SCORES, ConfigError
from splatgen.config.stages import overruled, read_stages, selections

T = TypeVar("T")

# A switch that is off by default needs no --no-... twin.
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]


def parse(kind: type[T], verb: str, argv: Sequence[str], *, default: T | None = None, note: str = "") -> T:
    """Parse a verb's words; help exits with 0 and errors with 2, both by SystemExit.

    note follows the class docstring in the help. A repeated --reward adds to the first.
    """
    summary = " ".join((kind.__doc__ or "").split())
    return tyro.cli(
        kind,
        args=gather(argv, ("--reward", "--holdout-reward", "--methods", "--set", "--metrics")),
        prog=f"splatgen {verb}",
        description=f"{summary}\n\n{note}" if note else summary,
        default=tyro.MISSING_NONPROP if default is None else default,
    )


@dataclass(frozen=True, kw_only=True)
class SettingsFlags:
    """Where settings come from; a verb adds the `settings` of its kind of run."""

    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Settings to start from; they change the defaults. What only another kind of run has is left out."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A .toml or .json file of settings, such as a run's config.json; they change the preset's."""
    stages: Annotated[Path | None, tyro.conf.Suppress, tyro.conf.Fixed] = None  # for verbs that take them
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("outputs")
    """The folder in which that of the run is made."""
    settings: Annotated[Any, tyro.conf.Suppress] = None


StagesFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class RunFlags(SettingsFlags):
    """What every verb takes that starts a run."""

    json: Switch = False
    """Print a JSON object instead of the folder's path."""
    quiet: Switch = False
    """No progress, only errors."""
    force: Switch = False
    """Take the nearest possible prompt where the prior can't read the one given."""


S = TypeVar("S", bound=SettingsFlags)


def read(kind: type[S], verb: str, argv: Sequence[str], *, note: str = "", heard: bool = True) -> S:
    """Options with their precedence: defaults < preset < config file < words; SystemExit or ConfigError.

    The words are parsed twice: to find the preset and the file, then with their settings as defaults. A
    preset may hold settings that only the other kind of run has, 2D or 3D: they are left out. Words that no
    stage would hear are refused, unless they were meant for another preset (heard is False).
    """
    options = parse(kind, verb, argv, note=note)
    usual = base = kind().settings
    if options.preset is not None:
        base = with_preset(base, options.preset)
    if options.config is not None:
        base = settings.merge(base, settings.read_file(options.config))
    if options.stages is not None:
        base = settings.merge(base, read_stages(options.stages))
    if base != usual:
        options = parse(kind, verb, argv, default=cast("Any", kind)(settings=base), note=note)
        options = dataclasses.replace(options, settings=left_out(options.settings, base))  # type: ignore[type-var]
        if heard:
            check_heard(options.settings, base)
    return options


def check_heard(chosen: Any, base: Any) -> None:
    """Raise ConfigError for a setting of the words that every stage sets for itself: none would hear it."""
    if not getattr(chosen, "stages", ()):
        return
    name = overruled(chosen, changes(chosen, base))
    if name is not None:
        option = name.replace("_options", "").replace("_", "-")
        raise ConfigError(
            f"--{option} does nothing: every stage sets its own; change it there, in --stages FILE"
        )


def changes(chosen: Any, base: Any) -> dict[str, Any]:
    """What of some settings is not as in others, as nested tables."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(chosen):
        ours, theirs = getattr(chosen, f.name), getattr(base, f.name)
        if ours != theirs:
            found[f.name] = changes(ours, theirs) if dataclasses.is_dataclass(ours) else ours
    return found


def left_out(chosen: Any, base: Any) -> Any:
    """The settings without what a preset set for a score or preference that the words then deselected."""
    selected = selections(chosen)
    moved = (chosen.score, chosen.preference) != (base.score, base.preference)
    unused = [name for name in (*SCORES, *PREFERENCES) if name not in selected] if moved else []
    same = [name for name in unused if getattr(chosen, name) == getattr(base, name)]
    return dataclasses.replace(chosen, **{name: type(getattr(chosen, name))() for name in same})


def with_preset(base: Any, name: str) -> Any:
    """Settings with a preset's over them, without those that are known, but not to this kind of config."""
    own, known = (
        {f.name for c in cs for f in dataclasses.fields(c)} for cs in ((type(base),), (Config, ImageConfig))
    )
    table = settings.read_preset(name)
    return settings.merge(base, {key: v for key, v in table.items() if key in own or key not in known})


def gather(argv: Sequence[str], options: Sequence[str]) -> list[str]:
    """Words in which an option that takes several values and is repeated stands once, with all of them.

    --reward a=0.7 --steps 9 --reward b=0.3   becomes   --reward a=0.7 b=0.3 --steps 9
    """
    end = argv.index("--") if "--" in argv else len(argv)
    words = list(argv[:end])
    for option in options:
        words = [part for word in words for part in _split(word, option)]
        if words.count(option) < 2:
            continue
        place = words.index(option)
        rest: list[str] = []
        values: list[str] = []
        inside = False
        for word in words[place:]:
            inside = word == option or (inside and not word.startswith("--"))
            if word != option:
                (values if inside else rest).append(word)
        words = [*words[:place], option, *values, *rest]
    return [*words, *argv[end:]]


def _split(word: str, option: str) -> list[str]:
    name, equals, value = word.partition("=")
    return [name, value] if equals and name == option else [word]
