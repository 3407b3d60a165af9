"""Buttons inside HTML: a list is one element, drawn at once, and its buttons say a deed and of what.

viser's own buttons are elements of their own, which come and go one by one under the user's hand.
"""

from __future__ import annotations

import asyncio
import html
import logging
from collections.abc import Callable
from typing import Any

import viser

Event = viser.GuiEvent[Any]
Deed = Callable[[str, viser.ClientHandle | None], None]
FIELD = "deeds"  # as page.js knows it

_log = logging.getLogger(__name__)


class Deeds:
    """What the page's own buttons may ask for; page.js writes `number deed of` into the field."""

    def __init__(self, gui: viser.GuiApi) -> None:
        self._known: dict[str, Deed] = {}
        self.field = gui.add_text(FIELD, "")
        self.field.on_update(self._do)

    def add(self, name: str, deed: Deed) -> None:
        """Do this for buttons of a name; what is given is what the button is of."""
        self._known[name] = deed

    async def _do(self, event: Event) -> None:
        """Read the field where it is written: a thread would find there what was asked for after."""
        _, _, asked = self.field.value.partition(" ")
        name, _, of = asked.partition(" ")
        deed = self._known.get(name)
        if deed is None:
            _log.warning("a page asked for %r, which nobody does", name[:40])
            return
        asyncio.get_running_loop().run_in_executor(None, _done, deed, of.strip(), event.client)


def _done(deed: Deed, of: str, client: viser.ClientHandle | None) -> None:
    try:
        deed(of, client)
    except Exception:  # noqa: BLE001 - a page asked for something odd; the others live on
        _log.warning("what a page asked for failed", exc_info=True)


def button(label: str, deed: str, of: object = "", hint: str = "") -> str:
    """HTML of a button; any text."""
    said = f' title="{html.escape(hint)}"' if hint else ""
    name = f' aria-label="{html.escape(hint)}"' if hint and len(label) == 1 else ""
    whole = f'data-deed="{deed}" data-of="{html.escape(str(of))}"{said}{name}'
    return f'<button type="button" {whole}>{html.escape(label)}</button>'


def box(text: str) -> str:
    """HTML in the panels' size."""
    return f'<div class="sg">{text}</div>'


def alert(text: str) -> str:
    """Words about something that went wrong; any text."""
    return box(f'<span class="alert" role="alert">{html.escape(text)}</span>')
