"""A sweep as one page that needs nothing beside it: tables, plots, turning objects, settings.

Beside report.html stand the same table as report.md and report.tex.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from splatgen import formats
from splatgen.config import Config, read_file, to_dict
from splatgen.loop.results import pictures
from splatgen.runs import atomic
from splatgen.runs.metrics import read_metrics
from splatgen.runs.run_folder import Run
from splatgen.scene.cameras import turntable
from splatgen.sweeps import differences
from splatgen.sweeps.differences import Table
from splatgen.sweeps.ledger import FILE, Outcome, Sweep, read_sweep
from splatgen.sweeps.plots import mark, scatter
from splatgen.sweeps.table import columns, values

EVALUATED = "eval.jsonl"  # rows of `splatgen eval`, whose numbers join those of the sweep
SHOWN = 12  # prompts whose objects turn
FRAMES, SIDE, MILLISECONDS = 20, 112, 110  # of a turning object
TRUTH = ("truth/all_right", "truth/iou", "truth/psnr")  # the first that is there stands for the truth

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; white-space: nowrap; font-size: .9em; }
th, td { padding: .25em .7em; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child {
  text-align: left; white-space: normal; min-width: 6em; max-width: 14em;
  position: sticky; left: 0; background: Canvas;
}
.plots { display: flex; flex-wrap: wrap; gap: 1em; } .plots svg { width: 460px; max-width: 100%; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; } .grid { stroke: var(--line); }
.key span { margin-right: 1.2em; }
.key svg { width: .9em; height: .9em; margin-right: .3em; vertical-align: -.1em; }
td img { width: 112px; height: 112px; display: block; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8882; padding: .7em; }
.pictures td + td, .pictures th + th { text-align: center; }
@media (max-width: 600px) { th:first-child, td:first-child { max-width: 8em; } }
"""


def write_report(folder: Path) -> Path:
    """report.html, report.md and report.tex of a sweep's folder; returns the page's path."""
    sweep = with_evaluation(read_sweep(folder))
    table = differences.compared(sweep)
    atomic.write_text(folder / "report.md", differences.markdown(table))
    atomic.write_text(folder / "report.tex", differences.latex(table))
    atomic.write_text(folder / "report.html", page(sweep, table))
    return folder / "report.html"


def with_evaluation(sweep: Sweep) -> Sweep:
    """The sweep with what `splatgen eval` measured of its runs, if it did."""
    path = sweep.folder / EVALUATED
    if not path.is_file():
        return sweep
    found = {Path(str(row.get("run"))).resolve(): row for row in read_metrics(path)}
    outcomes = []
    for o in sweep.outcomes:
        row = found.get((sweep.folder / o.folder).resolve(), {})
        more = {
            name: float(v) for name, v in row.items() if isinstance(v, float) and not name.startswith("cost/")
        }
        outcomes.append(Outcome(**{**vars(o), "numbers": {**more, **o.numbers}}))
    return Sweep(folder=sweep.folder, plan=sweep.plan, outcomes=tuple(outcomes), seconds=sweep.seconds)


def page(sweep: Sweep, table: Table) -> str:
    """The whole page."""
    saved, plan = read_file(sweep.folder / FILE), sweep.plan
    title = plan.prompts[0] if len(plan.prompts) == 1 else f"{len(plan.prompts)} prompts"
    body = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(about(sweep, saved))}</p>",
        section("Methods", wide(differences.rows(table)) + f"<p>{html.escape(table.note)}</p>"),
        section("Quality, cost, and what rewards are worth", plots(sweep)),
        section("By prompt", by_prompt(sweep)) if len(plan.prompts) > 1 else "",
        section("Objects", objects(sweep)),
        section("Runs that came to no end", failures(sweep)),
        section("Settings that differ", wide(differing(plan.methods))),
        section("Make it again", again(saved)),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}: splatgen</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>{"".join(body)}</html>\n'
    )


def about(sweep: Sweep, saved: Mapping[str, Any]) -> str:
    """What was made, by what, where and when (UTC, to the minute)."""
    plan = sweep.plan
    sizes = {"prompt": len(plan.prompts), "method": len(plan.methods), "seed": len(plan.seeds)}
    what = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in sizes.items())
    done = sum(o.status == "done" for o in sweep.outcomes)
    date = re.sub(r"T(\d\d:\d\d).*\+00:00$", r" \1 UTC", str(saved.get("date")))
    return (
        f"{what}: {done} of {len(sweep.outcomes)} runs done. splatgen {saved.get('version')}, "
        f"{saved.get('machine')}, {date}."
    )


def section(title: str, content: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{content}" if content else ""


def wide(rows: Sequence[Sequence[str]]) -> str:
    """A table out of texts; the first row is the head."""
    if len(rows) < 2:
        return ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows[1:])
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def plots(sweep: Sweep) -> str:
    """Quality against model calls by method; the reward against held-out reward and truth by prompt."""
    found = values(sweep.outcomes, sweep.plan)
    names = list(dict.fromkeys(name for named in found.values() for name in named))
    reward = next((name for name in names if name.startswith("reward/")), None)
    held_out = next((name for name in names if name.startswith("holdout/")), None)
    truth = next((name for name in TRUTH if name in names), None)
    titles = {name: title for name, (title, _) in columns(sweep.plan).items()}
    drawn = [calls_plot(sweep, found, name, titles) for name in (reward, held_out, truth) if name]
    drawn += [pair_plot(found, reward, name, titles) for name in (held_out, truth) if reward and name]
    key = "".join(
        f'<span><svg viewBox="0 0 12 12">{mark(n, 6, 6, html.escape(name))}</svg>{html.escape(name)}</span>'
        for n, name in enumerate(sweep.plan.methods)
    )
    return f'<p class="key">{key}</p><div class="plots">{"".join(drawn)}</div>' if any(drawn) else ""


Found = Mapping[str, Mapping[str, Mapping[str, float]]]  # as table.values has it


def calls_plot(sweep: Sweep, found: Found, name: str, titles: Mapping[str, str]) -> str:
    """A point a method: all of its model calls, and the mean of a measure."""
    points = {}
    for method, named in found.items():
        calls, measured = named.get("cost/model_calls", {}), named.get(name, {})
        steps = sweep.plan.methods[method].steps
        both = [(mean(calls.values()) * steps, mean(measured.values()), "")] if calls and measured else []
        points[method] = both
    return scatter(points, "pictures through the denoiser, a run", titles.get(name, name))


def pair_plot(found: Found, x: str, y: str, titles: Mapping[str, str]) -> str:
    """A point a pair (prompt or seed) and method."""
    points = {
        method: [(named[x][key], named[y][key], key) for key in named.get(x, {}) if key in named.get(y, {})]
        for method, named in found.items()
    }
    return scatter(points, titles.get(x, x), titles.get(y, y))


def mean(numbers: Any) -> float:
    listed = list(numbers)
    return float(sum(listed) / len(listed))


def by_prompt(sweep: Sweep) -> str:
    """The truth, or else the reward, of every prompt by method."""
    found = values(sweep.outcomes, sweep.plan)
    names = {name for named in found.values() for name in named}
    chosen = next((name for name in (*TRUTH, *sorted(names)) if name in names), None)
    if chosen is None:
        return ""
    title, _ = columns(sweep.plan).get(chosen, (chosen, 3))
    rows = [[title, *found]]
    for prompt in sweep.plan.prompts:
        measured = [named.get(chosen, {}).get(prompt) for named in found.values()]
        rows.append([prompt, *("-" if value is None else f"{value:.3f}" for value in measured)])
    return wide(rows)


def objects(sweep: Sweep) -> str:
    """The first prompts' objects of the first seed, turning; a column a method."""
    plan, seed = sweep.plan, sweep.plan.seeds[0]
    at = {(o.prompt, o.method): o for o in sweep.outcomes if o.seed == seed}
    lines = []
    for prompt in plan.prompts[:SHOWN]:
        cells = (f"<td>{turning(sweep, at[prompt, method])}</td>" for method in plan.methods)
        lines.append(f"<tr><td>{html.escape(prompt)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{html.escape(method)}</th>" for method in ("", *plan.methods))
    rest = len(plan.prompts) - SHOWN
    more = f"<p>And {rest} prompts more, in their run folders.</p>" if rest > 0 else ""
    return f'<div class="wide"><table class="pictures"><tr>{head}</tr>{"".join(lines)}</table></div>{more}'


def turning(sweep: Sweep, outcome: Outcome) -> str:
    """A small film of a run's object, inside the page; its status where there is none."""
    from PIL import Image

    path = Run(folder=sweep.folder / outcome.folder).splats_ply
    if outcome.status != "done" or not path.is_file():
        return html.escape(outcome.status)
    frames = [Image.fromarray(p) for p in pictures(formats.load(path), turntable(FRAMES, size=SIDE))]
    file = io.BytesIO()
    frames[0].save(
        file, format="WEBP", save_all=True, append_images=frames[1:], duration=MILLISECONDS, quality=70
    )
    data = base64.b64encode(file.getvalue()).decode("ascii")
    about = html.escape(f"{outcome.prompt}, {outcome.method}")
    return f'<img alt="{about}" src="data:image/webp;base64,{data}">'


def failures(sweep: Sweep) -> str:
    lost = [o for o in sweep.outcomes if o.status != "done"]
    rows = [["run", "status", "error"], *([o.folder, o.status, (o.error or "")[:300]] for o in lost)]
    return wide(rows)


def differing(methods: Mapping[str, Config]) -> list[list[str]]:
    """Settings that are not the same for all methods, a row each."""
    flat = {name: _flat(to_dict(config)) for name, config in methods.items()}
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    rows = [["setting", *methods]]
    for key in keys:
        told = [json.dumps(settings.get(key)) for settings in flat.values()]
        if len(set(told)) > 1:
            rows.append([key, *told])
    return rows


def _flat(table: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{where}{key}.") if isinstance(value, dict) else {f"{where}{key}": value}
    return found


def again(saved: Mapping[str, Any]) -> str:
    command = saved.get("command")
    words = shlex.join(map(str, command)) if isinstance(command, list) else ""
    seconds = saved.get("seconds")
    took = f"<p>It took {seconds:,.0f} s.</p>" if isinstance(seconds, int | float) else ""
    return f"<pre>{html.escape(words)}</pre>{took}"
