"""A sweep's numbers as a table: means, and paired differences to the first method. No torch here."""

from __future__ import annotations

import dataclasses
import statistics
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from splatgen.runs.statistics import Measure, summarise
from splatgen.sweeps.ledger import TIMES, Outcome, Sweep
from splatgen.sweeps.plan import Plan

WIDTH = 80  # characters
COLUMNS = {  # measure: (title, decimals); rewards come before these
    "truth/iou": ("IoU", 3),
    "truth/psnr": ("PSNR dB", 2),
    "truth/color_error": ("colour error", 3),
    "truth/judged_right": ("judged right", 2),
    "truth/all_right": ("all right", 2),
    "cost/model_calls": ("calls/step", 1),
    "cost/seconds": ("seconds", 1),
}
Values = dict[str, dict[str, dict[str, float]]]  # by method, name, and what makes a pair


def columns(plan: Plan) -> dict[str, tuple[str, int]]:
    """Title and decimals of what a sweep can measure."""
    configs = list(plan.methods.values())
    rewards = {f"reward/{name}": (name, 3) for config in configs for name in config.rewards()}
    held_out = {
        f"holdout/{name}": (f"{name} (held out)", 3) for config in configs for name in config.holdout_reward
    }
    return {**rewards, **held_out, **COLUMNS}


def values(outcomes: Sequence[Outcome], plan: Plan) -> Values:
    """What was measured, by method, name and pair.

    Runs of one prompt are paired by their seed; of several, by the prompt, with the mean over the seeds, as
    seeds of a prompt are no independent samples.
    """
    one = len(plan.prompts) == 1
    found: dict[str, dict[str, dict[str, list[float]]]] = {method: {} for method in plan.methods}
    for outcome in outcomes:
        key = str(outcome.seed) if one else outcome.prompt
        for name, value in outcome.numbers.items():
            found[outcome.method].setdefault(name, {}).setdefault(key, []).append(value)
    return {
        method: {name: {k: statistics.fmean(v) for k, v in keys.items()} for name, keys in names.items()}
        for method, names in found.items()
    }


def measures(sweep: Sweep) -> dict[str, dict[str, Measure]]:
    """Means and differences, by method and name."""
    return summarise(values(sweep.outcomes, sweep.plan))


def table(sweep: Sweep, *, times: bool = True) -> str:
    """A row a method, as Markdown that also reads well as it is, in parts of at most 80 columns."""
    measured = measures(sweep)
    present = {name for found in measured.values() for name in found}
    shown = {n: c for n, c in columns(sweep.plan).items() if n in present and (times or n not in TIMES)}
    rows = [["method", "runs", *(title for title, _ in shown.values())]]
    for method, found in measured.items():
        cells = [
            (cost if name.startswith("cost/") else cell)(found.get(name), decimals)
            for name, (_, decimals) in shown.items()
        ]
        rows.append([method, runs_done([o.status for o in sweep.outcomes if o.method == method]), *cells])
    unit = "seeds" if len(sweep.plan.prompts) == 1 else "prompts"
    note = textwrap.fill(legend(measured, unit), WIDTH)
    return "\n\n".join([*map(aligned, parts(rows, WIDTH)), *failures(sweep), note])


def failures(sweep: Sweep) -> list[str]:
    """What was listed with an error, a line each."""
    lines = [
        f"- {o.method}, seed {o.seed}, {o.prompt}: {o.error}" for o in sweep.outcomes if o.error is not None
    ]
    return ["\n".join(line[:400] for line in lines)] if lines else []


def runs_done(statuses: Sequence[str]) -> str:
    """`2/3, 1 diverged`."""
    others = Counter(status for status in statuses if status != "done")
    return ", ".join([f"{statuses.count('done')}/{len(statuses)}", *(f"{n} {s}" for s, n in others.items())])


def cell(measure: Measure | None, decimals: int) -> str:
    """`0.812 (+0.028 ±0.011)`: the mean, the difference to the first method, half its interval."""
    if measure is None:
        return "-"
    text = f"{measure.mean:.{decimals}f}"
    difference = measure.difference
    if difference is None:
        return text
    spread = "" if difference.half is None else f" ±{difference.half:.{decimals}f}"
    return f"{text} ({difference.mean:+.{decimals}f}{spread})"


def cost(measure: Measure | None, decimals: int) -> str:
    """`10.0 (x2.50)`: the mean, and how many times the first method's it is."""
    text = cell(None if measure is None else dataclasses.replace(measure, difference=None), decimals)
    if measure is None or measure.difference is None:
        return text
    before = measure.mean - measure.difference.mean
    return f"{text} (x{measure.mean / before:.2f})" if before > 0 else text


def legend(measured: Mapping[str, Mapping[str, Measure]], unit: str = "seeds") -> str:
    """How to read the table, with the number of pairs."""
    differences = [m.difference for found in measured.values() for m in found.values()]
    pairs = sorted({difference.n for difference in differences if difference is not None})
    if not pairs:
        return f"Means over the {unit}."
    first = next(iter(measured))
    n = f"n = {pairs[0]}" if len(pairs) == 1 else f"n = {pairs[0]} to {pairs[-1]}"
    interval = " ± half its 95 % confidence interval (Student's t)" if pairs[-1] > 1 else ""
    return f"Means over the {unit}; in brackets the paired difference to {first}{interval}, {n}."


def parts(rows: Sequence[Sequence[str]], width: int) -> list[list[list[str]]]:
    """Rows cut between columns, so that each part is no wider; every part begins with the first column."""
    widths = [max(len(row[i]) for row in rows) + 3 for i in range(len(rows[0]))]
    found: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if len(found[-1]) > 1 and 1 + sum(widths[j] for j in [*found[-1], i]) > width:
            found.append([0])
        found[-1].append(i)
    return [[[row[i] for i in part] for row in rows] for part in found]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table with straight columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
