"""The panel of past runs, and the place in the scene where one or several of them are shown."""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Callable, Sequence
from typing import Any

import viser

from splatgen.loop.snapshot import Cloud

from .deeds import Deeds, alert, box, button
from .studio_grid import APART, places, step_back
from .studio_program import PastRun, Program
from .studio_request import Request, attempt

PER_PAGE = 6
SUFFIXES = {"ply": ".ply", "spz": ".spz", "glb": ".glb", "html": ".html", "png": ".png"}
EVERY, STARRED, PICTURES = "all", "starred", "pictures"
Client = viser.ClientHandle | None


class Exhibit:
    """Past objects in place of the live one: in the middle, or side by side, seen by one camera."""

    def __init__(self, server: viser.ViserServer) -> None:
        self.server = server
        self.names: tuple[str, ...] = ()
        self._nodes: list[Any] = []

    def show(self, names: Sequence[str], labels: Sequence[str], clouds: Sequence[Cloud]) -> None:
        """These, and no others."""
        self.clear()
        self.names = tuple(names)
        for n, (label, cloud, place) in enumerate(zip(labels, clouds, places(len(clouds)), strict=True)):
            splats = self.server.scene.add_gaussian_splats(
                f"/past/{n}",
                cloud.means,
                cloud.covariances,
                cloud.rgbs,
                cloud.opacities[:, None],
                position=place,
            )
            words = self.server.scene.add_label(
                f"/past/{n}/label", label, position=(0.0, -APART / 2.0, 0.0), anchor="top-center"
            )
            self._nodes += [words, splats]
        if len(clouds) > 1:
            step_back(self.server, len(clouds))

    def clear(self) -> None:
        """Show none."""
        for node in self._nodes:
            node.remove()
        self.names, self._nodes = (), []


class PastRuns:
    """Past runs, a few at a time: a picture, what it was, and what can be done with it.

    Elements are drawn by one thread, in `update`; pages' threads only say what they want.
    """

    def __init__(
        self, gui: viser.GuiApi, program: Program, request: Request, exhibit: Exhibit, deeds: Deeds
    ) -> None:
        self.gui, self.program, self.request, self.exhibit = gui, program, request, exhibit
        self.first = 0  # of those on this page
        self.chosen: tuple[str, ...] = ()  # to be shown
        self.brought: dict[str, tuple[str, Cloud]] = {}  # files that were opened: label and object
        self.picture = ""  # of a run of an image, to be shown large
        self.changed = True  # a page wants something else than is drawn
        self._put_away = ""  # the run that was deleted last
        self.said = gui.add_html("", visible=False)
        self.live = gui.add_button("Back to the live run", visible=False)
        self.apart = gui.add_html("", visible=False)
        self.search = gui.add_text("Search", "", hint="Words of the prompt, a method, a prior")
        self.which = gui.add_dropdown("Which", (EVERY, STARRED, PICTURES), initial_value=EVERY)
        self.list = gui.add_html(box("none yet"))
        self._drawn: object = None
        self.live.on_click(lambda _: self.choose(()))
        self.search.on_update(lambda _: self._turn(0))
        self.which.on_update(lambda _: self._turn(0))
        self._listen(deeds)

    def _listen(self, deeds: Deeds) -> None:
        deeds.add("show", lambda of, _: self._show(of))
        deeds.add("beside", lambda of, _: self.choose((*self.chosen, of)[-9:]))
        deeds.add("together", lambda of, _: self.choose(tuple(of.split())))
        deeds.add("hide", lambda of, _: self.choose(tuple(name for name in self.chosen if name != of)))
        deeds.add("live", lambda *_: self.choose(()))
        deeds.add("again", lambda of, _: self.request.start_from(of))
        deeds.add("continue", lambda of, _: self.request.tell(self.program.go_on(of)))
        deeds.add("star", self._do(self.program.star))
        deeds.add("measure", self._do(self.program.measure))
        deeds.add("delete", self._do(self._delete))
        deeds.add("undo", self._do(lambda _: self._undo()))
        deeds.add("page", lambda of, _: self._turn(int(of)))
        for deed, suffix in SUFFIXES.items():
            deeds.add(f"save-{deed}", functools.partial(self._save, suffix))

    def _do(self, deed: Callable[[str], None]) -> Callable[[str, Client], None]:
        def done(of: str, _: Client) -> None:
            attempt(self._tell, lambda: deed(of))
            self.changed = True

        return done

    def choose(self, names: tuple[str, ...]) -> None:
        """Show these; none for the live run."""
        self.chosen, self.picture, self.changed = names, "", True

    def bring(self, name: str, label: str, cloud: Cloud) -> None:
        """Show a file that was opened."""
        self.brought[name] = label, cloud
        self.choose((name,))

    def _show(self, name: str) -> None:
        flat = next((run.flat for run in self.program.past() if run.name == name), False)
        self.choose(() if flat else (name,))
        self.picture = name if flat else ""

    def _delete(self, name: str) -> None:
        self.program.delete(name)
        self._put_away = name

    def _undo(self) -> None:
        self.program.undo()
        self._put_away = ""

    def update(self) -> None:
        """Draw what has changed."""
        self.changed = False
        past = self.program.past()
        found = [run for run in past if self._asked_for(run)]
        self.first = max(0, min(self.first, (len(found) - 1) // PER_PAGE * PER_PAGE))
        visible = found[self.first : self.first + PER_PAGE]
        self._exhibit({run.name: run for run in past if run.finished and not run.flat})
        state = (tuple(visible), self.exhibit.names, self.picture, self._put_away, len(found), self.first)
        if state == self._drawn:
            return
        self._drawn = state
        self.live.visible = bool(self.exhibit.names or self.picture)
        rows = "".join(self._row(run) for run in visible) or ("none yet" if not past else "none of that kind")
        self.list.content = box(self._undo_row() + self._large() + rows + self._pages(len(found)))

    def _asked_for(self, run: PastRun) -> bool:
        words = self.search.value.lower().split()
        text = f"{run.prompt} {run.told} {run.status} {run.when} {run.name}".lower()
        kind = {STARRED: run.starred, PICTURES: run.flat}.get(self.which.value, True)
        return kind and all(word in text for word in words)

    def _exhibit(self, finished: dict[str, PastRun]) -> None:
        self.chosen = tuple(name for name in self.chosen if name in finished or name in self.brought)
        wanted = self.chosen
        if wanted == self.exhibit.names:
            return
        clouds = attempt(self._tell, lambda: [self._cloud(name) for name in wanted])
        if clouds is None:
            self.chosen = self.exhibit.names
            return
        told = labels([finished[name] for name in wanted if name in finished])
        names = iter(told)
        self.exhibit.show(
            wanted, [self.brought[n][0] if n in self.brought else next(names) for n in wanted], clouds
        )
        self.apart.content = self._apart(wanted, finished)
        self.apart.visible = bool(self.apart.content)

    def _cloud(self, name: str) -> Cloud:
        return self.brought[name][1] if name in self.brought else self.program.cloud(name)

    def _apart(self, wanted: Sequence[str], finished: dict[str, PastRun]) -> str:
        """What differs between two."""
        if len(wanted) != 2 or any(name not in finished for name in wanted):
            return ""
        found = attempt(_quietly, lambda: self.program.differences(*wanted)) or ()
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(value)}</td>' for value in row)}</tr>" for row in found
        )
        return box(
            f"<b>What differs, left and right</b><table>{rows}</table>" if rows else "the same settings"
        )

    def _row(self, run: PastRun) -> str:
        picture = attempt(_quietly, lambda: self.program.thumbnail(run.name))
        source = "" if picture is None else f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        image = f'<img src="{source}" alt="">' if source else ""
        rewards = (f"{_judge(name, run.guided)} {value:.3f}" for name, value in run.rewards.items())
        when = " · ".join(part for part in (run.status, run.when) if part)
        lines = (run.told, when, *rewards, run.truth)
        said = "<br>".join(html.escape(line) for line in lines if line)
        star = button("★" if run.starred else "☆", "star", run.name, "Unstar" if run.starred else "Star")
        head = f"{star} <b>{html.escape(run.prompt)}</b>"
        body = f'{head}<br><span class="dim">{said}</span><br>{self._deeds(run)}'
        return f'<div class="row">{image}<div>{body}</div></div>'

    def _deeds(self, run: PastRun) -> str:
        shown = run.name in (*self.exhibit.names, self.picture)
        found = ""
        if run.finished:
            found += button("Hide", "hide" if not run.flat else "live", run.name) if shown else ""
            found += "" if shown else button("Show", "show", run.name)
            if self.exhibit.names and not shown and not run.flat:
                found += button("Beside", "beside", run.name, "Beside what is shown, at the same angle")
            suffixes = ("png",) if run.flat else ("ply", "spz", "glb", "html")
            found += "".join(button(f"Save .{s}", f"save-{s}", run.name) for s in suffixes)
        found += button("Again", "again", run.name, "Its settings into the fields") if run.again else ""
        if run.measurable and not run.truth:
            found += button("Against the truth", "measure", run.name, "The exact object is known")
        found += button("Continue", "continue", run.name) if run.goes_on else ""
        return found + button("Delete", "delete", run.name, "It can be brought back")

    def _undo_row(self) -> str:
        return f"deleted · {button('Undo', 'undo')}" if self._put_away else ""

    def _large(self) -> str:
        if not self.picture:
            return ""
        content = attempt(_quietly, lambda: self.program.picture(self.picture))
        if content is None:
            return ""
        source = base64.b64encode(content).decode()
        return f'<img src="data:image/png;base64,{source}" alt="" style="width: 100%">'

    def _pages(self, count: int) -> str:
        newer = button("newer", "page", -PER_PAGE) if self.first else ""
        older = button("older", "page", PER_PAGE) if self.first + PER_PAGE < count else ""
        last = min(self.first + PER_PAGE, count)
        return f"{self.first + 1} to {last} of {count} {newer}{older}" if count > PER_PAGE else ""

    def _save(self, suffix: str, name: str, client: Client) -> None:
        found = attempt(self._tell, lambda: self.program.file(name, suffix))
        if found is not None and client is not None:
            client.send_file_download(*found, save_immediately=True)

    def _turn(self, by: int) -> None:
        self.first = self.first + by if by else 0
        self.changed = True

    def _tell(self, refusal: Any) -> None:
        self.said.content = "" if refusal is None else alert(refusal.message)
        self.said.visible = refusal is not None


def _quietly(_: Any) -> None:
    """Of what is drawn again and again: words would wipe out those about what somebody asked for."""


def labels(shown: Sequence[PastRun]) -> list[str]:
    """What tells runs apart: prompts, else methods and numbers, else folders."""
    for told in ([run.prompt for run in shown], [run.told for run in shown]):
        if len(set(told)) == len(told):
            return told
    return [run.name for run in shown]


def _judge(name: str, guided: bool) -> str:
    """What a number is: what guided says little of quality, for it was sought."""
    kind, _, short = name.partition("/")
    if kind == "holdout":
        return f"held out: {short}"
    return f"guided by {short}, so not its quality:" if guided else f"scored by {short}:"
