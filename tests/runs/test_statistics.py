"""Paired differences: Student's quantiles against printed tables, differences against arithmetic by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splatgen.runs.statistics import holm, paired_difference, student_inside, student_quantile, summarise

finite = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("freedom", "printed"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (9, 2.262),
        (10, 2.228),
        (20, 2.086),
        (29, 2.045),
        (30, 2.042),
        (60, 2.000),
        (120, 1.980),
        (1000, 1.962),
    ],
)
def test_the_quantiles_are_those_of_printed_tables(freedom: int, printed: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(printed, abs=5e-4)


def test_other_levels_and_the_median() -> None:
    assert student_quantile(0.995, 4) == pytest.approx(4.604, abs=5e-4)
    assert student_quantile(0.95, 7) == pytest.approx(1.895, abs=5e-4)
    assert student_quantile(0.5, 3) == pytest.approx(0.0, abs=1e-12)


def test_one_degree_is_cauchys_distribution() -> None:
    for t in (0.1, 1.0, 7.0):
        assert student_inside(t, 1) == pytest.approx(2.0 * math.atan(t) / math.pi, abs=1e-14)


def test_many_degrees_are_the_normal_distribution() -> None:
    for t in (0.5, 1.0, 2.0):
        assert student_inside(t, 100_000) == pytest.approx(math.erf(t / math.sqrt(2.0)), abs=1e-5)


@given(st.floats(0.0, 50.0), st.integers(1, 40))
def test_quantiles_undo_probabilities(t: float, freedom: int) -> None:
    inside = student_inside(t, freedom)
    assert 0.0 <= inside < 1.0 + 1e-12
    if inside < 0.999:  # further out the probability has too few digits left
        assert student_quantile((1.0 + inside) / 2.0, freedom) == pytest.approx(t, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("probability", "freedom"), [(0.4, 3), (1.0, 3), (0.9, 0), (math.nan, 3)])
def test_what_has_no_quantile_is_refused(probability: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        student_quantile(probability, freedom)


def test_a_difference_by_hand() -> None:
    """Differences 1, 2, 6: mean 3, squares 4 + 1 + 9, variance 7, half = 4.3027 sqrt(7 / 3)."""
    found = paired_difference({0: 11.0, 1: 22.0, 2: 36.0}, {2: 30.0, 0: 10.0, 1: 20.0})
    assert found is not None
    assert (found.mean, found.n) == (3.0, 3)
    assert found.half == pytest.approx(4.302653 * math.sqrt(7.0 / 3.0), abs=1e-5)


def test_only_keys_of_both_with_finite_values_are_pairs() -> None:
    values = {0: 1.0, 1: 5.0, 2: math.nan, 4: 9.0}
    baseline = {0: 0.0, 2: 1.0, 3: 1.0, 4: math.inf}
    found = paired_difference(values, baseline)
    assert found is not None
    assert (found.mean, found.half, found.n) == (1.0, None, 1)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({}, {}) is None


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=8), finite)
def test_what_shifts_both_changes_nothing_and_exchange_turns_the_sign(
    pairs: list[tuple[float, float]], shift: float
) -> None:
    values, baseline = ({i: pair[side] for i, pair in enumerate(pairs)} for side in (0, 1))
    plain = paired_difference(values, baseline)
    moved = paired_difference(*({k: v + shift for k, v in d.items()} for d in (values, baseline)))
    turned = paired_difference(baseline, values)
    assert plain is not None
    assert moved is not None
    assert turned is not None
    assert plain.half is not None
    assert plain.half >= 0.0
    assert moved.mean == pytest.approx(plain.mean, abs=1e-6)
    assert moved.half == pytest.approx(plain.half, rel=1e-6, abs=1e-6)
    assert (turned.mean, turned.half) == (-plain.mean, plain.half)


def test_a_wider_confidence_is_a_wider_interval() -> None:
    values, baseline = {0: 1.0, 1: 2.0, 2: 4.0}, {0: 0.0, 1: 0.0, 2: 0.0}
    halves = [paired_difference(values, baseline, level) for level in (0.5, 0.9, 0.95, 0.99)]
    widths = [found.half for found in halves if found is not None and found.half is not None]
    assert len(widths) == 4
    assert widths == sorted(set(widths))


def test_a_summary_holds_means_and_differences_to_the_first() -> None:
    values = {
        "first": {"reward": {0: 1.0, 1: 3.0}, "only here": {0: 7.0}},
        "second": {"reward": {0: 2.0, 1: 6.0, 2: 10.0}, "broken": {0: math.nan}},
    }
    found = summarise(values)
    assert list(found) == ["first", "second"]
    first, second = found["first"]["reward"], found["second"]["reward"]
    assert (first.mean, first.n, first.difference) == (2.0, 2, None)
    assert (second.mean, second.n) == (6.0, 3)
    assert second.difference is not None
    assert (second.difference.mean, second.difference.n) == (2.0, 2)
    assert found["first"]["only here"].n == 1
    assert "broken" not in found["second"]
    assert summarise({}) == {}


def test_the_p_value_is_where_the_interval_meets_zero() -> None:
    """Differences 1, 2, 6: t = 3 / sqrt(7 / 3), two degrees: 1 - t / sqrt(2 + t^2)."""
    found = paired_difference({0: 11.0, 1: 22.0, 2: 36.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert found is not None
    t = 3.0 / math.sqrt(7.0 / 3.0)
    assert found.p == pytest.approx(1.0 - t / math.sqrt(2.0 + t * t), abs=1e-12)
    edge = paired_difference({0: 11.0, 1: 22.0, 2: 36.0}, {0: 10.0, 1: 20.0, 2: 30.0}, 1.0 - found.p)
    assert edge is not None
    assert edge.half == pytest.approx(edge.mean, rel=1e-9)
    same, shifted = (
        paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}),
        paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}),
    )
    assert same is not None
    assert shifted is not None
    assert (same.p, shifted.p) == (1.0, 0.0)


def test_holm_by_hand() -> None:
    """Four tests: 4 x 0.01, 3 x 0.02, 2 x 0.03 would be less than the one before, 1 x 0.9."""
    found = holm({"c": 0.03, "a": 0.01, "d": 0.9, "b": 0.02})
    assert list(found) == ["c", "a", "d", "b"]
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.9})
    assert holm({}) == {}
    assert holm({"one": 0.04}) == {"one": 0.04}


def step_down(values: list[float], level: float) -> set[int]:
    """Holm's own rule: from the smallest up, until one is not below level / (tests left)."""
    rejected: set[int] = set()
    for rank, at in enumerate(sorted(range(len(values)), key=lambda n: values[n])):
        if values[at] > level / (len(values) - rank):
            break
        rejected.add(at)
    return rejected


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12), st.sampled_from([0.01, 0.05, 0.3]))
def test_holm_rejects_what_the_step_down_rule_rejects(values: list[float], level: float) -> None:
    found = holm(dict(enumerate(values)))
    near = [abs(p * (len(values) - r) - level) < 1e-12 for p in values for r in range(len(values))]
    if not any(near):
        assert {n for n, p in found.items() if p <= level} == step_down(values, level)
    assert all(values[n] <= p <= 1.0 for n, p in found.items())
    assert max(found.values()) <= min(1.0, len(values) * max(values)) + 1e-12


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_not_corrected(bad: float) -> None:
    with pytest.raises(ValueError, match="give probabilities"):
        holm({"fine": 0.5, "bad": bad})
