"""The objects of a comparison side by side: a row a method, the same views of every seed's object."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from splatgen import formats
from splatgen.loop.results import pictures
from splatgen.runs import atomic
from splatgen.runs.run_folder import Run
from splatgen.scene.cameras import orbit
from splatgen.sweeps.ledger import SHEET, Outcome, Sweep
from splatgen.sweeps.table import columns, measures

AZIMUTHS, ELEVATION = (0.0, 120.0, 240.0), 15.0  # of the views, degrees
MOST_WIDTH = 3600  # pixels of pictures; more seeds make them smaller
LINE = 22  # pixels, of each of the three lines above the pictures: prompt, seed, view
SCORES = 4  # lines of numbers at most beside a row


def write_sheet(sweep: Sweep) -> None:
    """Pictures of the first prompt's objects with the prompt above, and the means of each method beside."""
    from PIL import Image, ImageDraw, ImageFont

    plan = sweep.plan
    seeds, methods = list(plan.seeds), list(plan.methods)
    side = max(32, min(plan.first.output.size, MOST_WIDTH // (len(seeds) * len(AZIMUTHS))))
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    labels = {method: _scores(sweep, method)[: max(0, side // 14 - 2)] for method in methods}
    lines = [(name, font) for name in methods] + [(t, small) for told in labels.values() for t in told]
    label = 12 + int(max(face.getlength(text) for text, face in lines))
    sheet = Image.new(
        "RGB", (label + len(seeds) * len(AZIMUTHS) * side, 3 * LINE + len(methods) * side), "white"
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 2), plan.prompts[0], "black", font)
    for i, seed in enumerate(seeds):
        left = label + i * len(AZIMUTHS) * side
        draw.text((left + 4, LINE + 2), f"seed {seed}", "black", font)
        for j, degrees in enumerate(AZIMUTHS):
            draw.text((left + j * side + 4, 2 * LINE), f"{degrees:g}°" if degrees else "front", "grey", font)
    for row, method in enumerate(methods):
        top = 3 * LINE + row * side
        draw.text((4, top + 4), method, "black", font)
        for n, text in enumerate(labels[method]):
            draw.text((4, top + 24 + 14 * n), text, "grey", small)
    for o in sweep.outcomes:
        left = label + seeds.index(o.seed) * len(AZIMUTHS) * side
        top = 3 * LINE + methods.index(o.method) * side
        if o.status == "done":
            for j, picture in enumerate(_views(sweep, o, side)):
                sheet.paste(Image.fromarray(picture), (left + j * side, top))
        else:
            draw.text((left + 4, top + side // 2 - 8), o.status, "red", font)
        draw.line((left - 1, LINE, left - 1, sheet.height), "lightgrey")
    with atomic.replacing(sweep.folder / SHEET) as temporary:
        sheet.save(temporary, format="PNG")


def _views(sweep: Sweep, outcome: Outcome, side: int) -> Iterator[NDArray[np.uint8]]:
    azimuth = torch.tensor(AZIMUTHS)
    cameras = orbit(azimuth, torch.full_like(azimuth, ELEVATION), size=side)
    return pictures(formats.load(Run(folder=sweep.folder / outcome.folder).splats_ply), cameras)


def _scores(sweep: Sweep, method: str) -> list[str]:
    """The first means of a method, costs left out."""
    found = measures(sweep)[method]
    shown = [(n, c) for n, c in columns(sweep.plan).items() if n in found and not n.startswith("cost/")]
    return [f"{title} {found[name].mean:.{decimals}f}" for name, (title, decimals) in shown[:SCORES]]
