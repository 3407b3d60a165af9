"""The pieces of a report: plots, corrected differences, LaTeX; and the page in a browser if there is one."""

from __future__ import annotations

import math
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splatgen.config import from_dict, merge
from splatgen.config.methods import slots
from splatgen.runs.statistics import paired_difference
from splatgen.sweeps import differences
from splatgen.sweeps.ledger import Outcome, Sweep
from splatgen.sweeps.plan import line_up
from splatgen.sweeps.plots import label, mark, scatter, ticks
from splatgen.sweeps.report import about, differing, wide


def sweep(better: float, prompts: int = 8) -> Sweep:
    """Numbers of three methods: psd is better by so much, csd is not."""
    base = from_dict({"prior": "toybox-mini"})
    colors, shapes = ("red", "blue", "green", "white"), ("cube", "cone")
    texts = [f"a {color} {shape}" for color in colors for shape in shapes]
    plan = line_up(texts[:prompts], {m: merge(base, slots(m)) for m in ("sds", "csd", "psd")}, [0])
    gain = {"sds": 0.0, "csd": 0.0, "psd": better}
    outcomes = [
        Outcome.of(
            task,
            status="done",
            numbers={"truth/iou": 0.5 + 0.01 * (n % 7) + gain[task.method], "cost/model_calls": 8.0},
        )
        for n, task in enumerate(plan.tasks())
    ]
    return Sweep(folder=Path("none"), plan=plan, outcomes=tuple(outcomes))


def test_a_star_is_what_holms_correction_leaves() -> None:
    found = differences.compared(sweep(0.2))
    assert found.corrected["psd", "truth/iou"] < 0.001
    assert found.corrected["csd", "truth/iou"] > 0.05
    assert differences.text(found, "psd", "truth/iou").endswith(")*")
    assert not differences.text(found, "csd", "truth/iou").endswith("*")
    assert "*" not in differences.text(found, "psd", "cost/model_calls")
    outcomes = sweep(0.2).outcomes
    ours, theirs = (
        {o.prompt: o.numbers["truth/iou"] for o in outcomes if o.method == method}
        for method in ("psd", "sds")
    )
    expected = paired_difference(ours, theirs)
    assert expected is not None
    assert expected.half is not None
    assert f"({expected.mean:+.3f} ±{expected.half:.3f})" in differences.text(found, "psd", "truth/iou")


def test_the_tables_say_the_same() -> None:
    found = differences.compared(sweep(0.2))
    head, *body = differences.rows(found)
    assert head == ["method", "runs", "IoU", "calls/step"]
    plain, tex = differences.markdown(found), differences.latex(found)
    for row in body:
        assert " | ".join(row[:2]) in plain.replace("  ", " ") or row[0] in plain
        assert row[0] in tex
        assert row[2].split(" ")[0] in tex
    assert tex.count(r"\\") == 4
    assert r"\begin{tabular}{lrrr}" in tex


def test_latex_is_escaped() -> None:
    assert differences.escaped("a_b & 5% ±0.1 -0.2 x-y {} # \\") == (
        r"a\_b \& 5\% $\pm$0.1 $-$0.2 x-y \{\} \# \textbackslash{}"
    )


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_ticks_are_around_all_values_and_few(values: list[float]) -> None:
    found = ticks(values)
    assert 2 <= len(found) <= 12
    width = found[1] - found[0]
    assert found[0] <= min(values) + 1e-6 * width
    assert found[-1] >= max(values) - 1e-6 * width
    assert width > 0


def test_a_plot_is_well_formed_and_leaves_out_what_is_not_finite() -> None:
    points = {"a <b>": [(1.0, 2.0, "x & y"), (math.nan, 1.0, "")], "c": [(3.0, 4.0, "")], "d": []}
    root = ET.fromstring(scatter(points, "cost & more", "quality"))
    titles = [e.text for e in root.iter() if e.tag == "title"]
    assert titles == ["a <b>, x & y: 1, 2", "c: 3, 4"]
    assert scatter({"a": []}, "x", "y") == ""
    for n in (0, 8, 16, 24):
        ET.fromstring(mark(n, 1.0, 2.0, "t"))
    assert [label(v) for v in (0.25, 12_345.0, 2_500_000.0)] == ["0.25", "12k", "2.5M"]


def test_the_first_line_counts_one_as_one_and_tells_the_minute() -> None:
    saved = {"version": "0.1", "machine": "a box", "date": "2026-11-26T19:46:22+00:00"}
    line = about(sweep(0.1), saved)
    assert line.startswith("8 prompts, 3 methods, 1 seed: 24 of 24 runs done.")
    assert line.endswith("a box, 2026-11-26 19:46 UTC.")
    elsewhere = {**saved, "date": "2026-11-26T19:46:22+02:00"}
    assert about(sweep(0.1, 1), elsewhere).startswith("1 prompt, 3 methods, 1 seed: 3 of 3")
    assert about(sweep(0.1), elsewhere).endswith("2026-11-26T19:46:22+02:00.")  # not told as UTC


def test_settings_that_differ_are_named() -> None:
    rows = differing(sweep(0.1).plan.methods)
    assert ["preference", '"none"', '"none"', '"psd"'] in rows
    assert not any(row[0] == "steps" for row in rows)
    assert "&lt;script&gt;" in wide([["a"], ["<script>"]])


@pytest.mark.skipif(shutil.which("chromium-headless-shell") is None, reason="no chromium: `make browser`")
def test_a_browser_shows_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from splatgen.runs import atomic
    from splatgen.sweeps import report

    given = sweep(0.2)
    monkeypatch.setattr(report, "turning", lambda *_: "here it turns")
    monkeypatch.setattr(report, "read_file", lambda _: {"version": "0", "command": ["splatgen", "sweep"]})
    atomic.write_text(tmp_path / "report.html", report.page(given, differences.compared(given)))
    words = ["chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--window-size=1000,1400"]
    words += [f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "report.html").as_uri()]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    with Image.open(tmp_path / "page.png") as shown:
        colors = {color for _, color in shown.convert("RGB").getcolors(2**24)}
    assert any(abs(r - 0x44) + abs(g - 0x77) + abs(b - 0xAA) < 120 and b > r + 40 for r, g, b in colors)
