"""Numbers over steps, as they come and go."""

from __future__ import annotations

import math

import numpy as np
import pytest
from splatgen_viewer.history import MOST_POINTS, History


def history(*rows):
    made = History()
    made.add(rows)
    return made


def test_rows_become_columns_with_gaps_where_a_number_was_not_asked_for():
    found = history({"step": 0, "a": 1.0}, {"step": 1, "a": 2, "b": 3.0}, {"step": 2, "b": 4.0})
    steps, a, b = found.curves(("a", "b"))
    assert steps.tolist() == [0, 1, 2]
    assert a.tolist()[:2] == [1, 2]
    assert math.isnan(a[2])
    assert math.isnan(b[0])
    assert b.tolist()[1:] == [3, 4]
    assert found.last("a") == 2
    assert found.last("c") is None


def test_rows_without_a_number_of_a_curve_are_left_out_of_it():
    found = history({"step": 0, "a": 1.0, "r": 5.0}, {"step": 1, "a": 1.0}, {"step": 2, "a": 1.0, "r": 6.0})
    assert [c.tolist() for c in found.curves(("r",))] == [[0, 2], [5, 6]]


def test_a_run_that_goes_back_writes_its_rows_again():
    found = history(*({"step": n, "a": float(n)} for n in range(10)))
    found.add([{"step": 4, "a": 40.0}, {"step": 5, "a": 50.0, "new": 1.0}])
    steps, a = found.curves(("a",))
    assert steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert a.tolist() == [0, 1, 2, 3, 40, 50]
    found.add([{"step": 5, "a": 50.0, "new": 1.0}])  # a row that came twice counts once
    assert found.curves(("new",))[0].tolist() == [5]


@pytest.mark.parametrize("value", [None, "text", math.nan, math.inf])
def test_what_is_no_number_is_a_gap(value):
    found = history({"step": 0, "a": 1.0}, {"step": 1, "a": value}, {"step": None, "a": 7.0}, {"a": 8.0})
    assert found.curves(("a",))[0].tolist() == [0]
    assert found.last("a") == 1.0


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 5000])
def test_long_curves_are_thinned_and_keep_their_ends(count):
    steps, a = history(*({"step": n, "a": float(n)} for n in range(count))).curves(("a",))
    assert len(steps) <= MOST_POINTS + 1
    assert (steps[0], steps[-1]) == (0, count - 1)
    np.testing.assert_array_equal(steps, a)


def test_points_stay_where_they_are_while_a_curve_grows():
    found = history(*({"step": n, "a": 0.0} for n in range(900)))
    before = set(found.curves(("a",))[0][:-1].tolist())
    found.add({"step": n, "a": 0.0} for n in range(900, 1500))
    assert before <= set(found.curves(("a",))[0].tolist())
