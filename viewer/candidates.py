"""The panel of the last step: what the prior made of each noise, and how that was judged."""

from __future__ import annotations

import base64
import html
import struct
import time
import zlib
from collections.abc import Sequence

import viser

from splatgen.loop.snapshot import Candidate, Picture, Snapshot

from .history import History

INTERVAL = 1.0  # seconds between drawings, while the run goes on
FRAMES = {"win": "#2ca02c", "lose": "#d62728", "kept": "#1f77b4", "": "transparent"}


class Candidates:
    """A row of pictures with reward, weight and role, and for pairs the gap and the strength."""

    def __init__(self, gui: viser.GuiApi, history: History) -> None:
        self.history = history
        self.html = gui.add_html('<div style="padding: 1em; font-size: 0.875em">no step yet</div>')
        self.drawn = 0.0

    def update(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        if not snapshot.candidates or (snapshot.status == "running" and now - self.drawn < INTERVAL):
            return
        self.drawn = now
        pair = {name: self.history.last(f"preference/{name}") for name in ("gap", "strength")}
        self.html.content = page(snapshot.candidates, pair["gap"], pair["strength"])


def page(candidates: Sequence[Candidate], gap: float | None, strength: float | None) -> str:
    """The panel's HTML; gap and strength are the means over all views of the last row that was logged."""
    figures = "".join(figure(candidate) for candidate in candidates)
    shown = gap_of(candidates)
    mean = f" (all views: {gap:.3f})" if gap is not None and shown is not None else ""
    told = [f"win − lose = {shown:.3f}{mean}"] if shown is not None else []
    told += [f"gap {gap:.4g}"] if gap is not None and shown is None else []
    told += [f"strength {strength:.4g}"] if strength is not None else []
    pair = f'<div style="padding-top: 0.5em">{" · ".join(told)}</div>' if told else ""
    row = f'<div style="display: flex; flex-wrap: wrap; gap: 0.5em">{figures}</div>'
    return f'<div style="padding: 0.75em 1em; font-size: 0.75em; line-height: 1.4">{row}{pair}</div>'


def gap_of(candidates: Sequence[Candidate]) -> float | None:
    """How far apart the two pictures of a pair are, as their captions round it; None for no pair."""
    by_role = {candidate.role: candidate.reward for candidate in candidates}
    win, lose = by_role.get("win"), by_role.get("lose")
    return None if win is None or lose is None else round(win, 3) - round(lose, 3)


def figure(candidate: Candidate) -> str:
    """One picture with its words; the frame tells the role, too."""
    source = base64.b64encode(png(candidate.picture)).decode()
    reward = "" if candidate.reward is None else f"reward {candidate.reward:.3f}<br>"
    colour = FRAMES.get(candidate.role, "#7f7f7f")
    image = f'<img src="data:image/png;base64,{source}" style="width: 90px; border: 3px solid {colour}">'
    words = f"{html.escape(candidate.role or 'left out')}<br>{reward}weight {candidate.weight:.3g}"
    return f'<figure style="margin: 0; width: 96px">{image}<figcaption>{words}</figcaption></figure>'


def png(picture: Picture) -> bytes:
    """A picture [h, w, 3] as a PNG file (RFC 2083: 8 bits of RGB, no filter)."""
    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
