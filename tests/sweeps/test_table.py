"""A sweep's table: cells, legend, width."""

from __future__ import annotations

from splatgen.runs.statistics import Difference, Measure
from splatgen.sweeps.table import WIDTH, aligned, cell, cost, legend, parts, runs_done


def measure(mean: float, difference: float | None = None, half: float | None = None, n: int = 3) -> Measure:
    found = None if difference is None else Difference(mean=difference, half=half, n=n)
    return Measure(mean=mean, n=n, difference=found)


def test_cells_show_the_mean_the_difference_and_half_the_interval() -> None:
    assert cell(measure(0.81249), 3) == "0.812"
    assert cell(measure(0.8125, -0.0281, 0.011), 3) == "0.812 (-0.028 ±0.011)"
    assert cell(measure(30.0, 1.5, None, n=1), 2) == "30.00 (+1.50)"
    assert cell(None, 3) == "-"


def test_costs_are_relative_to_the_first_method() -> None:
    assert cost(measure(8.0), 1) == "8.0"
    assert cost(measure(20.0, 12.0, 0.0), 1) == "20.0 (x2.50)"
    assert cost(measure(3.0, 3.0), 1) == "3.0"  # the first took nothing
    assert cost(None, 1) == "-"


def test_runs_that_came_to_no_end_are_named() -> None:
    assert runs_done(["done", "done"]) == "2/2"
    assert runs_done(["done", "diverged", "oom", "diverged"]) == "1/4, 2 diverged, 1 oom"


def test_the_legend_says_how_many_pairs_there_are() -> None:
    first, one = {"a": measure(1.0)}, {"a": measure(2.0, 1.0, None, n=1)}
    three = {"a": measure(2.0, 1.0, 0.1, n=3)}
    assert legend({"sds": first}) == "Means over the seeds."
    assert legend({"sds": first, "psd": one}).endswith("difference to sds, n = 1.")
    assert "95 %" in legend({"sds": first, "psd": three})
    assert legend({"sds": first, "psd": one, "sdi": three}).endswith("n = 1 to 3.")


def test_columns_are_straight() -> None:
    assert aligned([["a", "bbb"], ["cc", "d"]]).split("\n") == [
        "| a  | bbb |",
        "|----|-----|",
        "| cc | d   |",
    ]


def test_a_wide_table_is_cut_between_columns() -> None:
    rows = [
        ["method", *(f"column {n}" for n in range(20))],
        ["sds", *("0.812 (+0.028 ±0.011)" for _ in range(20))],
    ]
    found = parts(rows, WIDTH)
    assert all(len(line) <= WIDTH for part in found for line in aligned(part).splitlines())
    assert all(part[0][0] == "method" and part[1][0] == "sds" for part in found)
    assert [cell for part in found for cell in part[0][1:]] == rows[0][1:]
    wide = [["method", "a"], ["m" * 100, "b"]]
    assert parts(wide, WIDTH) == [wide]
