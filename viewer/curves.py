"""The panel of curves: rewards, loss, splats, preference and time over steps."""

from __future__ import annotations

import time

import viser
from viser import uplot

from splatgen.loop.snapshot import Snapshot

from .history import History

# title, and how the names of its columns begin
CHARTS = (
    ("reward (sought, where it guides)", "reward/"),
    ("held-out reward (only watches)", "holdout/"),
    ("loss", "loss"),
    ("splats", "splats/count"),
    ("reward gap of the pair", "preference/gap"),
    ("preference strength", "preference/strength"),
    ("milliseconds a step", "time/step_ms"),
)
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
HEIGHT = 150  # pixels
INTERVAL = 1.0  # seconds between drawings, while the run goes on


class Curves:
    """A chart a kind of number, made when the first of its numbers comes."""

    def __init__(self, gui: viser.GuiApi, place: viser.GuiTabHandle, history: History) -> None:
        self.gui, self.place, self.history = gui, place, history
        self.charts: dict[str, tuple[tuple[str, ...], viser.GuiUplotHandle]] = {}
        self.drawn = 0.0

    def update(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        if snapshot.status == "running" and now - self.drawn < INTERVAL:
            return
        self.drawn = now
        for order, (title, start) in enumerate(CHARTS):
            names = tuple(sorted(name for name in self.history.columns if name.startswith(start)))
            if names:
                self._draw(order, title, names)

    def _draw(self, order: int, title: str, names: tuple[str, ...]) -> None:
        data = self.history.curves(names)
        if len(data[0]) < 2:
            return
        known, chart = self.charts.get(title, ((), None))
        if chart is not None and known == names:
            chart.data = data
            return
        if chart is not None:
            chart.remove()
        with self.place:
            self.charts[title] = names, self._chart(order, title, names, data)

    def _chart(
        self, order: int, title: str, names: tuple[str, ...], data: tuple[object, ...]
    ) -> viser.GuiUplotHandle:
        lines = [
            uplot.Series(label=name.rpartition("/")[2], stroke=COLOURS[n % len(COLOURS)], width=1.5)
            for n, name in enumerate(names)
        ]
        return self.gui.add_uplot(
            data,  # type: ignore[arg-type]
            (uplot.Series(label="step"), *lines),
            title=title,
            scales={"x": uplot.Scale(time=False)},
            axes=(uplot.Axis(size=30), uplot.Axis(size=60)),
            legend=uplot.Legend(show=True),
            height=HEIGHT,
            order=float(order),
        )
