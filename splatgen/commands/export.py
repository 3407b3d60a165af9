"""`splatgen export`: splats in the axes and the degree that another program wants."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from splatgen import __version__
from splatgen.commands.failures import USAGE, Failure
from splatgen.commands.inputs import check_suffix, splat_file
from splatgen.commands.parsing import Switch, parse


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the splats of a run or a .ply for other programs; prints the path."""

    input: Annotated[Path, Positional, arg(metavar="INPUT")]
    """A run folder or a .ply file."""
    output: Annotated[Path, Positional, arg(metavar="OUTPUT.ply")]
    """The file to write."""
    frame: Literal["ply", "rub", "rdf"] = "ply"
    """Axes: ply is upright in SuperSplat and PlayCanvas, rub has +Y up and +Z in front, rdf is COLMAP's."""
    sh: Annotated[Literal[0, 1, 2, 3] | None, arg(metavar="N", help_behavior_hint="")] = None
    """Degree of the spherical harmonics, padded or cut (Unity wants 3); the input's own when not given."""
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

    run = f" {source.resolve().parent.name}" if options.input.is_dir() else ""
    splats = formats.load(source)
    dropped = formats.save(
        splats,
        options.output,
        comments=[f"splatgen {__version__}{run}"],
        sh_degree=options.sh,
        frame=options.frame,
        clean=not options.keep_invisible,
    )
    note = f", {dropped:,} invisible ones left out" if dropped else ""
    print(f"splatgen: {len(splats) - dropped:,} splats{note}", file=sys.stderr)
    print(options.output)
    return 0
