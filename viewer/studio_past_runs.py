"""The panel of past runs, and the place in the scene where one or two of them are shown."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import viser

from splatgen.loop.snapshot import Cloud

from .poses import first_position
from .studio_program import PastRun, Program
from .studio_request import Request, alert, attempt, box

PER_PAGE = 6
APART = 2.4  # world units, between the middles of two objects
SIDES = ("left", "right")

Event = viser.GuiEvent[Any]


class Exhibit:
    """Past objects in place of the live one: one in the middle, or two side by side, seen by one camera."""

    def __init__(self, server: viser.ViserServer) -> None:
        self.server = server
        self.names: tuple[str, ...] = ()
        self._nodes: list[Any] = []

    def show(self, names: Sequence[str], labels: Sequence[str], clouds: Sequence[Cloud]) -> None:
        """These, and no others."""
        self.clear()
        self.names = tuple(names)
        for n, (label, cloud) in enumerate(zip(labels, clouds, strict=True)):
            x = (n - (len(clouds) - 1) / 2.0) * APART
            splats = self.server.scene.add_gaussian_splats(
                f"/past/{n}",
                cloud.means,
                cloud.covariances,
                cloud.rgbs,
                cloud.opacities[:, None],
                position=(x, 0.0, 0.0),
            )
            words = self.server.scene.add_label(
                f"/past/{n}/label", label, position=(0.0, -APART / 2.0, 0.0), anchor="top-center"
            )
            self._nodes += [words, splats]
        if len(clouds) == 2:
            self._step_back()

    def clear(self) -> None:
        """Show none."""
        for node in self._nodes:
            node.remove()
        self.names, self._nodes = (), []

    def _step_back(self) -> None:
        """Bring pages' cameras to where both are in view."""
        least = float(np.linalg.norm(first_position(APART)))
        for client in self.server.get_clients().values():
            camera = client.camera
            position, middle = np.array(camera.position), np.array(camera.look_at)
            distance = float(np.linalg.norm(position - middle))
            if 0.0 < distance < least:
                camera.position = middle + (position - middle) * (least / distance)
                camera.look_at = middle  # a new position moves it along


class PastRuns:
    """Past runs, a few at a time: a picture, what it was, and what can be done with it.

    Elements are made by one thread, in `update`; pages' threads only say what they want.
    """

    def __init__(self, gui: viser.GuiApi, program: Program, request: Request, exhibit: Exhibit) -> None:
        self.gui, self.program, self.request, self.exhibit = gui, program, request, exhibit
        self.first = self.shown = 0  # of those on this page: wanted, and drawn
        self.chosen: tuple[str, ...] = ()  # to be shown
        self.said = gui.add_html("", visible=False)
        self.live = gui.add_button("Back to the live run", visible=False)
        self.place = gui.add_folder(None)
        self.turn = gui.add_button_group("Page", ("newer", "older"), visible=False)
        self._drawn: object = None
        self._rows: list[viser.GuiInputHandle[Any] | Any] = []
        self.live.on_click(lambda _: self.choose(()))
        self.turn.on_click(lambda _: self._turn(self.turn.value))

    def choose(self, names: tuple[str, ...]) -> None:
        """Show these, at most two; none for the live run."""
        self.chosen = names

    @property
    def stale(self) -> bool:
        """Whether a page wants something else than is drawn."""
        return self.chosen != self.exhibit.names or self.first != self.shown

    def update(self) -> None:
        """Draw what has changed."""
        past = self.program.past()
        self.first = self.shown = max(0, min(self.first, (len(past) - 1) // PER_PAGE * PER_PAGE))
        visible = past[self.shown : self.shown + PER_PAGE]
        self._exhibit({run.name: run for run in past if run.finished})
        state = (tuple(visible), self.exhibit.names, len(past) > PER_PAGE)
        if state == self._drawn:
            return
        self._drawn = state
        self.live.visible = bool(self.exhibit.names)
        self.turn.visible = len(past) > PER_PAGE
        for element in self._rows:
            element.remove()
        self._rows = []
        with self.place:
            for run in visible:
                self._row(run)
            if not visible:
                self._rows.append(self.gui.add_html(box("none yet")))

    def _exhibit(self, finished: dict[str, PastRun]) -> None:
        self.chosen = tuple(name for name in self.chosen if name in finished)
        wanted = self.chosen
        if wanted == self.exhibit.names:
            return
        clouds = attempt(self._tell, lambda: [self.program.cloud(name) for name in wanted])
        if clouds is None:
            self.chosen = self.exhibit.names
            return
        self.exhibit.show(wanted, labels([finished[name] for name in wanted]), clouds)

    def _row(self, run: PastRun) -> None:
        self._rows.append(self.gui.add_html(self._caption(run)))
        shown = "Hide" if run.name in self.exhibit.names else "Show"
        options = [shown, "Save .ply"] if run.finished else []
        options += ["Again"] if run.again else []
        options += ["Continue"] if run.goes_on else []
        if not options:
            return
        buttons = self.gui.add_button_group("", options)
        self._rows.append(buttons)
        deeds: dict[str, Callable[[Event], None]] = {
            "Show": lambda _: self.choose((*self.chosen, run.name)[-2:]),
            "Hide": lambda _: self.choose(tuple(name for name in self.chosen if name != run.name)),
            "Save .ply": lambda event: self._save(run.name, event),
            "Again": lambda _: self.request.start_from(run.name),
            "Continue": lambda _: self.request.tell(self.program.go_on(run.name)),
        }

        @buttons.on_click
        def _(event: Event) -> None:
            deeds[buttons.value](event)

    def _caption(self, run: PastRun) -> str:
        picture = attempt(self._tell, lambda: self.program.thumbnail(run.name))
        source = "" if picture is None else f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        image = f'<img src="{source}" width="72" height="72" alt="">' if source else ""
        side = _side(self.exhibit.names, run.name)
        rewards = (f"{name.rpartition('/')[2]} {value:.3f}" for name, value in run.rewards.items())
        lines = (
            f"<b>{html.escape(run.prompt)}</b>",
            *map(html.escape, (run.told, run.status, *rewards, side)),
        )
        text = "<br>".join(line for line in lines if line)
        flex = "display: flex; gap: 0.75em; min-height: 72px; overflow-wrap: anywhere"
        return box(f'<div style="{flex}">{image}<div>{text}</div></div>')

    def _save(self, name: str, event: Event) -> None:
        content = attempt(self._tell, lambda: self.program.file(name))
        if content is not None and event.client is not None:
            event.client.send_file_download(f"{name}.ply", content, save_immediately=True)

    def _turn(self, way: str) -> None:
        self.first += PER_PAGE if way == "older" else -PER_PAGE

    def _tell(self, refusal: Any) -> None:
        self.said.content = "" if refusal is None else alert(refusal.message)
        self.said.visible = refusal is not None


def labels(shown: Sequence[PastRun]) -> list[str]:
    """What tells runs apart: prompts, else methods and numbers, else folders."""
    for told in ([run.prompt for run in shown], [run.told for run in shown]):
        if len(set(told)) == len(told):
            return told
    return [run.name for run in shown]


def _side(names: Sequence[str], name: str) -> str:
    """Where a run is shown."""
    if name not in names:
        return ""
    return "shown" if len(names) == 1 else f"shown on the {SIDES[list(names).index(name)]}"
