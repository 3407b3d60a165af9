"""One line of the studio that says where things stand, and a bar."""

from __future__ import annotations

import collections
import html

import viser

from splatgen.loop.snapshot import Snapshot

from .deeds import alert, box
from .status import Status
from .studio_program import Work

WORDS = {
    "idle": "type a prompt and press Enter",
    "loading": "loading the models, or reading the prompt",
    "running": "running",
    "paused": "paused",
    "writing": "writing the results",
    "done": "done",
    "stopped": "stopped and kept: Continue, among the past runs, goes on with it",
    "failed": "failed",
}


class StudioStatus(Status):
    """As a run's, with the job in the same line: nothing is said twice."""

    def __init__(self, gui: viser.GuiApi) -> None:
        super().__init__(gui)
        self.work = Work(state="idle")
        self.snapshot: Snapshot | None = None
        self._draw()

    def begin(self, work: Work) -> None:
        """Another job."""
        self.snapshot = None
        self.past = collections.deque(maxlen=self.past.maxlen)
        self.messages.clear()
        self.said.visible = False
        self.bar.value = 0.0  # type: ignore[misc]
        self.show(work)

    def show(self, work: Work) -> None:
        """Where the job is."""
        self.work = work
        self._draw()

    def update(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.bar.value = 100.0 * min(snapshot.step / max(snapshot.steps, 1), 1.0)  # type: ignore[misc]
        if snapshot.status == "running":
            self.past.append((snapshot.step, snapshot.seconds))
        else:
            self.past.clear()  # a pause is no part of the pace
        self._draw()

    def _draw(self) -> None:
        work, seen = self.work, self.snapshot
        title = f"{work.prompt} · splatgen" if work.prompt else "splatgen studio"
        about = [f"<b>{html.escape(work.prompt)}</b>"] if work.prompt else []
        about.append(html.escape(WORDS[work.state]))
        if seen is not None:
            left = self._pace(seen) if work.state == "running" else ""
            about.append(f"step {seen.step:,} of {seen.steps:,}{left}")
        line = " · ".join(about)
        below = [f"{len(seen.cloud):,} splats"] if seen is not None else []
        below += [html.escape(work.where)] if work.where and not work.busy else []
        small = f'<div class="dim">{" · ".join(below)}</div>' if below else ""
        advice = f'<div class="dim">{html.escape(work.advice)}</div>' if work.advice else ""
        said = f'<div data-title="{html.escape(title)}" role="status">{line}{small}{advice}</div>'
        self.text.content = box(said) + (alert(work.message) if work.message else "")
