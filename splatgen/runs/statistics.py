"""Methods measured on the same seeds: means, and paired differences with a confidence interval. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more one method has than another on what both were measured on."""

    mean: float
    half: float | None  # half the width of the confidence interval around the mean; None for a single pair
    n: int  # pairs
    p: float | None = None  # of Student's test that there is none, on both sides; None for a single pair


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number over what a method was measured on."""

    mean: float
    n: int
    difference: Difference | None  # to the first method; None for the first itself, and without pairs


def summarise(values: Mapping[str, Mapping[str, Mapping[K, float]]]) -> dict[str, dict[str, Measure]]:
    """Measures by method and name, of values by method, name, and what makes a pair, such as a seed.

    The first method is what the others are held against. Values that are not finite are left out.
    """
    first = next(iter(values.values()), {})
    found: dict[str, dict[str, Measure]] = {}
    for method, names in values.items():
        found[method] = {}
        for name, by_key in names.items():
            finite = [value for value in by_key.values() if math.isfinite(value)]
            if finite:
                difference = None if names is first else paired_difference(by_key, first.get(name, {}))
                found[method][name] = Measure(
                    mean=statistics.fmean(finite), n=len(finite), difference=difference
                )
    return found


def paired_difference(
    values: Mapping[K, float], baseline: Mapping[K, float], confidence: float = 0.95
) -> Difference | None:
    """Mean of values less baseline over the keys that both hold, with Student's interval; None without any.

    A key is what makes a pair, such as a seed. Values that are not finite make none.
    """
    pairs = [(values[key], baseline[key]) for key in values if key in baseline]
    found = [a - b for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if not found:
        return None
    mean, half, p = statistics.fmean(found), None, None
    if len(found) > 1:
        error = statistics.stdev(found) / math.sqrt(len(found))
        half = student_quantile((1.0 + confidence) / 2.0, len(found) - 1) * error
        p = 1.0 - student_inside(abs(mean) / error, len(found) - 1) if error > 0 else float(mean == 0.0)
    return Difference(mean=mean, half=half, n=len(found), p=p)


def holm(values: Mapping[K, float]) -> dict[K, float]:
    """P-values of a family of tests by name, corrected for their number (Holm 1979), in the same order.

    The k-th smallest of m becomes the largest of (m - j + 1) p_(j) over j up to k, and 1 at most: those
    below a level are wrong, any of them, with at most that probability, however the tests depend on one
    another. ValueError for what is no probability.
    """
    wrong = {name: p for name, p in values.items() if not 0.0 <= p <= 1.0}
    if wrong:
        name, p = next(iter(wrong.items()))
        raise ValueError(f"the p-value of {name} is {p}: give probabilities, 0 to 1")
    least, found = 0.0, {}
    for rank, name in enumerate(sorted(values, key=lambda key: values[key])):
        least = max(least, min((len(values) - rank) * values[name], 1.0))
        found[name] = least
    return {name: found[name] for name in values}


def student_inside(t: float, freedom: int) -> float:
    """P(|T| <= t) for Student's T with a whole number of degrees of freedom, exactly.

    The finite sums of Abramowitz and Stegun, 26.7.3 (odd) and 26.7.4 (even).
    """
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    if not odd:
        return math.sin(angle) * total
    return (angle + (math.sin(angle) * total if freedom > 1 else 0.0)) * 2.0 / math.pi


def student_quantile(probability: float, freedom: int) -> float:
    """The t that Student's T stays below with a probability in [0.5, 1)."""
    if not 0.5 <= probability < 1.0 or freedom < 1:
        raise ValueError(
            f"no quantile for probability {probability} and {freedom} degrees of freedom: give "
            "a probability from 0.5 to less than 1, and 1 degree or more"
        )
    low, high = 0.0, 1.0
    while student_inside(high, freedom) < 2.0 * probability - 1.0:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = (low + high) / 2.0
        if student_inside(middle, freedom) < 2.0 * probability - 1.0:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0
