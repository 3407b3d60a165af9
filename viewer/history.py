"""The numbers of a run, step by step, for curves.

Shapes: R rows.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 400  # of a curve

Series = NDArray[np.float64]


class History:
    """Rows of metrics.jsonl in columns; a run that goes back to a checkpoint drops the rows after it."""

    def __init__(self) -> None:
        self.steps = array("d")
        self.columns: dict[str, array[float]] = {}

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        for row in rows:
            step = row.get("step")
            if isinstance(step, int | float):
                self._back_to(step)
                self._append(float(step), row)

    def _back_to(self, step: float) -> None:
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            for column in self.columns.values():
                column.pop()

    def _append(self, step: float, row: Mapping[str, object]) -> None:
        for name in row:
            if name != "step" and name not in self.columns:
                self.columns[name] = array("d", [math.nan]) * len(self.steps)
        self.steps.append(step)
        for name, column in self.columns.items():
            value = row.get(name)
            column.append(float(value) if isinstance(value, int | float) else math.nan)

    def rows(self) -> list[dict[str, float]]:
        """What was added, row by row."""
        names = list(self.columns)
        columns = [self.columns[name] for name in names]
        return [
            {"step": step, **{name: column[n] for name, column in zip(names, columns, strict=True)}}
            for n, step in enumerate(self.steps)
        ]

    def last(self, name: str) -> float | None:
        """The newest number of a column."""
        column = self.columns.get(name)
        return next((value for value in reversed(column) if math.isfinite(value)), None) if column else None

    def curves(self, names: Sequence[str]) -> tuple[Series, ...]:
        """Steps, and a column a name, where one of them has a number; at most MOST_POINTS and the last.

        Points are left out by a power of two, so that those that stay don't move while the curve grows.
        """
        steps = np.array(self.steps)
        found = np.array([self.columns[name] for name in names]).reshape(len(names), len(steps))
        there = np.flatnonzero(np.isfinite(found).any(0))
        stride = 1
        while len(there) > stride * MOST_POINTS:
            stride *= 2
        picked = np.union1d(there[::stride], there[-1:])
        return steps[picked], *found[:, picked]
