"""Settings out of strict TOML and JSON: tables laid over settings that are there already.

By hand, in 40 lines: msgspec and pydantic take an unknown key of a dataclass in silence, where a mistyped
setting should be refused with the nearest one that there is, and neither lays a table over settings that an
earlier file has set.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union

from splatgen.config.hints import did_you_mean
from splatgen.config.schema import Config, ConfigError


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionaries, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[no-any-return]


# Settings of earlier versions, which run folders still name: what they were unless someone changed them (that
# says nothing and is passed over), and what took their place.
FORMER: dict[str, tuple[Any, str]] = {
    "ism.noise": (0.1, "ism.start and ism.offset say what it said: take one of them"),
}


def merge(config: Any, changes: Mapping[str, Any], where: str = "") -> Any:
    """A copy of a config with nested changes; unknown keys and wrong types raise ConfigError."""
    known = {f.name: f for f in fields(config)}
    hints = typing.get_type_hints(type(config))
    values = {}
    for key, value in changes.items():
        name = f"{where}{key}"
        if key not in known and name in FORMER and value == FORMER[name][0]:
            continue
        if key not in known:
            if name in FORMER:
                raise ConfigError(f"{name} is gone, and {FORMER[name][1]}")
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"; did you mean {where}{close[0]!s}?" if close else f"; known here: {', '.join(known)}"
            raise ConfigError(f"unknown setting {name}{hint}")
        current = getattr(config, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} is a group of settings, got {value!r}: write it as a table")
            values[key] = merge(current, value, f"{name}.")
        elif isinstance(value, Mapping) and f"{key}_options" in known:
            raise ConfigError(f"{name} is a name, not a table: its settings go into the table {name}_options")
        else:
            values[key] = convert(value, hints[key], name)
    return dataclasses.replace(config, **values)


def convert(value: Any, hint: Any, name: str) -> Any:  # noqa: PLR0911 - one for each kind of type
    """A TOML or JSON value as the annotated type; no silent coercion but int to float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(map(str, args))}")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return convert(value, next(a for a in args if a is not type(None)), name)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}: write tables, as in [[{name}]]")
        return dict(value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} is {value!r}: write a list")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{name} has {len(value)} entries: it takes {len(args)}")
        return tuple(convert(v, args[0], name) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{name} is {value!r}: it takes {hint.__name__}")
    return value


def from_dict(values: Mapping[str, Any]) -> Config:
    """A Config from nested dictionaries; unknown keys are errors."""
    return merge(Config(), values)  # type: ignore[no-any-return]


def read_file(path: Path) -> dict[str, Any]:
    """The table in a .toml or .json file; ConfigError when it is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text: give a .toml or .json file") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits
        raise ConfigError(f"{path} is not valid {path.suffix[1:] or 'TOML'}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path} holds a {type(table).__name__}: write a table of settings")
    return table


def presets() -> dict[str, Path]:
    """Name to file of every preset that is installed."""
    import importlib.resources

    folder = Path(str(importlib.resources.files("splatgen_configs")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_preset(name: str) -> dict[str, Any]:
    """A preset's table by name; ConfigError with the nearest name when there is none."""
    known = presets()
    if name not in known:
        raise ConfigError(f"no preset {name[:60]!r}; {did_you_mean(name, known)}")
    return read_file(known[name])
