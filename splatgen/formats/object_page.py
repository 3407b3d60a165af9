"""Splats as a page of their own, to send to somebody: one .html, which needs a browser and no network.

The splats are in it as rows of 32 bytes, in the layout of a .splat but the internal axes, compressed and in
base64; the page's own script draws them. It is written, and not read.
"""

from __future__ import annotations

import base64
import gzip
import html
import os
from collections.abc import Sequence
from pathlib import Path

from splatgen.formats import splat, writing
from splatgen.formats.splat_file import SplatFile
from splatgen.runs import atomic

MOST_DEGREE = 0
KEEPS: frozenset[str] = frozenset()
losses = splat.losses


def save(
    file: SplatFile,
    path: str | os.PathLike[str],
    *,
    comments: Sequence[str] = (),
    sh_degree: int | None = None,
    frame: str = "rub",
    clean: bool = True,
) -> int:
    """Write splats atomically; return how many were dropped. The title is the file's name.

    clean and frame are as in ply.save; what is +Y in that frame is up.
    """
    written, dropped = writing.prepared(
        file, path, frame=frame, sh_degree=sh_degree, clean=clean, most_degree=MOST_DEGREE
    )
    atomic.write_text(path, page(written, Path(path).stem.replace("-", " "), "; ".join(comments)))
    return dropped


def page(file: SplatFile, title: str, generator: str = "splatgen") -> str:
    """The page of splats that are in the frame to be shown."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    rows = base64.b64encode(gzip.compress(splat.rows(file).tobytes(), 6, mtime=0)).decode()
    head, _, tail = template.partition("SPLATS")
    said = {"TITLE": html.escape(title), "GENERATOR": html.escape(generator or "splatgen")}
    for word, text in said.items():
        head = head.replace(word, text)
    return head + rows + tail
