"""The panels that steer a run: pause, stop, checkpoint, and the settings that can change."""

from __future__ import annotations

import html
import threading
from collections.abc import Mapping

import viser

from splatgen.loop.snapshot import Channel, Command, Snapshot

from .deeds import alert, box

MOST = {"guidance.scale": 1000.0, "lr.factor": 100.0}


class Controls:
    """Buttons; a run obeys before its next step."""

    def __init__(self, gui: viser.GuiApi, channel: Channel) -> None:
        self.channel = channel
        self.paused = False
        self.pause = gui.add_button("Pause", hint="After the step that is being made")
        self.stop = gui.add_button(
            "Stop and keep", color="red", hint="With a checkpoint; splatgen resume continues"
        )
        self.checkpoint = gui.add_button("Take a checkpoint")

        @self.pause.on_click
        def _(_: object) -> None:
            channel.send(Command(kind="continue" if self.paused else "pause"))

        @self.stop.on_click
        def _(_: object) -> None:
            channel.send(Command(kind="stop"))

        @self.checkpoint.on_click
        def _(_: object) -> None:
            channel.send(Command(kind="checkpoint"))

    def update(self, snapshot: Snapshot) -> None:
        self.paused = snapshot.status == "paused"
        self.pause.label = "Continue" if self.paused else "Pause"
        over = snapshot.status not in ("running", "paused")
        for button in (self.pause, self.stop, self.checkpoint):
            button.disabled = over


class Save:
    """A button that asks for a .ply of the present splats, and the page that asked gets it."""

    def __init__(self, gui: viser.GuiApi, channel: Channel) -> None:
        self.channel = channel
        self.asked: set[viser.ClientHandle] = set()
        self.lock = threading.Lock()  # between the pages' callbacks and the pump; the run never takes it
        self.button = gui.add_button("Save .ply", hint="The splats after the step that is being made")

        @self.button.on_click
        def _(event: viser.GuiEvent[viser.GuiButtonHandle]) -> None:
            if event.client is not None:
                with self.lock:
                    self.asked.add(event.client)
                channel.send(Command(kind="save"))

    def deliver(self, name: str, content: bytes) -> None:
        """Hand a file to the pages that asked."""
        with self.lock:
            asked, self.asked = self.asked, set()
        for client in asked:
            client.send_file_download(name, content, save_immediately=True)


class Settings:
    """A number a setting, and a button that sends those that were changed; what cannot be is said."""

    def __init__(self, gui: viser.GuiApi, channel: Channel, settings: Mapping[str, float]) -> None:
        self.channel, self.sent = channel, dict(settings)
        self.fields = {name: field(gui, name, value) for name, value in settings.items()}
        self.apply = gui.add_button("Apply", hint="From the next step on; written to steering.jsonl")
        self.said = gui.add_html("", visible=False)
        self.apply.on_click(lambda _: self._send())

    def _send(self) -> None:
        lines = []
        for name, entry in self.fields.items():
            value = float(entry.value)
            if value == self.sent[name]:
                continue
            wrong = refusal(name, value)
            if wrong:
                lines.append(alert(wrong))
                entry.value = self.sent[name]  # type: ignore[misc]
                continue
            self.sent[name] = value
            self.channel.send(Command(kind="set", setting=name, value=value))
            lines.append(box(f"{html.escape(label(name))} is {value:g} from the next step on"))
        self.said.content = "".join(lines) or box("nothing was changed")
        self.said.visible = True


def refusal(name: str, value: float) -> str:
    """Why a setting cannot have a value; empty when it can."""
    if name.startswith("reward."):
        return ""
    most = MOST.get(name, float("inf"))
    return "" if 0.0 <= value <= most else f"{label(name)} is {value:g}: give 0 to {most:,.0f}"


def label(name: str) -> str:
    """A setting as on the command line but for the words before its dot."""
    kind, _, short = name.partition(".")
    return f"reward {short}" if kind == "reward" else {"lr.factor": "learning rates ×"}.get(name, name)


def field(gui: viser.GuiApi, name: str, value: float) -> viser.GuiNumberHandle[float]:
    """Of a setting. It has no limits of its own: a browser would move a number to them without a word."""
    return gui.add_number(label(name), float(value), step=0.01)
