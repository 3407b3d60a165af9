"""`splatgen export`: splats in the format, the axes and the degree that another program wants."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from splatgen.commands.common.arguments import Switch, parse
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.commands.common.inputs import check_suffix, splat_file
from splatgen.runs.version import __version__

if TYPE_CHECKING:
    from splatgen.scene.splats import Splats


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the splats of a run or a file as .ply, .splat, .spz or .glb; prints the path."""

    input: Annotated[Path, Positional, arg(metavar="INPUT")]
    """A run folder or a splat file."""
    output: Annotated[Path, Positional, arg(metavar="OUTPUT")]
    """The file to write; its suffix is the format."""
    frame: Literal["auto", "ply", "rub", "rdf"] = "auto"
    """Axes: ply is upright in SuperSplat and PlayCanvas, rub has +Y up and +Z in front, rdf is COLMAP's; auto
    are the format's own."""
    input_frame: Literal["auto", "ply", "rub", "rdf"] = "auto"
    """Axes of INPUT."""
    sh: Annotated[Literal[0, 1, 2, 3] | None, arg(metavar="N", help_behavior_hint="")] = None
    """Degree of the spherical harmonics, padded or cut (Unity wants 3); the input's own when not given."""
    recentre: Switch = False
    """Move the middle of what is seen to the origin."""
    keep_invisible: Switch = False
    """Keep splats less opaque than 1/255."""
    overwrite: Switch = False
    """Replace OUTPUT if it exists."""


def main(argv: Sequence[str]) -> int:
    options = parse(Export, "export", argv)
    source = splat_file(options.input)
    check_suffix(options.output)
    if options.output.exists() and not options.overwrite:
        raise Failure(USAGE, f"{options.output} exists: use another name, or --overwrite")
    from splatgen import formats

    splats, note = cleaned(
        formats.load(source, frame=_frame(options.input_frame), broken=True), options, source
    )
    if options.recentre:
        splats = recentred(splats)
    run = f" {source.resolve().parent.name}" if options.input.is_dir() else ""
    formats.save(
        splats,
        options.output,
        comments=[f"splatgen {__version__}{run}"],
        sh_degree=options.sh,
        frame=_frame(options.frame),
        clean=False,
    )
    print(f"splatgen: {len(splats):,} splats{note}", file=sys.stderr)
    lost = formats.losses(splats, options.output, sh_degree=options.sh)
    if lost:
        print(f"splatgen: lost in {options.output.suffix}: {', '.join(lost)}", file=sys.stderr)
    print(options.output)
    return 0


def _frame(chosen: str) -> str | None:
    return None if chosen == "auto" else chosen


def cleaned(splats: Splats, options: Export, source: Path) -> tuple[Splats, str]:
    """What is worth writing, and words about the rest. Raises Failure when nothing is left of something."""
    from splatgen.formats.writing import usable, visible

    sound = usable(splats)
    kept = splats.select(sound if options.keep_invisible else sound & visible(splats))
    broken = int((~sound).sum())
    unseen = len(splats) - len(kept) - broken
    parts = [f"{n:,} {word}" for n, word in ((unseen, "invisible"), (broken, "broken")) if n]
    note = f", {' and '.join(parts)} ones left out" if parts else ""
    if parts and not len(kept):
        raise Failure(USAGE, f"{source} holds nothing to write{note}")
    return kept, note


def recentred(splats: Splats) -> Splats:
    """Splats whose middle is the origin: that of the box that holds 95 % of the opacity along each axis."""
    from splatgen.scene.placement import placement

    if not len(splats):
        return splats
    center = splats.means.new_tensor(placement(splats, "always", name="the file").center).double()
    return replace(splats, means=(splats.means.double() - center).float())
