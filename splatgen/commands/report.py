"""`splatgen report`: a sweep or a comparison as one page, and its table for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from splatgen.commands.common import checks
from splatgen.commands.common.arguments import parse
from splatgen.sweeps.ledger import read_plan, read_rows


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a sweep's report.html, one page that needs nothing beside it, and its table as report.md and
    report.tex; prints the page's path."""

    folder: Annotated[Path, Positional, arg(metavar="FOLDER")]
    """The folder of a sweep or a comparison, finished or not; with its eval.jsonl, if `splatgen eval` left
    one."""


def main(argv: Sequence[str]) -> int:
    options = parse(Report, "report", argv)
    read_plan(options.folder)
    read_rows(options.folder)
    checks.check_out(options.folder)
    from splatgen.sweeps.report import write_report

    print(write_report(options.folder), flush=True)
    return 0
