"""`splatgen doctor`: what this machine can run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from splatgen.commands.failures import MISSING
from splatgen.commands.parsing import Switch, parse


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what this machine can run, what is missing, and the next command.

    Exits with 3 when generate can't run here.
    """

    json: Switch = False
    """Print a JSON object."""


def main(argv: Sequence[str]) -> int:
    options = parse(Doctor, "doctor", argv)
    from splatgen import doctor

    findings = doctor.examine()
    able = doctor.able(findings)
    if options.json:
        found = [asdict(finding) for finding in findings]
        print(json.dumps({"able": able, "findings": found, "next": doctor.next_command(findings)}))
    else:
        print(doctor.report(findings))
    return 0 if able else MISSING
