"""A sweep's methods against the first one, corrected for how many comparisons there are. No torch here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from splatgen.runs.statistics import Measure, holm
from splatgen.sweeps.ledger import Sweep
from splatgen.sweeps.table import aligned, columns, measures, runs_done

HIDDEN = ("cost/", "truth/judged_right_truth", "truth/all_right_truth")  # of what a perfect object would get
LEVEL = 0.05  # of the whole family of comparisons


@dataclass(frozen=True, kw_only=True)
class Table:
    """What every method measured, and the differences that can be told from chance."""

    titles: dict[str, tuple[str, int]]  # by measure: its title and decimals
    measures: dict[str, dict[str, Measure]]  # by method and measure
    corrected: dict[tuple[str, str], float]  # p-value by method and measure, after Holm
    runs: dict[str, str]  # `12/12` by method
    note: str


def compared(sweep: Sweep) -> Table:
    """Means, paired differences and p-values; all quality measures of all methods are one family."""
    found = measures(sweep)
    present = list(dict.fromkeys(name for named in found.values() for name in named))
    known = columns(sweep.plan)
    titles = {name: known[name] for name in known if name in present}
    titles |= {name: (name, 3) for name in present if name not in known and not name.startswith(HIDDEN)}
    tests = {
        (method, name): measure.difference.p
        for method, named in found.items()
        for name, measure in named.items()
        if name in titles and not name.startswith("cost/")
        and measure.difference is not None
        and measure.difference.p is not None
    }  # fmt: skip
    unit = "seeds" if len(sweep.plan.prompts) == 1 else "prompts"
    first = next(iter(sweep.plan.methods))
    note = (
        f"Means over the {unit}; differences are paired and to {first}, with 95 % intervals (Student's t). "
        f"An asterisk: below {LEVEL:g} after Holm's correction for all {len(tests)} comparisons."
    )
    runs = {m: runs_done([o.status for o in sweep.outcomes if o.method == m]) for m in sweep.plan.methods}
    return Table(titles=titles, measures=found, corrected=holm(tests), runs=runs, note=note)


def text(table: Table, method: str, name: str) -> str:
    """`0.812 (+0.028 ±0.011)*`."""
    measure, decimals = table.measures[method].get(name), table.titles[name][1]
    if measure is None:
        return "-"
    shown = f"{measure.mean:.{decimals}f}"
    difference = measure.difference
    if difference is None or name.startswith("cost/"):
        return shown
    half = "" if difference.half is None else f" ±{difference.half:.{decimals}f}"
    star = "*" if table.corrected.get((method, name), 1.0) < LEVEL else ""
    return f"{shown} ({difference.mean:+.{decimals}f}{half}){star}"


def rows(table: Table) -> list[list[str]]:
    """The head, and a row a method."""
    head = ["method", "runs", *(title for title, _ in table.titles.values())]
    return [head, *([m, table.runs[m], *(text(table, m, n) for n in table.titles)] for m in table.measures)]


def markdown(table: Table) -> str:
    return f"{aligned(rows(table))}\n\n{table.note}\n"


def latex(table: Table) -> str:
    """A tabular for booktabs, with the note as a comment."""
    head, *body = rows(table)
    lines = [f"% {table.note}", rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    lines += [_line([escaped(c) for c in head]), r"\midrule"]
    lines += [_line([escaped(c) for c in row]) for row in body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


_SPECIAL = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    plain = re.sub(r"[\\±~^]|[&%$#_{}]", lambda m: _SPECIAL.get(m[0], f"\\{m[0]}"), text)
    return re.sub(r"(?<!\w)([-+])(?=\d)", r"$\1$", plain)
