"""`splatgen render`: a turntable film and a preview sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from splatgen.commands.common import checks
from splatgen.commands.common.arguments import parse
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.commands.common.inputs import framed, splat_file

FILMS = (".mp4", ".gif")


@dataclass(frozen=True, kw_only=True)
class Render:
    """Render a turntable and a preview of a run or a splat file, beside it; prints their paths."""

    input: Annotated[Path, Positional, arg(metavar="INPUT")]
    """A run folder or a splat file: .ply, .splat, .spz or .glb."""
    out: Annotated[Path | None, arg(metavar="FILE_OR_DIR", help_behavior_hint="")] = None
    """A folder for both, an .mp4 for the turntable alone, or a .png for the preview alone."""
    frames: Annotated[int, arg(metavar="N")] = 120
    """Of the turntable, at 30 a second; 0 makes none."""
    size: Annotated[int, arg(metavar="N")] = 512
    """Side of the pictures in pixels."""
    elevation: Annotated[float, arg(metavar="D")] = 15.0
    """Of the turntable's camera, degrees."""
    fit: Literal["auto", "always", "never"] = "auto"
    """Move and scale splats before the camera: if they are out of view or tiny (those of a run folder stay),
    always, or never."""
    background: Literal["white", "black", "grey"] = "white"
    """What is behind the splats."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Where to write; None is not wanted. The turntable has no suffix: it depends on ffmpeg."""

    turntable: Path | None
    preview: Path | None


def targets(options: Render, source: Path) -> Targets:
    """Where the pictures go. Raises Failure for a file that is neither film nor picture."""
    out, films = options.out, options.frames > 0
    if out is None or out.is_dir() or not out.suffix:
        folder = source.parent if out is None else out
        prefix = "" if options.input.is_dir() else f"{source.stem}-"
        film = folder / f"{prefix}turntable" if films else None
        return Targets(turntable=film, preview=folder / f"{prefix}preview.png")
    if out.suffix.lower() in FILMS and films:
        return Targets(turntable=out.with_suffix(""), preview=None)
    if out.suffix.lower() == ".png":
        return Targets(turntable=None, preview=out)
    raise Failure(USAGE, f"--out {out}: give a folder, an .mp4 (with --frames of 1 or more) or a .png")


def check(options: Render) -> None:
    """Raise Failure for numbers out of range."""
    for name, value, low, high in (
        ("frames", options.frames, 0, 2000),
        ("size", options.size, 16, 2048),
        ("elevation", options.elevation, -90, 90),
    ):
        if not low <= value <= high:
            raise Failure(USAGE, f"--{name} {value}: give {low} to {high}")


def main(argv: Sequence[str]) -> int:
    options = parse(Render, "render", argv)
    check(options)
    source = splat_file(options.input)
    wanted = targets(options, source)
    from splatgen import formats
    from splatgen.loop import results

    file = formats.read(source)
    device = checks.resolve_device(options.device).device
    splats = framed(file, options.input, options.fit).to(device)
    for path in (wanted.turntable, wanted.preview):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if wanted.turntable is not None:
        film = results.write_turntable(
            splats,
            wanted.turntable,
            size=options.size,
            frames=options.frames,
            elevation=options.elevation,
            background=options.background,
            antialiased=file.antialiased,
        )
        print(film, flush=True)
    if wanted.preview is not None:
        results.write_preview(
            splats,
            wanted.preview,
            size=options.size,
            background=options.background,
            antialiased=file.antialiased,
            fill=options.input.is_dir() and options.fit == "auto",  # else --fit has placed it
        )
        print(wanted.preview, flush=True)
    return 0
