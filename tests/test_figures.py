"""Figures that the pages quote are those of benchmarks/results, as rounded as they stand there.

1.07<!-- overhead-20261121-cpu.json ratio -->         a number, the file and the key it is from
12<!-- FILE.json scenes.*.methods.torch.ms min -->     * is all entries; min, max or mean of them
1<!-- FILE.json rows.made.iou mean -->                 entries of objects made; rows.ceiling: of fitted ones
<!-- table FILE.json -->                               the table below is of that file's rows
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIGURE = re.compile(r"([-+]?\d[\d,]*(?:\.\d+)?)<!-- (\S+\.json) (.+?)(?: (min|max|mean))? -->")
TABLE = re.compile(r"<!-- table (\S+\.json) -->\n((?:\|.*\n)+)")
QUOTED = [
    pytest.param(*found, id=f"{page.name}-{found[1]}-{found[2]}"[:80])
    for page in PAGES
    for found in FIGURE.findall(page.read_text(encoding="utf-8"))
]
TABLES = [
    pytest.param(*found, id=f"{page.name}-{found[0]}")
    for page in PAGES
    for found in TABLE.findall(page.read_text(encoding="utf-8"))
]
KINDS = {  # the first words of a row of README's table
    "single": "single",
    "a marked": "front",
    "striped": "pattern",
    "stacked": "stacked",
    "side by": "beside",
    "**all": "all",
    "ceiling": "ceiling",
}


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def values(data: Any, key: str) -> list[float]:
    """Everything at a key; its words may hold dots, as `torch.compile` does, and the longest one counts."""
    if not key:
        return [float(data)]
    if isinstance(data, list):
        head, _, rest = key.partition(".")
        fitted = [isinstance(row, dict) and bool(row.get("ceiling")) for row in data]
        chosen = {
            "*": data,
            "made": [row for row, ceiling in zip(data, fitted, strict=True) if not ceiling],
            "ceiling": [row for row, ceiling in zip(data, fitted, strict=True) if ceiling],
        }
        entries = chosen[head] if head in chosen else [data[int(head)]]
        return [value for entry in entries for value in values(entry, rest)]
    name = max((k for k in data if key == k or key.startswith(f"{k}.")), key=len)
    return values(data[name], key[len(name) + 1 :])


def agrees(text: str, value: float) -> bool:
    """Whether a figure is a value rounded to as many digits."""
    plain = text.replace(",", "").replace("*", "")
    digits = len(plain.partition(".")[2])
    return abs(float(plain) - value) <= 0.5 * 10.0**-digits + 1e-9


def test_figures_are_marked() -> None:
    """Guards the tests below: without marks nothing would be held."""
    assert len(QUOTED) > 25
    assert len(TABLES) == 12


@pytest.mark.parametrize(("text", "name", "key", "how"), QUOTED)
def test_a_figure_is_that_of_its_file(text: str, name: str, key: str, how: str) -> None:
    found = values(read(name), key)
    assert how or len(found) == 1, "say which of these: min, max or mean"
    value = {"min": min, "max": max, "mean": statistics.fmean, "": statistics.fmean}[how](found)
    assert agrees(text, value), f"{text} is quoted, {value} was measured"


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_a_table_is_that_of_its_file(name: str, table: str) -> None:
    data = read(name)
    rows = table.splitlines()[2:]
    assert rows
    if "table" in data:
        assert set(rows) <= set(data["table"].splitlines())
        return
    for row in rows:
        label, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        kind = next(kind for start, kind in KINDS.items() if label.startswith(start))
        chosen = [r for r in data["rows"] if r["ceiling"] == (kind == "ceiling")]
        chosen = [r for r in chosen if kind in (r["kind"], "all", "ceiling")]
        keys = ["iou", "psnr", "color_error", "nearest_right", "judged_right", "judged_right_truth"]
        quoted = re.findall(r"\d+(?:\.\d+)?", " ".join(cells))
        assert len(quoted) >= 5
        for key, text in zip(keys, quoted, strict=False):
            mean = statistics.fmean(r[key] for r in chosen)
            assert agrees(text, mean), f"{label}: {key} is quoted as {text}, {mean} was measured"


@pytest.mark.parametrize(
    ("text", "value"), [("1.07", 1.0749), ("129", 128.78), ("1,500", 1500.4), ("0.90", 0.9)]
)
def test_rounding(text: str, value: float) -> None:
    assert agrees(text, value)
    assert not agrees(text, value * 1.02 + 1.0)
