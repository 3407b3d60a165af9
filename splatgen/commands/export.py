"""`splatgen export`: splats in the format, axes and degree that another program wants, or a mesh of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from splatgen.commands.common.arguments import Switch, parse
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.commands.common.inputs import check_output, splat_file
from splatgen.runs.version import __version__

if TYPE_CHECKING:
    from splatgen.formats.splat_file import SplatFile

MESHES = (".glb", ".obj", ".ply")
LEAST_FACES = 500  # a grid of 8 points a side has about as many


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the splats of a run or a file, or a mesh of them, for other programs; prints the path."""

    input: Annotated[Path, Positional, arg(metavar="INPUT")]
    """A run folder or a splat file."""
    output: Annotated[Path, Positional, arg(metavar="OUTPUT")]
    """The file to write; its suffix is the format. Of a mesh: .glb, .obj or .ply."""
    frame: Literal["auto", "ply", "rub", "rdf", "zup"] = "auto"
    """Axes: ply is upright in SuperSplat and PlayCanvas, rub has +Y up and +Z in front, rdf is COLMAP's, zup
    has +Z up as in Blender; auto are the format's own."""
    input_frame: Literal["auto", "ply", "rub", "rdf", "zup"] = "auto"
    """Axes of INPUT; auto are those that it says it has, or the format's own."""
    sh: Annotated[Literal[0, 1, 2, 3] | None, arg(metavar="N", help_behavior_hint="")] = None
    """Degree of the spherical harmonics, padded or cut (Unity wants 3); the input's own when not given."""
    recentre: Switch = False
    """Move the middle of what is seen to the origin."""
    keep_invisible: Switch = False
    """Keep splats less opaque than 1/255."""
    mesh: Switch = False
    """Write a closed mesh with colours instead, as .glb, .obj or .ply: of renders from all around."""
    faces: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Triangles of the mesh, at most; 40,000 to 90,000 when not given."""
    spz_version: Annotated[Literal[3, 4] | None, arg(metavar="N", help_behavior_hint="")] = None
    """Of a .spz: 3, which every reader knows, or 4, which is smaller; 3 when not given."""
    overwrite: Switch = False
    """Replace OUTPUT if it exists."""


def main(argv: Sequence[str]) -> int:
    options = parse(Export, "export", argv)
    source = splat_file(options.input)
    check(options)
    from splatgen import formats
    from splatgen.formats.splat_file import recentred

    read = formats.read(source, frame=_frame(options.input_frame), broken=True)
    file, note = cleaned(read, options, source)
    if options.recentre:
        file = recentred(file)
    run = f" {source.resolve().parent.name}" if options.input.is_dir() else ""
    write = write_mesh if options.mesh else write_splats
    write(file, options, [f"splatgen {__version__}{run}"], note)
    print(options.output)
    return 0


def check(options: Export) -> None:
    """Raise Failure for an output that can't be written, before anything is read."""
    suffix = options.output.suffix.lower()
    if options.output.is_dir():
        example = options.output / f"object{'.glb' if options.mesh else '.ply'}"
        raise Failure(USAGE, f"{options.output} is a folder: name the file to write, as in {example}")
    if options.mesh:
        if suffix not in MESHES:
            raise Failure(USAGE, f"{options.output} has no suffix of a mesh: give {', '.join(MESHES)}")
        if options.sh is not None:
            raise Failure(USAGE, "--sh is of splats: leave it out with --mesh")
        if options.faces is not None and options.faces < LEAST_FACES:
            raise Failure(USAGE, f"--faces {options.faces}: give {LEAST_FACES} or more")
    elif options.faces is not None or suffix == ".obj":
        what = f"{options.output} is a mesh" if suffix == ".obj" else "--faces is of a mesh"
        raise Failure(USAGE, f"{what}: add --mesh")
    else:
        check_output(options.output)
    if options.spz_version is not None and suffix != ".spz":
        raise Failure(USAGE, f"--spz-version is of a .spz, and {options.output} is none: leave it out")
    if options.output.exists() and not options.overwrite:
        raise Failure(USAGE, f"{options.output} exists: use another name, or --overwrite")


def write_splats(file: SplatFile, options: Export, comments: list[str], note: str) -> None:
    """Write splats, and say what is lost."""
    from splatgen import formats

    formats.save(
        file,
        options.output,
        comments=comments,
        sh_degree=options.sh,
        frame=_frame(options.frame),
        clean=False,
        spz_version=options.spz_version or 3,
    )
    print(f"splatgen: {len(file):,} splats{note}", file=sys.stderr)
    lost = formats.losses(file, options.output, sh_degree=options.sh)
    if lost:
        print(f"splatgen: lost in {options.output.suffix}: {', '.join(lost)}", file=sys.stderr)


def write_mesh(file: SplatFile, options: Export, comments: list[str], note: str) -> None:
    """Write the surface of splats."""
    from splatgen.commands.common.checks import resolve_device
    from splatgen.formats import mesh_files
    from splatgen.formats.splat_file import coarse
    from splatgen.rasterizer.fusion import surface_of

    splats = file.splats(exact=True).to(resolve_device("auto").device)
    surface = surface_of(splats, most_faces=options.faces)
    frame = _frame(options.frame) or "rub"
    mesh_files.write_surface(surface, options.output, comments=comments, frame=frame)
    print(f"splatgen: {len(surface.faces):,} triangles of {len(file):,} splats{note}", file=sys.stderr)
    if lost := coarse(file):
        print(f"splatgen: lost: positions, in steps of {lost}: --recentre keeps them", file=sys.stderr)


def _frame(chosen: str) -> str | None:
    return None if chosen == "auto" else chosen


def cleaned(file: SplatFile, options: Export, source: Path) -> tuple[SplatFile, str]:
    """What is worth writing, and words about the rest. Raises Failure when nothing is left of something."""
    from splatgen.formats.writing import usable, visible

    sound = usable(file)
    kept = file.select(sound if options.keep_invisible else sound & visible(file))
    broken = int((~sound).sum())
    unseen = len(file) - len(kept) - broken
    parts = [f"{n:,} {word}" for n, word in ((unseen, "invisible"), (broken, "broken")) if n]
    note = f", {' and '.join(parts)} ones left out" if parts else ""
    if parts and not len(kept):
        raise Failure(USAGE, f"{source} holds nothing to write{note}")
    return kept, note
