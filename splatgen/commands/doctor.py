"""`splatgen doctor`: what this machine can run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from splatgen.commands.common.arguments import Switch, parse
from splatgen.commands.common.errors import MISSING

if TYPE_CHECKING:
    from splatgen.commands.common.doctor_report import Examination


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what this machine can run, what is missing, and the next command.

    Exits with 3 when generate can't run here.
    """

    weights: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """A folder of published models, one folder each by name, to look in before the Hugging Face cache."""
    json: Switch = False
    """Print a JSON object."""


def main(argv: Sequence[str]) -> int:
    options = parse(Doctor, "doctor", argv)
    from splatgen.commands.common import doctor_report

    found = doctor_report.examine(None if options.weights is None else str(options.weights))
    print(json.dumps(as_data(found)) if options.json else doctor_report.report(found))
    return 0 if found.able else MISSING


def as_data(found: Examination) -> dict[str, Any]:
    """All of it, for machines."""
    return {
        "able": found.able,
        "findings": [asdict(finding) for finding in found.findings],
        "models": [asdict(model) for model in found.models],
        "preset": asdict(found.choice),
        "next": found.next,
    }
