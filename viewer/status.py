"""The panel of where a run is: step, pace, time left, memory, and what it has to say."""

from __future__ import annotations

import collections
import html

import viser

from splatgen.loop.snapshot import Snapshot

PACE = 20  # snapshots that the pace is measured over
MESSAGES = 4  # shown, the newest last


class Status:
    """A bar, a few lines, and the last messages."""

    def __init__(self, gui: viser.GuiApi) -> None:
        self.bar = gui.add_progress_bar(0.0)
        self.text = gui.add_html(_box("waiting for the first step"))
        self.messages: collections.deque[str] = collections.deque(maxlen=MESSAGES)
        self.said = gui.add_html("", visible=False)
        self.past: collections.deque[tuple[int, float]] = collections.deque(maxlen=PACE)

    def update(self, snapshot: Snapshot) -> None:
        done = 100.0 * min(snapshot.step / max(snapshot.steps, 1), 1.0)
        self.bar.value = done  # type: ignore[misc]
        if snapshot.status == "running":
            self.past.append((snapshot.step, snapshot.seconds))
        else:
            self.past.clear()  # a pause is no part of the pace
        step = f"<b>step {snapshot.step:,} of {snapshot.steps:,}</b> · " if snapshot.steps else ""
        lines = [
            step + html.escape(snapshot.status),
            html.escape(snapshot.stage),
            f"{len(snapshot.cloud):,} splats{self._pace(snapshot)}",
            _memory(snapshot),
        ]
        self.text.content = _box("<br>".join(line for line in lines if line))

    def tell(self, message: str) -> None:
        """Show words of the run to the user."""
        self.messages.append(message)
        self.said.content = _box("<br>".join(html.escape(text) for text in self.messages))
        self.said.visible = True

    def _pace(self, snapshot: Snapshot) -> str:
        if len(self.past) < 2:
            return ""
        (before, then), (now, at) = self.past[0], self.past[-1]
        if now <= before or at <= then:
            return ""
        pace = (now - before) / (at - then)
        left = round((snapshot.steps - now) / pace)
        speed = f"{pace:.1f} steps/s" if pace >= 1 else f"{1 / pace:.1f} s a step"
        return f" · {speed} · {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"


def _memory(snapshot: Snapshot) -> str:
    used = (("memory", snapshot.memory_mb), ("GPU", snapshot.gpu_memory_mb))
    told = [f"{name} {mb:,.0f} MB" for name, mb in used if mb is not None]
    return f"{' · '.join(told)} at most" if told else ""


def _box(text: str) -> str:
    return f'<div style="padding: 0 1em 0.5em; font-size: 0.875em; line-height: 1.5">{text}</div>'
