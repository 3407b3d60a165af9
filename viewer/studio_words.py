"""The words that a prior knows, to click on: with a picture each where there are pictures."""

from __future__ import annotations

import html
from collections.abc import Sequence

from .deeds import box
from .studio_program import Vocabulary

SIDE = 64  # pixels of a picture


def words(known: Vocabulary) -> str:
    """HTML of a vocabulary."""
    if known.picture:
        sheet = f"<style>.sg .words i {{ background-image: url({known.picture}) }}</style>"
        return sheet + box("".join(_grid(known, kind, names) for kind, names in known.lines.items()))
    lines = (
        f"<b>{html.escape(kind)}</b> {html.escape(', '.join(names))}" for kind, names in known.lines.items()
    )
    return box("<br>".join(lines))


def _grid(known: Vocabulary, kind: str, names: Sequence[str]) -> str:
    cells = "".join(_cell(known, name) for name in names)
    return f'<b>{html.escape(kind)}</b><div class="words">{cells}</div>'


def _cell(known: Vocabulary, name: str) -> str:
    row, column = divmod(known.places.get(name, 0), known.columns)
    place = f"background-position: -{column * SIDE}px -{row * SIDE}px"
    said = html.escape(name)
    return f'<button type="button" data-deed="word" data-of="{said}"><i style="{place}"></i>{said}</button>'
