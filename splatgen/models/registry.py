"""Tables of models by name, whose code is imported when one of them is asked for. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from splatgen.config.hints import did_you_mean

Entry = TypeVar("Entry")


def entry(table: Mapping[str, Entry], kind: str, name: str) -> Entry:
    """The entry of that name; ValueError with the nearest name for one that is not in the table."""
    if name not in table:
        raise ValueError(f"no {kind} {name[:60]!r}; {did_you_mean(name, table)}")
    return table[name]


def loader(path: str) -> Callable[..., Any]:
    """The function at "module:function", its module imported."""
    module, name = path.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
