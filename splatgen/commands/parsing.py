"""From words on the command line to a dataclass. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

import tyro

T = TypeVar("T")

# A switch that is off by default needs no --no-... twin.
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]


def parse(kind: type[T], verb: str, argv: Sequence[str], *, default: T | None = None, note: str = "") -> T:
    """Parse a verb's words; help exits with 0 and errors with 2, both by SystemExit.

    note follows the class docstring in the help.
    """
    summary = " ".join((kind.__doc__ or "").split())
    return tyro.cli(
        kind,
        args=list(argv),
        prog=f"splatgen {verb}",
        description=f"{summary}\n\n{note}" if note else summary,
        default=tyro.MISSING_NONPROP if default is None else default,
    )
