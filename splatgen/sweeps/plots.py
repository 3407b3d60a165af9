"""Scatter plots as SVG, to stand inside a page: no script, no font, no file beside it. No torch here."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 46  # margins, pixels
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")  # Paul Tol's, bright
SHAPES = ("circle", "square", "triangle", "diamond")  # when colours run out, or can't be told apart

Points = Sequence[tuple[float, float, str]]  # x, y, what it is


def color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def scatter(given: Mapping[str, Points], x: str, y: str) -> str:
    """Points of each series by name, with axes; empty without any point."""
    series = {name: [p for p in found if math.isfinite(p[0] + p[1])] for name, found in given.items()}
    points = [(a, b) for found in series.values() for a, b, _ in found]
    if not points:
        return ""
    xs, ys = ticks([a for a, _ in points]), ticks([b for _, b in points])

    def place(a: float, b: float) -> tuple[float, float]:
        across = (a - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)
        up = (b - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    told = html.escape(f"{y} against {x}")
    foot, middle, across = HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2, (WIDTH + LEFT) / 2
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">']
    for tick in xs:
        at, _ = place(tick, ys[0])
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{foot}"/>')
        parts.append(f'<text x="{at:.1f}" y="{foot + 15}" text-anchor="middle">{label(tick)}</text>')
    for tick in ys:
        _, at = place(xs[0], tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label(tick)}</text>')
    turned = f'transform="translate(13 {middle}) rotate(-90)"'
    parts.append(f'<text x="{across}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x)}</text>')
    parts.append(f'<text {turned} text-anchor="middle">{html.escape(y)}</text>')
    for n, (name, found) in enumerate(series.items()):
        for a, b, what in found:
            about = html.escape(f"{name}{f', {what}' if what else ''}: {label(a)}, {label(b)}")
            parts.append(mark(n, *place(a, b), about))
    return "".join([*parts, "</svg>"])


def mark(index: int, x: float, y: float, told: str) -> str:
    """A point of a series, which says what it is when it is pointed at."""
    kind, r = SHAPES[index // len(COLORS) % len(SHAPES)], 4.5
    d = 1.3 * r
    drawn = {
        "circle": f'circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"',
        "square": f'rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"',
        "triangle": f'path d="M{x:.1f} {y - r:.1f}l{r} {2 * r}h{-2 * r}z"',
        "diamond": f'path d="M{x:.1f} {y - d:.1f}l{d} {d}l{-d} {d}l{-d} {-d}z"',
    }[kind]
    fill = f'fill="{color(index)}" fill-opacity="0.75"'
    return f"<{drawn} {fill}><title>{told}</title></{drawn.split()[0]}>"


def ticks(values: Sequence[float], most: int = 6) -> list[float]:
    """Round numbers around all values, from just below the least to just above the largest."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-12):  # all the same, as far as a plot can tell
        room = 0.5 * size if size > 1e-12 else 0.5
        low, high = low - room, high + room
    rough = (high - low) / (most - 1)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * f for f in (1, 2, 2.5, 5, 10) if scale * f >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, last + 1)]


def label(value: float) -> str:
    """A number in few characters."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k" if abs(value) < 1e6 else f"{value / 1e6:,.3g}M"
    return f"{value:.4g}"
