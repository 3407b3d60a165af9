"""The list of jobs: the one at work with its variants, those that wait, and those that ended."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from typing import Any

import viser

from splatgen.loop.snapshot import Command

from .deeds import Deeds, box, button
from .studio_program import BUSY, Lane, Program, QueuedJob, Work

ENDED = 4  # jobs that are listed
INTERVAL = 1.0  # seconds between drawings, while only numbers change


class Queue:
    """Drawn by one thread, in `update`; deeds of pages come from others."""

    def __init__(self, gui: viser.GuiApi, program: Program, deeds: Deeds) -> None:
        self.program = program
        self.html = gui.add_html("", visible=False)
        self.numbers = gui.add_html("", visible=False)  # apart, so that buttons stay under the hand
        self._drawn, self._told, self._at = "", "", 0.0
        deeds.add("up", lambda of, _: program.move(int(of), -1))
        deeds.add("down", lambda of, _: program.move(int(of), 1))
        deeds.add("cancel", lambda of, _: program.cancel(int(of)))
        deeds.add("stop", lambda of, _: program.send(Command(kind="stop"), int(of) if of else None))

    def update(self, work: Work, scores: Sequence[float | None], steps: Sequence[int]) -> None:
        """Draw what has changed; scores and steps are those of the runs at work."""
        jobs = self.program.queue()
        waiting = [job for job in jobs if job.state == "waiting"]
        shown = work.busy or len(work.lanes) > 1
        ended = [job for job in jobs if job.state != "waiting" and not (shown and job.number == work.number)]
        rows = [self._at_work(work)] if shown else []
        rows += [_waiting(job, n, len(waiting)) for n, job in enumerate(waiting)]
        rows += [_ended(job) for job in ended[:ENDED]]
        content = box(f'<div class="list">{"".join(rows)}</div>') if rows else ""
        if content != self._drawn:
            self._drawn = content
            self.html.content = content
            self.html.visible = bool(rows)
        now, several = time.monotonic(), len(work.lanes) > 1
        if now - self._at >= INTERVAL or not several:
            told = "<br>".join(map(_number, work.lanes, steps, scores)) if several else ""
            if told != self._told:
                self._told, self._at = told, now
                self.numbers.content, self.numbers.visible = box(told), several

    def _at_work(self, work: Work) -> str:
        stop = button("Stop and keep", "stop", "", "Ends it with a checkpoint") if work.busy else ""
        said = f'<span class="now">{html.escape(work.prompt)}</span> {html.escape(work.state)} {stop}'
        if len(work.lanes) < 2:
            return f'<div class="row"><div>{said}</div></div>'
        some = sum(lane.state in BUSY for lane in work.lanes) > 1
        if some:
            said += button("Stop the worst", "worst") + button("Only the best goes on", "best")
        lines = "".join(f"<div>{_lane(n, lane, alone=not some)}</div>" for n, lane in enumerate(work.lanes))
        return f'<div class="row"><div>{said}{lines}</div></div>'


def _number(lane: Lane, step: int, score: float | None) -> str:
    told = f" · {score:.3f}" if score is not None else ""
    return f"{html.escape(lane.name)}: step {step:,}{told}"


def _lane(n: int, lane: Lane, *, alone: bool) -> str:
    said = f"<b>{html.escape(lane.name)}</b> {html.escape(lane.state)} "
    said += button("Look at", "front", n, "Its curves and candidates, in the panels below")
    if lane.state in BUSY:
        said += button("Stop", "stop", n, "Ends this one and keeps it")
        said += "" if alone else button("Only this", "only", n, "The others end and are kept")
    return said + (f'<span class="alert">{html.escape(lane.message)}</span>' if lane.message else "")


def _waiting(job: QueuedJob, place: int, count: int) -> str:
    moves = button("↑", "up", job.number, "Earlier") if place else ""
    moves += button("↓", "down", job.number, "Later") if place + 1 < count else ""
    cancel = button("Cancel", "cancel", job.number)
    return _row(
        f"{html.escape(job.prompt)} <span class='dim'>waiting · {html.escape(job.told)}</span>",
        moves + cancel,
    )


def _ended(job: QueuedJob) -> str:
    buttons = button("Show", "show", job.runs[0]) + button("Again", "again", job.runs[0]) if job.runs else ""
    if len(job.runs) > 1:
        buttons = button("Show all", "together", " ".join(job.runs)) + button("Again", "again", job.runs[0])
    wrong = f'<div class="alert">{html.escape(job.message)}</div>' if job.message else ""
    about = f'<span class="dim">{html.escape(job.state)} · {html.escape(job.told)}</span>'
    return _row(f"{html.escape(job.prompt)} {about}{wrong}", buttons)


def _row(said: str, buttons: str) -> str:
    return f'<div class="row"><div>{said} {buttons}</div></div>'


def worst(scores: Sequence[float | None], busy: Sequence[bool]) -> int | None:
    """The run with the lowest score of those that go on; None where fewer than two have one."""
    return _extreme(scores, busy, min)


def best(scores: Sequence[float | None], busy: Sequence[bool]) -> int | None:
    """The run with the highest score of those that go on; None where fewer than two have one."""
    return _extreme(scores, busy, max)


def _extreme(scores: Sequence[float | None], busy: Sequence[bool], pick: Callable[..., Any]) -> int | None:
    known = [(score, n) for n, score in enumerate(scores) if busy[n] and score is not None]
    return int(pick(known)[1]) if len(known) > 1 else None
