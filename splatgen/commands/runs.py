"""`splatgen runs`: the runs of a folder, found again, and deleted."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from splatgen.commands.common.arguments import Switch, parse
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.runs import listing
from splatgen.runs.listing import Entry
from splatgen.runs.run_folder import STATUSES

KINDS = (*STATUSES, "killed", listing.BROKEN)
NOTE = (
    "Without names and filters, all runs below --out are listed, those of comparisons too. Those with a "
    "checkpoint go on with `splatgen resume`, all with splats are shown by `splatgen view`."
)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs of a folder, newest first, or delete some."""

    names: Annotated[tuple[str, ...], Positional, arg(metavar="RUN ...", help_behavior_hint="")] = ()
    """Folders of runs, or their names below --out; all when not given."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("outputs")
    """The folder that they are in."""
    match: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """Only those with these words in the prompt."""
    status: Annotated[tuple[str, ...], arg(metavar="STATUS ...", help_behavior_hint="")] = ()
    """Only those that ended so: done, stopped, killed, diverged, oom, failed, running or broken."""
    older: Annotated[float | None, arg(metavar="DAYS", help_behavior_hint="")] = None
    """Only those that began more days ago."""
    delete: Switch = False
    """Delete the runs that are named or filtered."""
    delete_checkpoints: Switch = False
    """Delete their checkpoints alone, which take most of the room; they can't be resumed then."""
    yes: Switch = False
    """Delete without asking."""
    json: Switch = False
    """Print a JSON object."""


def main(argv: Sequence[str]) -> int:
    options = parse(Runs, "runs", argv, note=NOTE)
    check(options)
    found = chosen(options)
    if options.delete or options.delete_checkpoints:
        return delete(options, found)
    if options.json:
        print(json.dumps({"runs": [as_data(one) for one in found]}))
        return 0
    for one in found:
        print(row(one, options.out))
    if found:
        total, parts = sum(one.bytes for one in found), sum(one.checkpoint_bytes for one in found)
        print(f"\n{counted(found)}, {megabytes(total)}, of them {megabytes(parts)} in checkpoints")
    else:
        print(f"splatgen: no such runs in {options.out}", file=sys.stderr)
    return 0


def check(options: Runs) -> None:
    """Raise Failure for filters that can't be, and for deleting everything by accident."""
    for status in options.status:
        if status not in KINDS:
            raise Failure(USAGE, f"--status {status[:40]!r}: give one of {', '.join(KINDS)}")
    if options.older is not None and not 0.0 <= options.older < 1e6:
        raise Failure(USAGE, f"--older {options.older:g}: give a number of days, 0 or more")
    if options.delete and options.delete_checkpoints:
        raise Failure(USAGE, "--delete deletes the checkpoints, too: give one of the two")
    filters = options.names or options.match or options.status or options.older is not None
    if (options.delete or options.delete_checkpoints) and not filters:
        raise Failure(USAGE, "say which runs: give their names, --match, --status or --older")


def chosen(options: Runs) -> list[Entry]:
    """The runs that are named and that pass the filters; Failure for a name that is none."""
    found = [named(name, options.out) for name in dict.fromkeys(options.names)]
    if not options.names:
        found = listing.entries(options.out)
    words, now = options.match.casefold(), datetime.now(UTC)
    return [
        one
        for one in found
        if words in one.prompt.casefold()
        and (not options.status or one.status in options.status)
        and (options.older is None or listing.age_days(one, now) > options.older)
    ]


def named(name: str, out: Path) -> Entry:
    """A run by its folder, or by its name below `out`."""
    for folder in (Path(name), out / name):
        if (folder / "run.json").is_file():
            return listing.entry(folder)
    if Path(name).is_dir():
        again = shlex.join(["splatgen", "runs", "--out", name])
        raise Failure(USAGE, f"{name[:200]} is no run: to list a folder, {again}")
    raise Failure(
        USAGE, f"{name[:200]} is no run, nor is there one of that name in {out}: `splatgen runs` lists them"
    )


def counted(found: Sequence[Entry]) -> str:
    return "1 run" if len(found) == 1 else f"{len(found)} runs"


def delete(options: Runs, found: Sequence[Entry]) -> int:
    """Delete after asking; prints the folders."""
    if not found:
        raise Failure(USAGE, f"no such runs in {options.out}: nothing is deleted")
    part = options.delete_checkpoints
    room = sum(one.checkpoint_bytes if part else one.bytes for one in found)
    what = f"{'the checkpoints of ' if part else ''}{counted(found)}, {megabytes(room)}"
    if not options.yes:
        for one in found:
            print(row(one, options.out), file=sys.stderr)
        if not agreed(f"splatgen: delete {what}? [y/N] "):
            raise Failure(USAGE, "nothing is deleted; --yes deletes without asking")
    for one in found:
        listing.delete(one, checkpoints_only=part)
        print(one.folder)
    print(f"splatgen: deleted {what}", file=sys.stderr)
    return 0


def agreed(question: str) -> bool:
    """Ask on the terminal; nobody there is a no."""
    if not sys.stdin.isatty():
        return False
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def row(one: Entry, out: Path) -> str:
    """`done     12.3 MB 20261126-174832-a-red-cube-9e02bb`, in 80 characters but for runs of comparisons."""
    inside = one.folder.is_relative_to(out)
    name = one.folder.relative_to(out) if inside else one.folder
    return f"{one.status:<8} {megabytes(one.bytes):>7} {name}"


def megabytes(count: int) -> str:
    """A size in at most 7 characters, below a terabyte."""
    number, unit = (count / 1e9, "GB") if count >= 999.5e6 else (count / 1e6, "MB")
    return f"{number:.0f} {unit}" if number >= 99.95 else f"{number:.1f} {unit}"


def as_data(one: Entry) -> dict[str, object]:
    """For machines."""
    return {**asdict(one), "folder": str(one.folder)}
